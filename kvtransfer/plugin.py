"""vLLM general plug-in that makes our connector known by a name of its own.

Baton's workers name the connector by module path and do not need it. It is for people who start
vLLM by hand: ``--kv-transfer-config '{"kv_connector": "BatonConnector", ...}'``.
"""

from __future__ import annotations

NAME = "BatonConnector"


def register() -> None:
    """Registers ``BatonConnector`` with vLLM's factory; safe to call again."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    if NAME not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(NAME, "kvtransfer.connector", "NixlConnector")
