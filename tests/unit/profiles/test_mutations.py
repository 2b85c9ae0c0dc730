"""Two hundred broken profiles: each is refused, with the field and a line, and nothing else."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from baton.errors import ProfileError
from profiles import builtin_names, parse_profile, resolve_profile
from tests.fakes.broken_profiles import BrokenProfile, broken_profiles, schema_fields
from tests.fakes.broken_rules import RULES

COUNT, SEED = 200, 20261128
BROKEN = broken_profiles(COUNT, SEED)

SECTIONS = {
    "metadata",
    *(f"spec.{name}" for name in ("model", "classify", "transfer", "routing", "flow", "degrade")),
    *(f"spec.{name}" for name in ("deadlines", "slo", "switch", "limits", "routing.scorers")),
    *(f"spec.pools.{role}" for role in ("prefill", "decode", "standard")),
}


def says(broken: BrokenProfile, problem: str) -> bool:
    """Whether a message leads with a line and names the field; a text that is no YAML any more
    has no fields, and the message names the key at which it breaks."""
    match = re.match(r"p\.yaml:[1-9][0-9]*: (.*)", problem)
    if match is None:
        return False
    if match[1].startswith("not valid YAML: "):
        return f' "{broken.path}"' in match[1]
    return match[1].startswith(f"{broken.path}: ")


@pytest.mark.parametrize(
    "broken", BROKEN, ids=[f"{n}-{broken.kind}-{broken.path}" for n, broken in enumerate(BROKEN)]
)
def test_a_broken_profile_is_refused_by_field_and_line(broken: BrokenProfile) -> None:
    """The profile's own error, on one line each, one of which names the field that was broken."""
    with pytest.raises(ProfileError) as caught:
        parse_profile(broken.text, source="p.yaml")
    problems = caught.value.problems
    assert any(says(broken, problem) for problem in problems), "\n".join(problems)
    assert all("\n" not in problem for problem in problems)


def test_they_are_two_hundred_different_ones_of_many_kinds() -> None:
    """The text differs in each, and every kind of mistake is among them."""
    assert len({broken.text for broken in BROKEN}) == COUNT
    kinds = Counter(broken.kind for broken in BROKEN)
    assert len(kinds) > 50
    wanted = (
        *("unknown key", "required key missing", "misspelt choice", "too large", "too small"),
        *("not finite", "too long", "duplicate key", "indented too much", "null"),
    )
    assert not [kind for kind in wanted if not kinds[kind]]


def test_they_hit_every_section_and_nearly_every_field() -> None:
    """Fields are taken in turn, so that none is left out for luck; rules too."""
    paths = {broken.path for broken in BROKEN}
    assert not [at for at in SECTIONS if not any(path.startswith(f"{at}.") for path in paths)]
    rules = {broken.kind for broken in BROKEN if broken.kind.startswith("rule: ")}
    assert rules == {f"rule: {rule.name}" for rule in RULES}
    hit = {re.sub(r"^(spec\.pools)\.\w+", r"\1.<role>", path.partition("[")[0]) for path in paths}
    fields = {".".join(map(str, field.path)) for field in schema_fields()}
    # Of the others it was the key that was broken, which then is another path.
    assert len(fields & hit) > 0.75 * len(fields), sorted(fields - hit)


def test_the_same_seed_makes_the_same_ones() -> None:
    """Another process, such as one with a running router, can be sent the very same."""
    assert broken_profiles(COUNT, SEED) == BROKEN
    assert broken_profiles(COUNT, SEED + 1) != BROKEN


def test_what_they_are_made_from_is_sound() -> None:
    """A mistake is the only thing that is wrong with each."""
    for name in builtin_names():
        assert resolve_profile(name).name == name
