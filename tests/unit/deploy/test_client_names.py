"""Names that a LeaderWorkerSet can have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import OperatorError
from deploy.lws.client import BadName, check_name, check_set_name, fit_name, name_limit

HASH_LABEL = "{name}-{group}-0123456789"
WORKLOAD_LABEL = "leaderworkerset-{name}-{group}-01234"


@pytest.mark.parametrize(
    ("kueue", "replicas", "size", "limit"),
    [
        (False, None, None, 51),
        (True, None, None, 39),
        (False, 10, 1, 51),
        (False, 10, 2, 50),
        (False, 11, 2, 49),
        (False, 1000, 8, 48),
        (False, 0, 2, 50),
        (True, 10, 2, 39),
        (True, 11, 1, 38),
    ],
)
def test_limits(kueue: bool, replicas: int | None, size: int | None, limit: int) -> None:
    """51 for LWS and 39 for Kueue, less what the group's index and the workers' hash need."""
    assert name_limit(kueue=kueue, replicas=replicas, size=size) == limit
    name = "a" * limit
    assert check_name(name, kueue=kueue, replicas=replicas, size=size) == name
    with pytest.raises(BadName, match=f"may have {limit}: "):
        check_name(name + "a", kueue=kueue, replicas=replicas, size=size)


@given(replicas=st.integers(1, 100_000), kueue=st.booleans())
def test_labels_of_the_last_group(replicas: int, kueue: bool) -> None:
    """What is appended to the longest name for the last group fills a label, or falls short of it
    by what keeps the name within 51."""
    name = "a" * name_limit(kueue=kueue, replicas=replicas, size=2)
    label = (WORKLOAD_LABEL if kueue else HASH_LABEL).format(name=name, group=replicas - 1)
    assert len(label) == 63


@pytest.mark.parametrize("name", ["", "1a", "-a", "a-", "A", "a.b", "a_b", "ä"])
def test_no_dns_label(name: str) -> None:
    """DNS-1035, as LWS makes a Service of the name."""
    with pytest.raises(BadName, match="RFC 1035"):
        check_name(name)
    assert issubclass(BadName, OperatorError)


@pytest.mark.parametrize(
    ("name", "slices", "replicas", "good"),
    [
        ("d" * 31, 1, 1, True),
        ("d" * 32, 1, 1, False),
        ("d" * 31, 11, 1, False),
        ("d" * 30, 11, 1, True),
        ("d" * 31, 1, 11, False),
    ],
)
def test_disaggregated_sets(name: str, slices: int, replicas: int, good: bool) -> None:
    """Name and role's name share 38 characters, less the digits of slices and groups."""
    roles = {"decode": 1, "prefill": replicas}
    if good:
        assert check_set_name(name, roles, slices=slices) == name
        child = f"{name}-{slices - 1}-01234567-prefill"
        assert len(HASH_LABEL.format(name=child, group=replicas - 1)) <= 63
    else:
        with pytest.raises(BadName, match="its role's name prefill"):
            check_set_name(name, roles, slices=slices)


def test_disaggregated_sets_and_kueue() -> None:
    """27 characters are left under Kueue."""
    roles = {"decode": 1}
    assert check_set_name("d" * 21, roles, kueue=True)
    with pytest.raises(BadName, match="may have 27: "):
        check_set_name("d" * 22, roles, kueue=True)


STEMS = st.from_regex(r"[a-z]([-a-z0-9]{0,80}[a-z0-9])?", fullmatch=True)


@given(stem=STEMS, suffix=st.from_regex(r"([a-z0-9]{1,8})?", fullmatch=True), kueue=st.booleans())
def test_fitted_names(stem: str, suffix: str, kueue: bool) -> None:
    """Are good, stay as they are where they fit, and keep their suffix."""
    name = fit_name(stem, suffix, kueue=kueue)
    assert check_name(name, kueue=kueue) == name
    whole = f"{stem}-{suffix}" if suffix else stem
    assert name == whole or len(whole) > name_limit(kueue=kueue)
    assert name.endswith(suffix)
    assert fit_name(stem, suffix, kueue=kueue) == name


def test_fitted_names_differ() -> None:
    """Stems that differ behind the cut make names that differ."""
    first, second = (fit_name("model-" * 10 + end, "decode") for end in ("a", "b"))
    assert first != second
    assert len(first) == len(second) <= 51


def test_suffixes_without_room() -> None:
    """Are refused: a name of a hash alone tells nobody anything."""
    with pytest.raises(BadName, match="shorten"):
        fit_name("stem" * 20, "s" * 45)
