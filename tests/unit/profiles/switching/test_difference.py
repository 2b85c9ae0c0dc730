"""What two profiles decide differently."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from profiles import ServingProfile, builtin_names, resolve_profile
from profiles.switching import ABSENT, Change, difference
from tests.unit.profiles.switching.states import EDITED, PLAIN, SPLIT, parse
from tests.unit.profiles.texts import DISAGGREGATED, STANDARD, changed


def by_path(a: ServingProfile, b: ServingProfile) -> dict[str, Change]:
    return {change.path: change for change in difference(a, b)}


def test_one_field() -> None:
    """Its path and both values, as data and as text."""
    assert difference(SPLIT, EDITED) == (
        Change("spec.classify.threshold_tokens", "256", "512", 256, 512),
    )


def test_spelling_is_no_difference() -> None:
    """Defaults written out decide nothing else."""
    written = parse(changed(DISAGGREGATED, ("  limits:", "  degrade: {attempts: 3}\n  limits:")))
    assert difference(SPLIT, written) == ()


def test_sections_that_one_side_lacks() -> None:
    """Each of their fields, absent on that side; in JSON it is left out there."""
    changes = by_path(SPLIT, PLAIN)
    gone = changes["spec.pools.decode.accelerator"]
    assert (gone.old, gone.old_text) == ("nvidia-l4", '"nvidia-l4"')
    assert (gone.new, gone.new_text) == (msgspec.UNSET, ABSENT)
    assert "new" not in msgspec.to_builtins(gone)
    assert changes["spec.pools.standard.accelerator"].old_text == ABSENT
    assert changes["spec.mode"].new == "standard"
    assert "spec.pools.decode" not in changes
    assert list(changes) == sorted(changes)


def test_metadata() -> None:
    """The name and what is said of it, though the version does not depend on them."""
    renamed = parse(changed(STANDARD, ("name: plain", "name: other\n  description: New.")))
    assert renamed.version == PLAIN.version
    assert list(by_path(PLAIN, renamed)) == ["metadata.description", "metadata.name"]


def test_values_that_only_look_alike() -> None:
    """To an engine's flag, true is not 1; a null that becomes a number is shown as null; lists are
    shown whole."""

    def with_pool(values: str) -> ServingProfile:
        line = "accelerator: cpu"
        return parse(changed(STANDARD, (line, f"{line}\n      {values}")))

    flags = by_path(with_pool("engine_args: {seed: true}"), with_pool("engine_args: {seed: 1}"))
    assert list(flags) == ["spec.pools.standard.engine_args.seed"]
    changes = by_path(PLAIN, with_pool("max_num_seqs: 4\n      takes: [decode]"))
    seqs, takes = (changes[f"spec.pools.standard.{name}"] for name in ("max_num_seqs", "takes"))
    assert (seqs.old_text, seqs.new_text) == ("null", "4")
    assert takes.new_text == '["decode"]'


@pytest.mark.parametrize(("a", "b"), [*itertools.combinations(builtin_names(), 2)])
def test_difference_agrees_with_version(a: str, b: str) -> None:
    """Something under ``spec`` exactly where versions differ, and the same paths the other way."""
    one, other = resolve_profile(a), resolve_profile(b)
    spec = [path for path in by_path(one, other) if path.startswith("spec.")]
    assert bool(spec) is (one.version != other.version)
    assert by_path(one, other).keys() == by_path(other, one).keys()
    assert difference(one, one) == ()
