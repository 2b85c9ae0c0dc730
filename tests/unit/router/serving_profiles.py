"""Small profiles, and routers' servings of them, for tests of parts that serve by profiles."""

from __future__ import annotations

from profiles import ServingProfile, parse_profile
from router.policy import Counts
from router.serving import Serving

_DISAGGREGATED = """\
apiVersion: baton/v1
kind: ServingProfile
metadata: {{name: {name}}}
spec:
  mode: disaggregated
  model: {{source: demo, served_name: served}}
  classify: {{threshold_tokens: {threshold_tokens}}}
  pools:
    prefill: {{accelerator: cpu{takes}}}
    decode: {{accelerator: cpu}}
  transfer: {{warm_pairs: false, canary_rate: 0, lease_s: {lease_s}}}
{more}"""

_STANDARD = """\
apiVersion: baton/v1
kind: ServingProfile
metadata: {{name: {name}}}
spec:
  mode: standard
  model: {{source: demo, served_name: served}}
  pools:
    standard: {{accelerator: cpu{takes}}}
{more}"""


def disaggregated(
    threshold_tokens: int = 100,
    *,
    name: str = "handing-over",
    takes: str | None = None,
    lease_s: int = 30,
    more: str = "",
) -> ServingProfile:
    """Hands over prompts of ``threshold_tokens`` or more; pairs need no check.

    Args:
        takes: what else the prefill pool takes, such as ``[standard]``; else as by default.
        lease_s: of what prefill workers offer, in seconds.
        more: further sections, as lines of YAML with an indent of two.
    """
    return parse_profile(
        _DISAGGREGATED.format(
            name=name,
            threshold_tokens=threshold_tokens,
            takes=_takes(takes),
            lease_s=lease_s,
            more=more,
        ),
        source=name,
    )


def standard(
    *, name: str = "whole-requests", takes: str | None = None, more: str = ""
) -> ServingProfile:
    """Serves whole requests; ``takes`` is of the standard pool, all else as above."""
    return parse_profile(_STANDARD.format(name=name, takes=_takes(takes), more=more), source=name)


def serving(profile: ServingProfile | None = None, counts: Counts | None = None) -> Serving:
    """A profile in a router; the handing-over one by default."""
    return Serving(profile or disaggregated(), 1.0, Counts() if counts is None else counts)


def _takes(roles: str | None) -> str:
    return "" if roles is None else f", takes: {roles}"
