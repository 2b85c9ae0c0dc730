"""One prefill worker, one decode worker behind a gate, one router: shared by the tests here.

Engines take half a minute to start on two cores, so tests that only use them share them; a test
that harms one waits until it is back.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import fault_table
from tests.e2e.stack import Stack, open_stack
from tests.fakes.gate import Gate
from training.random_model import make_random_llama


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose output depends on the whole prompt; one token per byte."""
    return make_random_llama(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="session")
def pair(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Gate]]:
    """The shared stack and the gate in front of its decode worker."""
    with open_stack(tmp_path_factory.mktemp("pair"), model) as stack:
        router = stack.start_router()
        stack.start_worker("prefill", registry=router.url)
        with Gate("") as gate:
            decode = stack.start_worker("decode", "--advertise-url", gate.url, registry=router.url)
            gate.target = decode.url
            stack.wait_ready("prefill", "decode")
            yield stack, gate


@pytest.fixture
def stack(pair: tuple[Stack, Gate]) -> Stack:
    """The shared stack, with both workers ready."""
    stack, gate = pair
    gate.before_handoff = None
    stack.wait_ready("prefill", "decode")
    return stack


@pytest.fixture
def gate(pair: tuple[Stack, Gate], stack: Stack) -> Gate:
    """The gate in front of the decode worker."""
    return pair[1]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Shows what clients saw of faults, for people and for the docs."""
    told = fault_table.table()
    if told:
        terminalreporter.section("faults on real engines")
        terminalreporter.write_line(told)
