"""Whether workers can serve a profile: what can never work, what is still missing, what to know."""

from __future__ import annotations

from typing import Any

import pytest

from baton.types import KvGeometry, Limits, Role, WorkerId, WorkerRecord, WorkerState
from profiles import ServingProfile
from profiles.switching import Fit, fit, missing, notes
from tests.fakes.worker_records import worker_record
from tests.unit.profiles.switching.states import PLAIN, SPLIT, parse
from tests.unit.profiles.texts import DISAGGREGATED, STANDARD, changed

PREFILL, DECODE, STANDARD_ROLE = Role.PREFILL, Role.DECODE, Role.STANDARD
RDMA = parse(changed(DISAGGREGATED, ("block_size: 64", "transport: rdma")))
EXACT = parse(changed(STANDARD, ("  pools:", "  routing: {prefix: exact}\n  pools:")))


def worker(
    name: str,
    role: Role = DECODE,
    *,
    block_size: int = 64,
    length: int = 8192,
    **changes: Any,
) -> WorkerRecord:
    geometry = KvGeometry(
        layers=2,
        kv_heads=2,
        head_size=16,
        dtype="float32",
        block_size=block_size,
        bytes_per_token=9,
    )
    fields = {"model": "demo", "geometry": geometry, "limits": Limits(length, 8)} | changes
    return worker_record(name, role=role, **fields)


def ready(record: WorkerRecord) -> bool:
    return record.state is WorkerState.READY


PAIR = (worker("p0", PREFILL), worker("d0"))


@pytest.mark.parametrize(
    ("profile", "workers"),
    [
        (SPLIT, ()),
        (SPLIT, PAIR),
        (SPLIT, (*PAIR, worker("x", model="other", block_size=16))),  # none of its business
        (PLAIN, PAIR),  # the standard pool takes them
        (PLAIN, (worker("s0", STANDARD_ROLE, transport="tcp"),)),
        (RDMA, [worker("p0", PREFILL, transport="rdma"), worker("d0", transport="rdma")]),
        (EXACT, (worker("s0", STANDARD_ROLE, kv_events_url="ipc:///x"),)),
    ],
)
def test_it_fits(profile: ServingProfile, workers: tuple[WorkerRecord, ...]) -> None:
    """Nothing to say."""
    assert fit(profile, workers) == Fit((), ())


def test_another_model() -> None:
    """No worker serves it; the sentence names what is served."""
    workers = [worker("a", model="m1"), worker("b", model="m2"), worker("c", model="m1")]
    assert fit(SPLIT, workers).problems == (
        "spec.model: no registered worker serves demo; served are: m1, m2",
    )


@pytest.mark.parametrize(
    ("profile", "changes", "sentence"),
    [
        (
            SPLIT,
            {"block_size": 32},
            "spec.transfer.block_size: the profile says 64, which takes a restart of workers of "
            "pool decode: d0 has 32",
        ),
        (
            SPLIT,
            {"length": 4096},
            "spec.model.max_model_len: the profile says 8192, which takes a restart of workers of "
            "pool decode: d0 has 4096",
        ),
        (
            RDMA,
            {"transport": "tcp"},
            "spec.transfer.transport: the profile says rdma, which takes a restart of workers of "
            "pool decode: d0 has tcp",
        ),
        (
            RDMA,
            {"transport": ""},
            "spec.transfer.transport: the profile says rdma, which takes a restart of workers of "
            "pool decode: d0 has whatever it finds",
        ),
    ],
)
def test_what_takes_a_restart(
    profile: ServingProfile, changes: dict[str, Any], sentence: str
) -> None:
    """A problem where all workers of a pool are unfit, a note beside one that fits."""
    prefill = worker("p0", PREFILL, transport="rdma")
    unfit, sound = worker("d0", **changes), worker("d1", transport="rdma")
    assert fit(profile, [prefill, unfit]) == Fit((sentence,), ())
    assert fit(profile, [prefill, unfit, sound]) == Fit((), (sentence,))


def test_without_kv_events_prefixes_are_not_exact() -> None:
    """A note: such a worker serves."""
    workers = [worker("s0", STANDARD_ROLE), worker("s1", STANDARD_ROLE, kv_events_url="ipc:///x")]
    assert fit(EXACT, workers) == Fit(
        (),
        ("spec.routing.prefix: exact, but some workers of pool standard publish no KV events: s0",),
    )


def test_what_is_missing() -> None:
    """Pool by pool, with who is registered and how far that is."""
    assert missing(SPLIT, (), ready) == (
        "spec.pools.prefill: no worker is registered",
        "spec.pools.decode: no worker is registered",
    )
    workers = [
        worker("p0", PREFILL),
        worker("d0", state=WorkerState.STARTING),
        worker("d1", state=WorkerState.DRAINING),
        worker("d2", model="other"),
    ]
    assert missing(SPLIT, workers, ready) == (
        "spec.pools.decode: no worker is ready (2 registered: d0 starting, d1 draining)",
    )
    assert missing(SPLIT, PAIR, ready) == ()


def test_a_ready_worker_may_be_unusable() -> None:
    """A cordon or an open breaker, say; the sentence does not call it ready."""
    assert missing(PLAIN, [worker("s0", STANDARD_ROLE)], lambda _: False) == (
        "spec.pools.standard: no worker is ready (1 registered: s0 not usable)",
    )


def test_long_lists_are_cut() -> None:
    """Five are named."""
    workers = [worker(f"s{n}", STANDARD_ROLE, state=WorkerState.WARMING) for n in range(8)]
    (sentence,) = missing(PLAIN, workers, ready)
    assert sentence.endswith("s4 warming and 3 more)")


def test_roles_that_an_operator_has_given() -> None:
    """They count in place of the home roles, in all three questions."""
    both = [worker("a"), worker("b", block_size=32)]
    roles = {WorkerId("b"): PREFILL}
    assert missing(SPLIT, both, ready) == ("spec.pools.prefill: no worker is registered",)
    assert missing(SPLIT, both, ready, roles) == ()
    assert len(fit(SPLIT, both).notes) == 1
    assert len(fit(SPLIT, both, roles).problems) == 1
    assert notes(SPLIT, both, ready, roles) == (
        "spec.pools.prefill.replicas: 1 of 2 workers are ready",
    )


def test_pairs_have_to_be_checked() -> None:
    """One is enough; asked only where profile and router check pairs, and both pools are there."""
    sentence = "spec.transfer.warm_pairs: no pair of prefill and decode workers is checked yet"
    assert missing(SPLIT, PAIR, ready, pair_ok=lambda p, d: False) == (sentence,)
    more = (*PAIR, worker("d1"))
    assert missing(SPLIT, more, ready, pair_ok=lambda p, d: (p, d) == ("p0", "d1")) == ()
    cold = parse(changed(DISAGGREGATED, ("block_size: 64", "warm_pairs: false")))
    assert missing(cold, PAIR, ready, pair_ok=lambda p, d: False) == ()
    assert missing(PLAIN, PAIR, ready, pair_ok=lambda p, d: False) == ()
    assert len(missing(SPLIT, PAIR[:1], ready, pair_ok=lambda p, d: False)) == 1


def test_fewer_than_replicas_is_a_note() -> None:
    """The profile asks for two prefill workers and one decode worker."""
    assert notes(SPLIT, PAIR, ready) == ("spec.pools.prefill.replicas: 1 of 2 workers are ready",)
    assert notes(SPLIT, (*PAIR, worker("p1", PREFILL)), ready) == ()
