"""vLLM's NIXL connector with a progress thread that sleeps, and without a pinned engine.

The only module of Baton that touches NIXL inside an engine. NIXL's Python API starts its progress
thread with a delay of zero, so that it spins on a whole core; on a machine where the engine needs
that core, transfers get slower for it. vLLM has no setting for the delay, so this subclass swaps
the factory of agent settings while the parent builds its agent. On the wire nothing changes: it
hands over to and from the stock connector.

On CPU, vLLM's connector also binds the thread that makes it to the last core of the machine, to
keep transfers off the cores that compute. That thread is the one that computes: every engine of a
machine then shares one core, and the others idle. So the binding is taken back.

The class bears the name NixlConnector because vLLM decides several things by that name; which of
the two is meant is said by ``kv_connector_module_path``.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vllm.distributed import nixl_utils
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.connector import (
    NixlConnector as StockNixlConnector,
)
from vllm.logger import init_logger

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
    from vllm.v1.kv_cache_interface import KVCacheConfig

logger = init_logger("vllm.baton.connector")

DELAY_KEY = "baton_progress_delay_us"
"""Key of ``kv_connector_extra_config``: microseconds between two rounds of the progress thread."""


@contextlib.contextmanager
def same_cores() -> Iterator[None]:
    """Afterwards the calling thread may run where it might before, whatever was set meanwhile."""
    if not hasattr(os, "sched_getaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def progress_delay(delay_us: int) -> Iterator[None]:
    """While open, NIXL agents are made with this delay in their progress thread (microseconds).

    Raises:
        RuntimeError: NIXL's Python module is not laid out as this version expects.
    """
    agent_class: Any = nixl_utils.NixlWrapper
    if agent_class is None:
        # The parent class reports that NIXL is missing, with its own words.
        yield
        return
    module = sys.modules[agent_class.__module__]
    binding = getattr(module, "nixlBind", None)
    make_config = getattr(binding, "nixlAgentConfig", None)
    if binding is None or make_config is None:
        raise RuntimeError(
            "NIXL's Python API has changed: no nixlBind.nixlAgentConfig in "
            f"{module.__name__}. Use transfer.connector: stock in the profile."
        )
    module.nixlBind = _PatientBinding(binding, delay_us)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.nixlBind = binding  # type: ignore[attr-defined]


def _patient_config(base: Any, delay_us: int) -> type[Any]:
    """A subclass of NIXL's ``nixlAgentConfig`` whose ``pthrDelay`` cannot be set to another value.

    The Python API sets the field to zero right after it made the object; the setter is what stops
    that, and the C++ side reads the base class's field.
    """
    field: Any = base.pthrDelay

    def get_delay(self: Any) -> int:
        return int(field.__get__(self))

    def set_delay(self: Any, _value: int) -> None:
        field.__set__(self, delay_us)

    return type("PatientAgentConfig", (base,), {"pthrDelay": property(get_delay, set_delay)})


class _PatientBinding:
    """NIXL's binding module, except that agent settings come with our delay."""

    def __init__(self, binding: Any, delay_us: int) -> None:
        self._binding = binding
        self.nixlAgentConfig = _patient_config(binding.nixlAgentConfig, delay_us)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._binding, name)


class NixlConnector(StockNixlConnector):
    """The stock pull connector; its agent's progress thread waits between rounds.

    ``kv_connector_extra_config["baton_progress_delay_us"]`` is the delay in microseconds; absent
    or 0 leaves NIXL's own behaviour.
    """

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        transfer = vllm_config.kv_transfer_config
        delay_us = int(transfer.get_from_extra_config(DELAY_KEY, 0)) if transfer else 0
        with same_cores(), progress_delay(delay_us) if delay_us > 0 else contextlib.nullcontext():
            super().__init__(vllm_config, role, kv_cache_config)
        if delay_us > 0:
            logger.info("NIXL progress thread delay: %d us", delay_us)
