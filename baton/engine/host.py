"""What an engine process has to ask of the kernel before it computes."""

from __future__ import annotations

import ctypes
import platform

_ARCH_REQ_XCOMP_PERM = 0x1023
_XFEATURE_XTILEDATA = 18
_SYS_ARCH_PRCTL = 158


def allow_amx() -> bool:
    """Asks Linux for permission to use AMX tile registers in this process and its children.

    vLLM's CPU attention uses AMX tiles without asking; a worker whose first work is attention over
    received blocks then dies with SIGILL, now and then. Harmless where there is no AMX. The
    request is ``arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA)``, from the kernel's
    Documentation/arch/x86/xstate.rst.

    Returns:
        Whether the kernel granted it.
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0)
