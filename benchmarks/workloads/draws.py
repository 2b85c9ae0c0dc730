"""Numbers drawn by counting: the n-th draw for a purpose is a hash of seed, purpose and n.

Nothing has a state, so nobody's draws depend on how many others drew before: adding a class to a
workload leaves the other classes alone, other lengths leave the arrivals alone, and the request k
of a closed loop is the same whoever asks for it, in whatever order.
"""

from __future__ import annotations

import hashlib
import random

_SEPARATOR = b"\0"
_SCALE = 2.0**-53


class Draws:
    """Draws for one purpose; ``names`` say which, such as a class and what is drawn for it."""

    def __init__(self, seed: int, *names: str | int) -> None:
        self._names = (str(seed), *(str(name) for name in names))
        encoded = [name.encode("utf-8") for name in self._names]
        # Lengths in front, so that no two rows of names are the same bytes.
        lengths = _SEPARATOR.join(b"%d" % len(name) for name in encoded)
        self._hash = hashlib.blake2b(lengths + _SEPARATOR + b"".join(encoded), digest_size=8)

    def at(self, *counts: int) -> float:
        """A number in [0, 1), with 53 random bits; the same for equal counts."""
        state = self._hash.copy()
        state.update(b"|%d" * len(counts) % counts)
        return (int.from_bytes(state.digest()) >> 11) * _SCALE

    def generator(self) -> random.Random:
        """A source for draws that need more than one number; every call gives the same one."""
        state = self._hash.copy()
        state.update(b"generator")
        return random.Random(int.from_bytes(state.digest()))  # noqa: S311 - no secrets
