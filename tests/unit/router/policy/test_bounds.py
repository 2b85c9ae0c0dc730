"""What is known of a prompt's length."""

from __future__ import annotations

import pytest

from router.policy import TokenBounds


@pytest.mark.parametrize(
    ("lower", "upper", "text", "exact"),
    [
        (5, 5, "5", True),
        (0, 0, "0", True),
        (2, 9, "2-9", False),
        (1, 9, "<=9", False),
        (45, None, ">=45", False),
    ],
)
def test_bounds_as_text(lower: int, upper: int | None, text: str, exact: bool) -> None:
    """As response headers tell them."""
    bounds = TokenBounds(lower, upper)
    assert str(bounds) == text
    assert bounds.exact is exact


@pytest.mark.parametrize(
    ("bounds", "decides", "within"),
    [
        (TokenBounds(10, 10), True, True),
        (TokenBounds(9, 9), True, True),
        (TokenBounds(11, 11), True, False),
        (TokenBounds(9, 10), False, True),
        (TokenBounds(10, 11), True, False),
        (TokenBounds(1, None), False, False),
        (TokenBounds(10, None), True, False),
    ],
)
def test_bounds_against_a_number(bounds: TokenBounds, decides: bool, within: bool) -> None:
    """Of ten: whether all counts are on one side, and whether all are at most that."""
    assert bounds.decides(10) is decides
    assert bounds.within(10) is within
