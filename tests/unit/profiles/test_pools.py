"""Pools: who serves in which role under a profile, groups of devices, and what does not fit."""

from __future__ import annotations

import pytest

from baton.errors import ProfileError
from baton.types import Role
from profiles import PoolSpec, ServingProfile, parse_profile, profile_schema
from profiles.worker_plan import kv_layout
from tests.unit.profiles.texts import DISAGGREGATED, STANDARD, changed

P, D, S = Role.PREFILL, Role.DECODE, Role.STANDARD

PREFILL = "      replicas: 2\n"
DECODE = "      max_num_seqs: 16\n"
PLAIN = "      accelerator: cpu\n"


def parse(text: str) -> ServingProfile:
    return parse_profile(text, source="p.yaml")


def problems_of(text: str) -> list[str]:
    with pytest.raises(ProfileError) as caught:
        parse(text)
    return list(caught.value.problems)


def roles(text: str) -> list[Role | None]:
    """What workers started as prefill, decode and standard are used for."""
    pools = parse(text).spec.pools
    return [pools.role_of(home) for home in (P, D, S)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (DISAGGREGATED, [P, D, D]),
        (STANDARD, [S, S, S]),
        (changed(DISAGGREGATED, (DECODE, DECODE + "      takes: []\n")), [P, D, None]),
        (changed(STANDARD, (PLAIN, PLAIN + "      takes: []\n")), [None, None, S]),
        (changed(STANDARD, (PLAIN, PLAIN + "      takes: [decode]\n")), [None, S, S]),
        (
            changed(
                DISAGGREGATED,
                (PREFILL, PREFILL + "      takes: [standard]\n"),
                (DECODE, DECODE + "      takes: []\n"),
            ),
            [P, D, P],
        ),
    ],
    ids=["disaggregated", "standard", "decode none", "standard none", "standard one", "prefill"],
)
def test_who_serves_as_what(text: str, expected: list[Role | None]) -> None:
    """A worker keeps its own pool where the profile has it; otherwise the pool that takes it."""
    assert roles(text) == expected


def test_a_worker_is_not_needed_twice() -> None:
    """Where both pools would have a standard worker, one of them by default, prefill comes first:
    nobody is in two pools."""
    text = changed(DISAGGREGATED, (PREFILL, PREFILL + "      takes: [standard]\n"))
    assert roles(text) == [P, D, P]


def test_null_is_the_default_and_an_empty_list_is_none() -> None:
    """The two mean different things, and so have different versions."""
    null = changed(STANDARD, (PLAIN, PLAIN + "      takes: null\n"))
    empty = changed(STANDARD, (PLAIN, PLAIN + "      takes: []\n"))
    assert parse(null).version == parse(STANDARD).version
    assert parse(empty).version != parse(STANDARD).version


@pytest.mark.parametrize(
    ("where", "takes", "expected"),
    [
        (
            DECODE,
            "[decode]",
            "p.yaml:20: spec.pools.decode.takes[0]: names the pool itself, whose workers it has "
            "anyway (decode)",
        ),
        (
            DECODE,
            "[standard, prefill]",
            "p.yaml:20: spec.pools.decode.takes[1]: prefill is a pool of this profile, which keeps "
            "its workers",
        ),
        (
            DECODE,
            "[standard, standard]",
            "p.yaml:20: spec.pools.decode.takes[1]: standard is taken by pool decode already",
        ),
        (DECODE, "[standart]", "did you mean standard?"),
        (DECODE, "standard", "spec.pools.decode.takes: "),
        (DECODE, "[prefill, decode, standard]", "must have at most 2 entries"),
    ],
)
def test_what_a_pool_cannot_take(where: str, takes: str, expected: str) -> None:
    """Its own workers, those of a pool beside it, anyone twice, nobody known."""
    problems = problems_of(changed(DISAGGREGATED, (where, f"{where}      takes: {takes}\n")))
    assert any(expected in problem for problem in problems), problems


def test_two_pools_cannot_take_the_same() -> None:
    """A worker serves in one role at a time."""
    text = changed(
        DISAGGREGATED,
        (PREFILL, PREFILL + "      takes: [standard]\n"),
        (DECODE, DECODE + "      takes: [standard]\n"),
    )
    (problem,) = problems_of(text)
    assert problem == (
        "p.yaml:21: spec.pools.decode.takes[0]: standard is taken by pool prefill already"
    )


def test_rules_of_pools_hold_beside_other_mistakes() -> None:
    """A broken section elsewhere does not hide what pools and the switch do not fit."""
    text = changed(
        DISAGGREGATED,
        ("in_flight: 64", "in_flight: 0"),
        (DECODE, DECODE + "      takes: [prefill]\n      nodes: 3\n"),
        ("  limits:", "  switch: {hold_s: 60, canary_s: 30}\n  limits:"),
    )
    text = "\n".join(problems_of(text))
    assert "spec.limits.in_flight: must be at least 1" in text
    assert "spec.pools.decode.takes[0]: prefill is a pool of this profile" in text
    assert "spec.pools.decode.nodes: must divide the worker's 1 devices" in text
    assert "spec.switch.canary_s: must not be less than switch.hold_s (60) (got 30)" in text


