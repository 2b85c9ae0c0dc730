"""How routers change from one serving profile to another while traffic flows.

What they agree on (``State``), and the moves that lead from one agreement to the next, all pure:
the store, the clock and the traffic are the router's. Beside them what a switch is judged by:
whether workers fit a profile, what differs between two, whether a canary fares worse.
"""

from __future__ import annotations

from profiles.switching.difference import ABSENT, Change, difference
from profiles.switching.fit import Fit, fit, missing, notes
from profiles.switching.phases import (
    Seen,
    SwitchRefused,
    back,
    begin,
    first,
    profile_of,
    ref,
    refuse,
    roll_back,
    skip,
    step,
    take_over,
    terms_of,
)
from profiles.switching.record import (
    MAX_HISTORY,
    OWNER_SILENT_S,
    Phase,
    Ref,
    Report,
    Shadow,
    State,
    Switch,
    Terms,
    decode,
    encode,
)
from profiles.switching.verdict import Verdict, judge, total

__all__ = [
    "ABSENT",
    "MAX_HISTORY",
    "OWNER_SILENT_S",
    "Change",
    "Fit",
    "Phase",
    "Ref",
    "Report",
    "Seen",
    "Shadow",
    "State",
    "Switch",
    "SwitchRefused",
    "Terms",
    "Verdict",
    "back",
    "begin",
    "decode",
    "difference",
    "encode",
    "first",
    "fit",
    "judge",
    "missing",
    "notes",
    "profile_of",
    "ref",
    "refuse",
    "roll_back",
    "skip",
    "step",
    "take_over",
    "terms_of",
    "total",
]
