"""How many tokens a prompt has, as far as it is known."""

from __future__ import annotations

import msgspec


class TokenBounds(msgspec.Struct, frozen=True):
    """``lower <= tokens of the prompt <= upper``; no upper bound is None."""

    lower: int
    upper: int | None

    @property
    def exact(self) -> bool:
        """Whether the number is known."""
        return self.lower == self.upper

    def decides(self, threshold: int) -> bool:
        """Whether every count within the bounds is on one side: below, or not below."""
        return self.lower >= threshold or (self.upper is not None and self.upper < threshold)

    def within(self, limit: int) -> bool:
        """Whether it is certain that the prompt has at most ``limit`` tokens."""
        return self.upper is not None and self.upper <= limit

    def __str__(self) -> str:
        """For a response header: ``123``, ``45-120``, ``<=120`` or ``>=45``."""
        if self.exact:
            return str(self.lower)
        if self.upper is None:
            return f">={self.lower}"
        return f"{self.lower}-{self.upper}" if self.lower > 1 else f"<={self.upper}"