@pytest.mark.parametrize(
    ("switch", "sound"),
    [
        ("{}", True),
        ("{hold_s: 300, canary_s: 300}", True),
        ("{hold_s: 301}", False),
        ("{canary_s: 29}", False),
        ("{canary_s: 29, canary_share: 0}", True),
        ("{canary_share: 1}", True),
        ("{canary_share: 1.1}", False),
        ("{min_requests: 0}", False),
        ("{flip_s: 0, hold_s: 0}", True),
        ("{prepare_s: 0}", False),
        ("{shadow: null}", False),
    ],
)
def test_switch_settings(switch: str, sound: bool) -> None:
    """A canary is not judged before it may end; without one its times mean nothing."""
    text = changed(STANDARD, ("  pools:", f"  switch: {switch}\n  pools:"))
    if sound:
        assert parse(text).spec.switch is not None
    else:
        (problem,) = problems_of(text)
        assert problem.startswith("p.yaml:9: spec.switch.")


def test_the_devices_of_a_worker() -> None:
    """Stages times the devices that share each layer, over all its nodes."""
    pool = PoolSpec(accelerator="nvidia-l4", tensor_parallel=8, pipeline_parallel=2, nodes=2)
    assert pool.devices == 16
    assert PoolSpec(accelerator="nvidia-l4").devices == 1


@pytest.mark.parametrize(
    ("fields", "sound"),
    [
        ("tensor_parallel: 8\n      nodes: 2", True),
        ("tensor_parallel: 4\n      pipeline_parallel: 3\n      nodes: 6", True),
        ("tensor_parallel: 8\n      nodes: 3", False),
        ("tensor_parallel: 2\n      nodes: 4", False),
        ("nodes: 2", False),
    ],
)
def test_each_node_has_as_many_devices(fields: str, sound: bool) -> None:
    """A group is made of equal machines."""
    text = changed(STANDARD, (PLAIN, f"{PLAIN}      {fields}\n"))
    if sound:
        assert parse(text).spec.pools.by_role[S].nodes > 1
    else:
        (problem,) = problems_of(text)
        assert "spec.pools.standard.nodes: must divide the worker's " in problem


@pytest.mark.parametrize("where", [PREFILL, DECODE])
def test_no_stages_where_a_cache_is_handed_over(where: str) -> None:
    """The connector would read one stage's layers and leave out the rest."""
    (problem,) = problems_of(
        changed(DISAGGREGATED, (where, where + "      pipeline_parallel: 2\n"))
    )
    assert "pipeline_parallel: must be 1 where a KV cache is handed over" in problem


def test_workers_of_several_stages_are_in_no_pair() -> None:
    """Their engines have no connector; another layout keeps routers from pairing them."""
    plain = PoolSpec(accelerator="nvidia-l4")
    assert kv_layout(plain) == "HND"
    assert kv_layout(plain.model_copy(update={"pipeline_parallel": 2})) != "HND"


UNITS = {
    "_s": "second",
    "_us": "microsecond",
    "_tokens": "token",
    "_mib": "MiB",
    "_mib_per_s": "MiB/s",
    "_bytes": "byte",
    "_share": "0 to 1",
    "_per_hour": "per hour",
}


def test_every_field_with_a_unit_says_it() -> None:
    """Units are last in names, and spelt out in the field's own text."""
    checked = 0
    for name, section in profile_schema()["$defs"].items():
        for field, definition in section.get("properties", {}).items():
            ends = max((end for end in UNITS if field.endswith(end)), key=len, default=None)
            if ends is not None:
                assert UNITS[ends] in definition["description"], f"{name}.{field}"
                checked += 1
    assert checked > 25


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("classify: {threshold_tokens: 9, decider: cost, hysteresis: 1}", "must be less than 1"),
        ("classify: {threshold_tokens: 9, max_prefill_queue: 0}", "must be at least 1"),
    ],
)
def test_what_a_router_could_not_do_is_refused_here(text: str, says: str) -> None:
    """Ranges are those of the router's own rules: no profile gets as far as failing there."""
    whole = changed(DISAGGREGATED, ("  classify:\n    threshold_tokens: 256", f"  {text}"))
    (problem,) = problems_of(whole)
    assert says in problem


def test_degradation_names_each_step_once() -> None:
    """A step that has failed once is not tried a second time under the same name."""
    text = changed(DISAGGREGATED, ("  limits:", "  degrade: {steps: [local, local]}\n  limits:"))
    (problem,) = problems_of(text)
    assert problem.endswith("spec.degrade.steps: names a step twice (got local, local)")
