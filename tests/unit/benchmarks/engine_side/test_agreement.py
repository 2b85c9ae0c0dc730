"""Whether client and servers tell the same story."""

from __future__ import annotations

import pytest

from benchmarks.engine_side import agreements
from benchmarks.records import RequestRecord, Scrape
from tests.unit.benchmarks.engine_side.looks import (
    before_after,
    engine,
    failed,
    records,
    router,
    run,
    together,
)


def _disaggregated(count: float = 10) -> list[Scrape]:
    """Every request handed over: prefill counts the prompt and one token of its own."""
    return together(
        before_after("router", "router", router(count, ttft_s=0.095)),
        before_after("p", "prefill", engine(count, prompt=100, answer=1, ttft_s=0.06)),
        before_after("d", "decode", engine(count, prompt=100, answer=10, ttft_s=0.02)),
    )


def test_a_sound_run_agrees_in_everything() -> None:
    """A handed-over request is counted on both sides of the handoff and once for the client."""
    rows = agreements("pd", [run(records(10, path="disaggregated"), _disaggregated())])
    assert [(row.what, row.agrees) for row in rows] == [
        ("completed requests (router)", True),
        ("prompt tokens (engines that answer)", True),
        ("generated tokens (engines that answer)", True),
        ("completed requests (engines that answer)", True),
        ("handed-over requests (prefill engines)", True),
        ("mean TTFT (router)", True),
        ("mean TTFT (engines)", True),
    ]
    by_what = {row.what: row for row in rows}
    assert by_what["prompt tokens (engines that answer)"].client == 1000
    assert by_what["prompt tokens (engines that answer)"].server == 1000
    assert by_what["generated tokens (engines that answer)"].server == 100
    assert by_what["mean TTFT (engines)"].server == pytest.approx(0.08)
    assert {row.arm for row in rows} == {"pd"}


def test_requests_of_somebody_else_are_seen() -> None:
    """Servers that did more than the client asked for disagree in counts and tokens."""
    rows = agreements("pd", [run(records(9, path="disaggregated"), _disaggregated(10))])
    wrong = {row.what.partition(" ")[0] for row in rows if not row.agrees}
    assert wrong == {"completed", "prompt", "generated", "handed-over"}


def test_lost_answers_are_seen() -> None:
    """A client that counts more than the servers finished disagrees, failures or not."""
    client = records(11, path="disaggregated") + failed(3)
    rows = agreements("pd", [run(client, _disaggregated(10))])
    assert not rows[0].agrees


def test_failed_requests_widen_what_is_allowed_and_are_named() -> None:
    """How far a server got with a request that failed for the client cannot be known."""
    client = records(9, path="disaggregated") + failed(1)
    rows = agreements("pd", [run(client, _disaggregated(10))])
    assert all(row.agrees for row in rows)
    assert "1 failed request(s)" in rows[0].note


def test_fallbacks_explain_extra_prefills() -> None:
    """A request whose transfer failed was prefilled by both."""
    client = records(8, path="disaggregated")
    client += records(2, path="local", reason="transfer_failed")
    rows = {row.what: row for row in agreements("pd", [run(client, _disaggregated(10))])}
    handed = rows["handed-over requests (prefill engines)"]
    assert (handed.client, handed.server, handed.agrees) == (8, 10, True)
    assert "2 fell back" in handed.note


@pytest.mark.parametrize(
    ("ttft_s", "router_agrees", "engines_agree"),
    [(0.07, False, False), (0.1, True, True), (0.12, False, True), (0.3, False, False)],
)
def test_the_clients_first_token_is_never_before_the_servers(
    ttft_s: float, router_agrees: bool, engines_agree: bool
) -> None:
    """The client's mean lies between the server's and the server's with its allowance."""
    client: list[RequestRecord] = records(10, path="disaggregated", ttft_s=ttft_s)
    rows = {row.what: row.agrees for row in agreements("pd", [run(client, _disaggregated())])}
    assert rows["mean TTFT (router)"] is router_agrees
    assert rows["mean TTFT (engines)"] is engines_agree


def test_what_a_side_does_not_know_is_left_out() -> None:
    """No router, no usage, no streams: fewer figures, none made up."""
    seen = before_after("s", "standard", engine(5, prompt=100, answer=10))
    client = records(5)
    for record in client:
        record.prompt_tokens = record.output_tokens = record.first_content_s = None
    assert [row.what for row in agreements("s", [run(client, seen)])] == [
        "completed requests (engines that answer)"
    ]
    assert agreements("s", [run(client)]) == []


def test_runs_are_added_up() -> None:
    """Over several runs counts are summed, each from its own first look."""
    once = agreements("pd", [run(records(10, path="disaggregated"), _disaggregated())])
    twice = agreements("pd", [run(records(10, path="disaggregated"), _disaggregated())] * 2)
    assert [row.client for row in twice[:5]] == [2 * row.client for row in once[:5]]
    assert [row.server for row in twice[:5]] == [2 * row.server for row in once[:5]]
    assert twice[5].server == pytest.approx(once[5].server)
    assert all(row.agrees for row in twice)
