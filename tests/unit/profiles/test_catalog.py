"""The catalog: a bad text never replaces a good one, and every mistake says where it stands."""

from __future__ import annotations

import pytest

from baton.errors import ProfileError
from profiles import ServingProfile, builtin_names, with_overrides
from profiles.sources import Bundle, Catalog
from tests.unit.profiles.texts import DISAGGREGATED, STANDARD

A, B = "profiles/a.yaml", "profiles/b.yaml"
BROKEN = STANDARD.replace("mode: standard", "mode: sideways")
CHANGED = DISAGGREGATED.replace("in_flight: 64", "in_flight: 65")


def bundle(
    texts: dict[str, str], active: str = "", problems: dict[str, str] | None = None
) -> Bundle:
    return Bundle(texts, active, "profiles/active" if active else "", problems or {})


def test_what_changed() -> None:
    """Is told by name, sorted; what is the same is not."""
    catalog = Catalog()
    change = catalog.take(bundle({A: DISAGGREGATED, B: STANDARD}))
    assert (change.added, change.changed, change.removed) == (("example", "plain"), (), ())
    assert not change.problems
    change = catalog.take(bundle({A: CHANGED, B: STANDARD}))
    assert (change.added, change.changed, change.removed) == ((), ("example",), ())
    change = catalog.take(bundle({A: CHANGED}))
    assert (change.added, change.changed, change.removed) == ((), (), ("plain",))
    assert set(catalog.profiles()) == {"example"}
    change = catalog.take(bundle({A: CHANGED}))
    assert (change.added, change.changed, change.removed) == ((), (), ())
    # A file that was moved is the same profile.
    change = catalog.take(bundle({B: CHANGED}))
    assert (change.added, change.changed, change.removed) == ((), (), ())


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (BROKEN, ":6: spec.mode: ", "sideways"),
        ("kind: [", ":", "not valid YAML"),
        ("", ":1: ", "is empty"),
        (STANDARD + "  nonsense: 1\n", ":12: spec.nonsense: ", ""),
    ],
)
def test_a_bad_text(text: str, line: str, reason: str) -> None:
    """Leaves the good one, and says file, line, path and reason; mended, it counts again."""
    catalog = Catalog()
    catalog.take(bundle({A: DISAGGREGATED, B: STANDARD}))
    good = catalog.get("plain")
    change = catalog.take(bundle({A: DISAGGREGATED, B: text}))
    assert (change.added, change.changed, change.removed) == ((), (), ())
    assert catalog.get("plain") is good
    assert change.problems == catalog.problems
    assert any(B + line in problem and reason in problem for problem in change.problems)
    change = catalog.take(bundle({A: DISAGGREGATED, B: STANDARD}))
    assert not change.problems
    assert catalog.get("plain") == good


def test_a_text_that_cannot_be_read() -> None:
    """Is as bad as one that is wrong: the last good one stays."""
    catalog = Catalog()
    catalog.take(bundle({A: DISAGGREGATED}))
    change = catalog.take(bundle({}, problems={A: f"{A}:1: is not UTF-8 text"}))
    assert not change.removed
    assert change.problems == (f"{A}:1: is not UTF-8 text",)
    assert catalog.get("example") is not None
    assert catalog.take(bundle({})).removed == ("example",)


def test_bad_from_the_start() -> None:
    """There is nothing to fall back to."""
    catalog = Catalog()
    change = catalog.take(bundle({B: BROKEN}, "plain"))
    assert not change.added
    assert catalog.get("plain") is None
    assert catalog.wanted is None
    assert len(change.problems) == 2


def test_two_of_a_name() -> None:
    """The first by origin counts, and the other one's problem names both."""
    catalog = Catalog()
    change = catalog.take(bundle({B: CHANGED, A: DISAGGREGATED}, "example"))
    assert change.added == ("example",)
    (problem,) = change.problems
    assert problem.startswith(f"{B}: metadata.name: ")
    assert A in problem
    assert catalog.wanted is not None
    assert catalog.wanted.spec.limits.in_flight == 64


def test_a_good_text_over_a_held_one() -> None:
    """What a bad text once said does not stand in the way of a good one of that name."""
    catalog = Catalog()
    catalog.take(bundle({A: DISAGGREGATED}))
    change = catalog.take(bundle({A: BROKEN, B: CHANGED}, "example"))
    assert change.changed == ("example",)
    assert catalog.wanted is not None
    assert catalog.wanted.spec.limits.in_flight == 65
    assert all(problem.startswith(A) for problem in change.problems)


def test_wanted() -> None:
    """The good profile that ``active`` names now, or none."""
    catalog = Catalog()
    catalog.take(bundle({A: DISAGGREGATED}))
    assert catalog.wanted is None
    catalog.take(bundle({A: DISAGGREGATED}, "example"))
    assert catalog.wanted is catalog.get("example")
    change = catalog.take(bundle({A: "nonsense"}, "example"))
    assert catalog.wanted is None
    assert catalog.get("example") is not None
    assert any(
        problem.startswith('profiles/active: names "example", whose text is refused')
        for problem in change.problems
    )


def test_an_unknown_active() -> None:
    """Is a problem where it stands, with the name that was probably meant."""
    catalog = Catalog()
    change = catalog.take(bundle({A: DISAGGREGATED}, "exmaple"))
    assert change.problems == (
        'profiles/active: there is no good profile called "exmaple"; did you mean example?',
    )
    assert catalog.wanted is None
    change = catalog.take(bundle({A: DISAGGREGATED}, "/etc/passwd"))
    assert change.problems == ('profiles/active: there is no good profile called "/etc/passwd"',)


def test_built_in_profiles() -> None:
    """Are found after the source's, and are no change."""
    name = builtin_names()[0]
    catalog = Catalog()
    change = catalog.take(bundle({}, name))
    assert change.added == ()
    assert catalog.wanted is not None
    assert catalog.wanted.name == name
    assert catalog.get("no-such-profile") is None
    own = STANDARD.replace("name: plain", f"name: {name}")
    catalog.take(bundle({A: own}, name))
    assert catalog.wanted is catalog.profiles()[name]


def test_adapted() -> None:
    """Each profile is; one that does not bear it is refused, with its origin."""
    calls: list[str] = []

    def adapt(profile: ServingProfile) -> ServingProfile:
        calls.append(profile.name)
        if profile.name != "example":
            raise ProfileError(["--threshold has no place in this mode"])
        return with_overrides(profile, threshold_tokens=99)

    catalog = Catalog(adapt)
    texts = {A: DISAGGREGATED, B: STANDARD}
    change = catalog.take(bundle(texts, "example"))
    assert change.added == ("example",)
    assert change.problems == (f"{B}: --threshold has no place in this mode",)
    assert catalog.wanted is not None
    assert catalog.wanted.spec.classify is not None
    assert catalog.wanted.spec.classify.threshold_tokens == 99
    # The same texts are not parsed again.
    catalog.take(bundle(texts, "example"))
    assert calls == ["example", "plain"]
    name = builtin_names()[0]
    assert catalog.get(name) is None
    change = catalog.take(bundle(texts, name))
    assert change.problems[1:] == (
        f'profiles/active: names the built-in profile "{name}", which cannot be used here',
        f"built-in profile {name}: --threshold has no place in this mode",
    )
