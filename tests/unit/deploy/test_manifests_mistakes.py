"""The validator of manifests can fail: one mistake of each kind is refused, by field and reason."""

from __future__ import annotations

import copy

import pytest

from tests.manifests import check
from tests.manifests.examples import Mistake, broken, sound
from tests.manifests.mistakes import ALL
from tests.manifests.needs import needs_crds

pytestmark = needs_crds


def test_sound_objects_pass() -> None:
    """Nothing is found in a set without mistakes, of all kinds that are checked."""
    assert [str(problem) for problem in check(sound())] == []


@pytest.mark.parametrize("mistake", ALL, ids=[f"{one.object}-{one.at}"[-90:] for one in ALL])
def test_a_mistake_is_refused_by_object_field_and_reason(mistake: Mistake) -> None:
    """The problem names what was changed, or what can no longer be found because of it."""
    problems = check(broken(mistake))
    where, path = mistake.where or mistake.object, mistake.path or mistake.at
    assert any(
        (one.object, one.path) == (where, path) and mistake.says in one.reason for one in problems
    ), [str(one) for one in problems]


def test_the_same_object_twice_is_refused() -> None:
    """Of two objects with one name, the second would replace the first."""
    objects = sound()
    again = copy.deepcopy(next(one for one in objects if one["kind"] == "Service"))
    (problem,) = check([*objects, again])
    assert str(problem) == "Service/web: metadata.name: is the name of two objects of this kind"


def test_two_budgets_for_the_same_pods_are_refused() -> None:
    """The eviction API gives up on a pod with two budgets."""
    objects = sound()
    again = copy.deepcopy(next(one for one in objects if one["kind"] == "PodDisruptionBudget"))
    again["metadata"]["name"] = "again"
    assert {one.object for one in check([*objects, again])} == {
        "PodDisruptionBudget/web",
        "PodDisruptionBudget/again",
    }


def test_what_is_made_by_hand_is_listed() -> None:
    """A reference to nothing is a mistake unless somebody says that it is there."""
    problems = check(sound(), by_hand=())
    assert {one.reason for one in problems} == {
        "there is no Secret 'tokens'",
        "there is no Service 'shop-epp'",
    }


def test_values_that_are_no_json_are_refused() -> None:
    """Such as those that a YAML writer would make tags of."""
    objects = sound()
    objects[0]["metadata"]["labels"]["when"] = {1, 2}
    assert "is not plain JSON" in check(objects)[0].reason
