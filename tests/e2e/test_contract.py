"""Real vLLM keeps the engine contract that the fake of the router's tests is held to."""

from __future__ import annotations

import pytest

from tests.contracts.engine_contract import (
    PAIR_CHECKS,
    SINGLE_CHECKS,
    EngineAt,
    PairCheck,
    SingleCheck,
)
from tests.e2e.stack import MODEL, Stack

pytestmark = pytest.mark.engine


def engine(stack: Stack, name: str) -> EngineAt:
    """A worker's engine, reached directly."""
    return EngineAt(url=stack.url(name), key=stack.token, model=MODEL)


@pytest.mark.parametrize("check", SINGLE_CHECKS, ids=lambda check: check.__name__)
async def test_one_engine(stack: Stack, check: SingleCheck) -> None:
    """What the router and the worker rely on in any engine."""
    await check(engine(stack, "decode"))


@pytest.mark.parametrize("check", PAIR_CHECKS, ids=lambda check: check.__name__)
async def test_two_engines(stack: Stack, check: PairCheck) -> None:
    """What the router relies on in a handoff."""
    await check(engine(stack, "prefill"), engine(stack, "decode"))
