"""Names that a LeaderWorkerSet can really have.

The API takes 63 characters, and then pods are refused one by one: what Kubernetes, LWS and Kueue
append to the name ends in labels, which hold 63 characters too. So names are checked here, before
anything is made. The sums behind the limits:

- LWS, 51. A pod's label ``controller-revision-hash`` is ``STATEFULSET-HASH`` with a hash of up to
  10 digits. The leaders' StatefulSet is called like the set, which leaves 52; the workers' are
  ``SET-GROUP``, which leaves 51 less the digits of the group's index. LWS reports 51 as what works
  (its issue 410), which is so where the hash happens to be short: with the number of groups and
  their size at hand, the limit here is the one that always works.
- Kueue, 39. The workload of a group is ``leaderworkerset-SET-GROUP-HASH`` with a hash of 5, and
  stands in a label: 40 less the digits of the group's index. Kueue's gate
  ``WorkloadIdentifierAnnotations`` lifts it (its pull request 10311); it is off by default.
- DisaggregatedSet: its sets are ``NAME-SLICE-REVISION-ROLE`` with a revision of 8, and the limits
  of LWS hold for these (LWS pull request 991).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from deploy.lws.client.errors import BadName

LWS_LIMIT = 51
"""Characters of a LeaderWorkerSet's name, where nothing else is known of it."""

KUEUE_LIMIT = 39
"""The same where Kueue queues it, up to ten groups."""

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
"""With it an object is Kueue's to admit."""

_LABEL = 63
_REVISION_HASH = len("-") + 10
_WORKLOAD = len("leaderworkerset-") + len("-") + len("-") + 5
_CHILD = len("-") + len("-") + 8 + len("-")
_HASH = 6
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def name_limit(*, kueue: bool = False, replicas: int | None = None, size: int | None = None) -> int:
    """The most characters that a LeaderWorkerSet's name may have.

    Args:
        kueue: whether Kueue queues it.
        replicas: the most groups that it will ever have, those of a surge and an autoscaler
            included; None if that is not known, which counts as up to ten.
        size: pods of a group; None if that is not known.
    """
    digits = _digits(replicas)
    limit = LWS_LIMIT
    if size is not None and size > 1:
        limit = min(limit, _LABEL - _REVISION_HASH - len("-") - digits)
    if kueue:
        limit = min(limit, _LABEL - _WORKLOAD - digits)
    return limit


def check_name(
    name: str, *, kueue: bool = False, replicas: int | None = None, size: int | None = None
) -> str:
    """The name, if a LeaderWorkerSet can have it; arguments as for :func:`name_limit`.

    Raises:
        BadName: it cannot.
    """
    _check_form("LeaderWorkerSet", name)
    limit = name_limit(kueue=kueue, replicas=replicas, size=size)
    if len(name) > limit:
        raise BadName(
            f"the LeaderWorkerSet name {name} has {len(name)} characters and may have {limit}: "
            + _reason(kueue, replicas, size)
        )
    return name


def check_set_name(
    name: str, roles: Mapping[str, int], *, slices: int = 1, kueue: bool = False
) -> str:
    """The name, if a DisaggregatedSet with these roles can have it.

    Args:
        name: of the DisaggregatedSet.
        roles: name of each role and the most groups that it will ever have.
        slices: the most slices.
        kueue: whether Kueue queues its LeaderWorkerSets.

    Raises:
        BadName: it cannot.
    """
    _check_form("DisaggregatedSet", name)
    added = _CHILD + _digits(slices)
    for role, replicas in roles.items():
        _check_form("role", role)
        # Whatever the size is: LWS's own check does not look at it either.
        limit = name_limit(kueue=kueue, replicas=replicas, size=2) - added
        if len(name) + len(role) > limit:
            raise BadName(
                f"the DisaggregatedSet name {name} and its role's name {role} have "
                f"{len(name) + len(role)} characters together and may have {limit}: its "
                f"LeaderWorkerSets are called NAME-SLICE-REVISION-ROLE, and for these "
                + _reason(kueue, replicas, 2)
            )
    return name


def fit_name(
    stem: str,
    suffix: str = "",
    *,
    kueue: bool = False,
    replicas: int | None = None,
    size: int | None = None,
) -> str:
    """``STEM-SUFFIX`` where that fits, or else with the stem cut and a hash of it in between.

    The same arguments always give the same name, and other stems other names.

    Args:
        stem: what may be cut; ends up as DNS-1035 wants it.
        suffix: kept whole; empty for none.
        kueue, replicas, size: as for :func:`name_limit`.

    Raises:
        BadName: nothing of the stem would be left, or what comes out is no name.
    """
    limit = name_limit(kueue=kueue, replicas=replicas, size=size)
    end = f"-{suffix}" if suffix else ""
    name = stem + end
    if len(name) > limit:
        digest = hashlib.sha256(stem.encode()).hexdigest()[:_HASH]
        room = limit - len(end) - _HASH - 1
        kept = stem[: max(room, 0)].rstrip("-")
        if not kept:
            raise BadName(
                f"no name of {limit} characters can be made of {stem} and {suffix}: shorten "
                f"{suffix}"
            )
        name = f"{kept}-{digest}{end}"
    return check_name(name, kueue=kueue, replicas=replicas, size=size)


def _check_form(what: str, name: str) -> None:
    if not _DNS_1035.fullmatch(name):
        raise BadName(
            f"the {what} name {name!r} is no DNS label (RFC 1035): use small letters, digits and "
            "-, begin with a letter, and end with a letter or digit"
        )


def _reason(kueue: bool, replicas: int | None, size: int | None) -> str:
    digits = _digits(replicas)
    groups = f"{digits} digit{'s' if digits > 1 else ''} for the group's index"
    if kueue:
        return (
            f"Kueue puts leaderworkerset-NAME-GROUP-HASH into a label of {_LABEL} characters "
            f"({groups}, 5 for the hash)"
        )
    if size is not None and size > 1:
        return (
            f"Kubernetes puts NAME-GROUP-HASH into the label controller-revision-hash of the "
            f"workers' pods, of {_LABEL} characters ({groups}, 10 for the hash)"
        )
    return (
        "Kubernetes puts the name and a hash into the pods' label controller-revision-hash of "
        f"{_LABEL} characters, and LWS a group's index between"
    )


def _digits(count: int | None) -> int:
    """Of the highest index of so many."""
    return len(str(max(count or 1, 1) - 1))
