"""What of a pass is worth an Event: sentences for operators, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

from deploy.controller.actions import (
    Action,
    BeginSwitch,
    CreatePool,
    DeletePool,
    MarkPool,
    NoteWish,
    RaiseMark,
    ScalePool,
    ShrinkPool,
)
from deploy.controller.picture import Outcome, Picture
from deploy.controller.plan import Plan
from deploy.controller.status import Happening

_WISHES = {
    Outcome.ACTIVE: "WishActive",
    Outcome.COMMITTED: "WishCommitted",
    Outcome.ROLLED_BACK: "WishRolledBack",
    Outcome.REFUSED: "WishRefused",
}


def of_action(action: Action) -> Happening | None:
    """What to tell of an action that was done; None for what is of no interest outside."""
    told = f"{action.target}: {action.reason}"
    match action:
        case NoteWish():
            return _of_wish(action)
        case CreatePool():
            return Happening("PoolCreated", f"Made {told}")
        case ShrinkPool():
            return Happening("PoolScaledDown", f"Scaled down {told}")
        case ScalePool():
            return Happening("PoolScaledUp", f"Scaled up {told}")
        case DeletePool():
            return Happening("PoolDeleted", f"Deleted {told}")
        case MarkPool() if not isinstance(action, RaiseMark):
            return Happening("PoolDraining", f"Draining {told}")
        case BeginSwitch():
            return Happening("SwitchBegun", f"Asked {told}")
        case _:
            return None


def _of_wish(action: NoteWish) -> Happening | None:
    outcome = action.memory.outcome
    reason = _WISHES.get(outcome)
    if reason is None:
        return None
    bad = outcome in (Outcome.ROLLED_BACK, Outcome.REFUSED)
    hint = "; it is not tried again until its text changes or another is named" if bad else ""
    name = f"{action.profile.name} ({action.profile.version})"
    return Happening(reason, f"{name} {action.reason}{hint}", bad)


def of_failure(action: Action, why: str) -> Happening:
    """What to tell of an action that failed."""
    return Happening("ActionFailed", f"{action.kind} {action.target}: {why}", True)


def of_plan(picture: Picture, plan: Plan) -> Iterator[Happening]:
    """What is wrong, and what takes too long."""
    for problem in picture.problems:
        yield Happening("Refused", problem, True)
    for wait in plan.waits:
        waited_s = picture.waited.get(wait.key, 0.0)
        if wait.limit_s is not None and waited_s >= wait.limit_s:
            # With a limit and not with the time that has passed: the same Event as before.
            over = f"{wait.sentence}, for more than {wait.limit_s:g} s; still waiting"
            yield Happening("StillWaiting", over, True)
