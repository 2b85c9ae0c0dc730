"""The spellings that Kubernetes takes: names, labels, ports, quantities, percentages.

From the API conventions and the validation packages of Kubernetes; each function says what is
wrong as a plain sentence, or nothing.
"""

from __future__ import annotations

import re
from decimal import Decimal

from tests.manifests.findings import Findings, Json, Path, mapping

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_WORD = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_SERVICE = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_QUANTITY = re.compile(
    r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))((?:[KMGTPE]i)|[numkMGTPE]|(?:[eE][+-]?[0-9]+))?"
)
_PERCENT = re.compile(r"[0-9]+%")
_SUFFIX = {
    "": Decimal(1),
    **{
        unit: Decimal(10) ** power
        for unit, power in zip("numkMGTPE", (-9, -6, -3, 3, 6, 9, 12, 15, 18), strict=True)
    },
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", 1)},
}
_MAX_ANNOTATIONS = 256 * 1024


def dns_label(value: object) -> str | None:
    """RFC 1123: 63 characters at most."""
    if isinstance(value, str) and len(value) <= 63 and _LABEL.fullmatch(value):
        return None
    return f"must be a DNS label of at most 63 characters (got {value!r})"


def dns_1035(value: object, limit: int = 63) -> str | None:
    """RFC 1035: begins with a letter."""
    if isinstance(value, str) and len(value) <= limit and _DNS_1035.fullmatch(value):
        return None
    return f"must be a DNS-1035 label of at most {limit} characters (got {value!r})"


def dns_subdomain(value: object) -> str | None:
    """RFC 1123 with dots: 253 characters at most."""
    if isinstance(value, str) and len(value) <= 253 and _SUBDOMAIN.fullmatch(value):
        return None
    return f"must be a DNS subdomain of at most 253 characters (got {value!r})"


def path_segment(value: object) -> str | None:
    """What RBAC objects are called: anything that can be one part of a URL's path."""
    if isinstance(value, str) and value not in ("", ".", "..") and not set("/%") & set(value):
        return None
    return f"must be one part of a path, without / and % (got {value!r})"


def qualified(value: object) -> str | None:
    """A label's or annotation's key, or the name of a resource."""
    prefix, slash, word = str(value).rpartition("/")
    if not isinstance(value, str) or len(word) > 63 or not _WORD.fullmatch(word):
        return f"must be a name of at most 63 characters, with an optional prefix (got {value!r})"
    if slash and dns_subdomain(prefix):
        return f"must have a DNS subdomain before the slash (got {value!r})"
    return None


def label_value(value: object) -> str | None:
    """A label's value; the empty one is fine."""
    if value == "" or (isinstance(value, str) and len(value) <= 63 and _WORD.fullmatch(value)):
        return None
    return f"must be a label's value of at most 63 characters (got {value!r})"


def port_name(value: object) -> str | None:
    """IANA's service names: what ports are called in containers and Services' targets."""
    sound = (
        isinstance(value, str)
        and len(value) <= 15
        and _SERVICE.fullmatch(value)
        and "--" not in value
        and re.search("[a-z]", value)
    )
    return None if sound else f"must be a port's name of at most 15 characters (got {value!r})"


def port_number(value: object) -> str | None:
    """1 to 65535."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65536:
        return None
    return f"must be a port from 1 to 65535 (got {value!r})"


def port(value: object) -> str | None:
    """A name or a number."""
    return port_name(value) if isinstance(value, str) else port_number(value)


def quantity(value: object) -> Decimal | None:
    """The number that a quantity such as ``1500m`` or ``2Gi`` stands for; None if it is none."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Decimal(str(value))
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    unit = match[2] or ""
    factor = _SUFFIX[unit] if unit in _SUFFIX else Decimal(10) ** int(unit[1:])
    return Decimal(match[1]) * factor


def count_or_percent(value: object) -> str | None:
    """Not negative, or a percentage of at most 100."""
    if isinstance(value, int) and not isinstance(value, bool):
        return None if value >= 0 else f"must not be negative (got {value})"
    if isinstance(value, str) and _PERCENT.fullmatch(value):
        return None if int(value[:-1]) <= 100 else f"must not be more than 100% (got {value})"
    return f"must be a whole number or a percentage (got {value!r})"


def scaled(value: int | str, total: int, *, up: bool) -> int:
    """A count or percentage as a count of ``total``."""
    if isinstance(value, int):
        return value
    share = int(value[:-1]) * total
    return -(-share // 100) if up else share // 100


def labels(found: object, path: Path) -> Findings:
    """Keys and values of a mapping of labels."""
    for key, value in mapping(found).items():
        for wrong in (qualified(key), label_value(value)):
            if wrong:
                yield (*path, key), wrong


def annotated(found: object, path: Path) -> Findings:
    """Keys of annotations, and their size."""
    size = 0
    for key, value in mapping(found).items():
        # Upper case is taken here, and lower-cased before the check.
        if wrong := qualified(str(key).lower()):
            yield (*path, key), wrong
        if not isinstance(value, str):
            yield (*path, key), f"must be text (got {value!r})"
        size += len(str(key).encode()) + len(str(value).encode())
    if size > _MAX_ANNOTATIONS:
        yield path, f"has {size} bytes in all; {_MAX_ANNOTATIONS} are taken"


def selector(found: object, path: Path) -> Findings:
    """A LabelSelector."""
    yield from labels(mapping(found).get("matchLabels"), (*path, "matchLabels"))
    for index, term in enumerate(mapping(found).get("matchExpressions") or ()):
        at = (*path, "matchExpressions", index)
        yield from expression(term, at, ("In", "NotIn", "Exists", "DoesNotExist"))


def expression(term: Json, path: Path, operators: tuple[str, ...]) -> Findings:
    """One term of a label or node selector."""
    operator, values = term.get("operator"), term.get("values") or []
    if wrong := qualified(term.get("key")):
        yield (*path, "key"), wrong
    if operator not in operators:
        yield (*path, "operator"), f"must be one of {', '.join(operators)} (got {operator!r})"
    if operator in ("Exists", "DoesNotExist") and values:
        yield (*path, "values"), f"must be empty with operator {operator}"
    if operator in ("In", "NotIn") and not values:
        yield (*path, "values"), f"must not be empty with operator {operator}"
    for index, value in enumerate(values):
        if wrong := label_value(value):
            yield (*path, "values", index), wrong


def matches(found: object, given: Json, anything: frozenset[str] = frozenset()) -> bool:
    """Whether a LabelSelector takes labels; ``anything`` are keys that are there with a value that
    only the cluster knows. An empty selector takes all."""
    for key, value in mapping(mapping(found).get("matchLabels")).items():
        if key not in anything and given.get(key) != value:
            return False
    for term in mapping(found).get("matchExpressions") or ():
        key, values = term.get("key"), term.get("values") or ()
        match term.get("operator"):
            case "In":
                taken = key in anything or given.get(key) in values
            case "NotIn":
                taken = key in anything or given.get(key) not in values
            case "Exists":
                taken = key in anything or key in given
            case _:
                taken = key not in anything and key not in given
        if not taken:
            return False
    return True
