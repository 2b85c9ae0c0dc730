"""What a profile's fields become for an engine."""

from __future__ import annotations

import pytest

from baton.engine import Device
from profiles import TransferSpec, Transport
from profiles.worker_plan import eager, engine_dtype, ucx_transports


@pytest.mark.parametrize(
    ("wanted", "device", "compiler", "expected"),
    [
        (None, Device.CPU, None, True),
        (None, Device.CPU, "/usr/bin/g++", None),
        (False, Device.CPU, None, False),
        (True, Device.CPU, "/usr/bin/g++", True),
        (None, Device.CUDA, None, None),
    ],
)
def test_eager(
    wanted: bool | None, device: Device, compiler: str | None, expected: bool | None
) -> None:
    """Without a compiler a CPU engine has to be eager, unless the profile insists."""
    assert eager(wanted, device, compiler=compiler) is expected


@pytest.mark.parametrize(
    ("wanted", "config", "expected"),
    [
        ("auto", {"dtype": "bfloat16"}, "bfloat16"),
        ("auto", {"torch_dtype": "torch.float16"}, "float16"),
        ("auto", {"dtype": "float32"}, "bfloat16"),
        ("auto", {}, "bfloat16"),
        ("float32", {"dtype": "bfloat16"}, "float32"),
    ],
)
def test_dtype(wanted: str, config: dict[str, str], expected: str) -> None:
    """Decided once for both ends of a handoff: the config's own 16-bit type, else bfloat16."""
    assert engine_dtype(wanted, config) == expected


@pytest.mark.parametrize(
    ("transport", "device", "expected"),
    [
        ("auto", Device.CPU, "cma,posix,tcp,self"),
        ("auto", Device.CUDA, None),
        ("tcp", Device.CPU, "tcp,self"),
        ("tcp", Device.CUDA, "tcp,cuda_copy,self"),
        ("rdma", Device.CUDA, "rc,cuda_copy,cuda_ipc,self"),
    ],
)
def test_transports(transport: str, device: Device, expected: str | None) -> None:
    """A named transport leaves UCX no other; ``auto`` on GPU leaves UCX the choice."""
    assert ucx_transports(TransferSpec(transport=Transport(transport)), device) == expected
