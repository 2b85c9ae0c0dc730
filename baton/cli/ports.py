"""Which ports the processes of ``baton up`` listen on.

A port that somebody asked for is taken or refused, never replaced; a default one moves up to the
next that is free, and the move is told. Nothing is reserved: whoever binds a port later reports
that it went to somebody else in between.
"""

from __future__ import annotations

from collections.abc import Callable

from baton.errors import SettingsError
from baton.settings import free_port

_TRIES = 200
_HIGHEST = 65_535

IsFree = Callable[[str, int], bool]


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    try:
        return free_port(host, port, tries=1) == port
    except OSError:
        return False


def check_host(host: str) -> None:
    """Finds out whether anything can listen on the host's address at all.

    Raises:
        SettingsError: it is not an IPv4 address of this machine, nor a name of one.
    """
    if not is_free(host, 0):
        raise SettingsError(
            f"cannot listen on {host!r}: it is no IPv4 address of this machine; use 127.0.0.1 "
            "(this machine only), 0.0.0.0 (every network it is in) or an address of its own"
        )


class PortPicker:
    """Hands out free ports, each at most once.

    Args:
        probe: tells whether a port of a host is free.

    Attributes:
        moves: one sentence for each default port that was taken.
    """

    def __init__(self, probe: IsFree = is_free) -> None:
        self.moves: list[str] = []
        self._probe = probe
        self._given: set[int] = set()

    def take(
        self, what: str, host: str, wanted: int, *, flag: str, fixed: bool, width: int = 1
    ) -> int:
        """The first of ``width`` consecutive free ports at or above ``wanted``.

        Args:
            what: who will listen, for messages.
            host: the address it will listen on.
            wanted: where to look first.
            flag: the option that sets the port, for messages.
            fixed: somebody asked for exactly this port.
            width: how many ports it needs.

        Raises:
            SettingsError: the port is fixed and taken, or no port is free.
        """
        if fixed:
            taken = self._first_taken(host, wanted, width)
            if taken is not None:
                raise SettingsError(
                    f"port {taken} of {host}, for {what}, is taken: stop what listens there, "
                    f"choose another with {flag}, or leave {flag} out to get a free one"
                )
            port = wanted
        else:
            port = self._search(what, host, wanted, width)
            if port != wanted:
                self.moves.append(f"port {wanted} is taken, so {what} uses {port}")
        self._given.update(range(port, port + width))
        return port

    def _search(self, what: str, host: str, wanted: int, width: int) -> int:
        port = wanted
        for _ in range(_TRIES):
            taken = self._first_taken(host, port, width)
            if taken is None:
                return port
            port = taken + 1
        raise SettingsError(f"no free port of {host} for {what} from {wanted} to {port - 1}")

    def _first_taken(self, host: str, port: int, width: int) -> int | None:
        for candidate in range(port, port + width):
            if candidate > _HIGHEST or candidate in self._given or not self._probe(host, candidate):
                return candidate
        return None
