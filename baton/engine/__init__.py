"""The engine: a vLLM OpenAI server as a supervised child process, on CPU or GPU.

``EngineSpec`` says what to run, ``command`` and ``environment`` turn it into a process, ``Engine``
keeps that process alive and answers how it is. vLLM itself is imported only in the child.
"""

from baton.engine.server import Engine, EngineHealth, remove_stale_run_dirs
from baton.engine.spec import (
    Device,
    EngineSpec,
    GroupRank,
    command,
    detect_device,
    environment,
)

__all__ = [
    "Device",
    "Engine",
    "EngineHealth",
    "EngineSpec",
    "GroupRank",
    "command",
    "detect_device",
    "environment",
    "remove_stale_run_dirs",
]
