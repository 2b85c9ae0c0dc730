"""A switch of profiles in words and tables: how far it is, what both sides did, how it ended.

Only data in, only lines and tables out; nothing is asked and no clock is read here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from rich.table import Table
from rich.text import Text

from baton.cli.console import show_s
from baton.cli.profile_answers import Change, CheckAnswer, RouterView, SwitchAnswer
from baton.types import Tally
from profiles.switching import ABSENT, Phase, Ref, Report, Shadow, Switch

Parts = list[Table | str]

_MAX_VALUE = 60


def show_ref(ref: Ref) -> str:
    """``standard (4f1c22aa90b1)``."""
    return f"{ref.name} ({ref.version})"


def show_span(seconds: float) -> str:
    """A duration as it would be typed: ``350 ms``, ``4.2 s``, ``75 s``, ``5 min``."""
    if seconds < 0.1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min" + (f" {rest} s" if rest else "")


def show_share(part: float, whole: float) -> str:
    """``2.5 %``; empty of nothing."""
    return f"{100 * part / whole:.1f}".removesuffix(".0") + " %" if whole else ""


def show_time(wall_s: float) -> str:
    """Wall-clock time, local."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall_s))


def show_value(value: object) -> str:
    """A field of a profile, short and on one line."""
    if value is msgspec.UNSET:
        return ABSENT
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_VALUE else f"{text[: _MAX_VALUE - 3]}..."


def phase_line(switch: Switch) -> str:
    """What the phase does, and its limits."""
    terms = switch.terms
    if switch.phase in terms.skip:
        return f"{switch.phase}: left out"  # Each switch begins in PREPARE all the same.
    if switch.phase is Phase.PREPARE:
        return f"prepare: waits for the profile's pools, {show_span(terms.prepare_s)} at most"
    if switch.phase is Phase.SHADOW:
        return "shadow: decides the last requests anew"
    if switch.phase is Phase.CANARY:
        return (
            f"canary: {show_share(terms.share, 1)} of the requests, {show_span(terms.hold_s)} "
            f"at least; until {terms.min_requests} were served, {show_span(terms.canary_s)} at most"
        )
    return str(switch.phase)


def shadow_line(shadow: Shadow) -> str:
    """What the last requests would have met, in a sentence."""
    if not shadow.requests:
        return "no requests to decide anew"
    moved = sum(shadow.changed.values())
    detail = ", ".join(f"{path}: {count}" for path, count in sorted(shadow.changed.items()))
    text = f"of the last {shadow.requests} requests {moved} would take another path"
    text += f" ({detail})" if detail else ""
    if shadow.refused:
        text += f", {shadow.refused} would find no worker"
    if shadow.old_ttft_s is not None and shadow.new_ttft_s is not None:
        text += (
            f"; predicted TTFT {show_s(shadow.old_ttft_s)} before, {show_s(shadow.new_ttft_s)} then"
        )
    return text


def facts(rows: Iterable[tuple[str, str]]) -> Table:
    """Names and values beside each other; rows without a value are left out."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    for name, value in rows:
        if value:
            table.add_row(name, Text(value))
    return table


def switch_parts(switch: Switch, elapsed_s: float | None) -> Parts:
    """A switch that is on.

    Args:
        switch: it.
        elapsed_s: how long its phase has been seen; None if nobody watched it.
    """
    took = ", ".join(f"{name} {show_span(took_s)}" for name, took_s in switch.took_s.items())
    phase = phase_line(switch)
    if elapsed_s is not None:
        phase += f"; seen for {show_span(elapsed_s // 1)}"
    rows = [
        ("switch", f"{switch.number}: {show_ref(switch.old)} -> {show_ref(switch.new)}"),
        ("asked by", switch.by),
        ("phase", phase),
        *(("waits for", text) for text in switch.waiting_for),
        ("shadow", shadow_line(switch.shadow) if switch.shadow else ""),
        *(("note", text) for text in switch.notes),
        ("over", took),
    ]
    parts: Parts = [facts(rows)]
    if switch.phase is Phase.CANARY:
        parts += ["", arms(switch.tallies, switch.old, switch.new)]
    return parts


def arms(tallies: Mapping[str, Tally], old: Ref, new: Ref) -> Table:
    """Both sides of a canary."""
    table = Table("side", "profile", box=None, pad_edge=False)
    for name in ("requests", "errors", "rate", "SLO missed", "rate", "mean TTFT"):
        table.add_column(name, justify="right")
    for side, ref in (("old", old), ("new", new)):
        tally = tallies.get(ref.version, Tally())
        table.add_row(
            side,
            Text(ref.name),
            str(tally.requests),
            str(tally.errors),
            show_share(tally.errors, tally.requests),
            str(tally.missed),
            show_share(tally.missed, tally.requests),
            show_s(tally.ttft_s / tally.streams) if tally.streams else "",
        )
    return table


def taken_line(routers: Sequence[RouterView], revision: int) -> str:
    """Which routers serve by a revision or a later one; empty where there are none."""
    if not routers:
        return ""
    behind = [router.id for router in routers if router.seen < revision]
    text = f"{len(routers) - len(behind)} of {len(routers)} have taken it"
    return text + (f"; not yet: {', '.join(sorted(behind))}" if behind else "")


def routers_table(answer: SwitchAnswer) -> Table:
    """Each router, and whether it serves what is active."""
    table = Table("router", "node", "profile", "version", "", box=None, pad_edge=False)
    for router in sorted(answer.routers, key=lambda router: (router.node, router.id)):
        marks = [] if router.profile_version == answer.active.version else ["another profile"]
        marks += ["asked"] if router.asked else []
        cells = (router.id, router.node, router.profile, router.profile_version, ", ".join(marks))
        table.add_row(*(Text(cell) for cell in cells))
    return table


def agree(answer: SwitchAnswer) -> bool:
    """Whether all routers serve what is active."""
    return all(router.profile_version == answer.active.version for router in answer.routers)


def outcome_word(outcome: Phase) -> str:
    """``committed``, ``rolled back``, ``refused``."""
    return str(outcome).replace("_", " ")


def report_parts(report: Report) -> Parts:
    """How a switch ended: in a sentence, then the reason and the figures."""
    total_s = sum(report.took_s.values())
    after = f" after {show_span(total_s)}" if total_s else ""
    parts: Parts = [
        f"switch {report.number} {outcome_word(report.outcome)}{after}: "
        f"{show_ref(report.old)} -> {show_ref(report.new)}"
    ]
    if report.reason:
        parts.append(report.reason)
    rows = [
        *(("missing", text) for text in report.waiting_for if text not in report.reason),
        ("shadow", shadow_line(report.shadow) if report.shadow else ""),
        *(("note", text) for text in report.notes),
    ]
    if any(value for _, value in rows):
        parts.append(facts(rows))
    if report.tallies:
        parts += ["", arms(report.tallies, report.old, report.new)]
    return parts


def status_parts(
    answer: SwitchAnswer, since: Report | None, elapsed_s: float | None = None
) -> Parts:
    """Everything about what is active.

    Args:
        answer: of ``GET /admin/switch``.
        since: the switch that made it active; None where nobody remembers one.
        elapsed_s: how long the phase of a switch has been seen; None if nobody watched it.
    """
    active, last, source = answer.active, answer.last, answer.source
    by = f", since switch {since.number} ({show_time(since.at_s)}, by {since.by})" if since else ""
    ended = ""
    if last is not None and last != since:
        ended = f"switch {last.number} to {last.new.name} {outcome_word(last.outcome)} "
        ended += f"({show_time(last.at_s)}): {last.reason}"
    store = answer.store + (", away: what stands here may be old" if answer.store_lost else "")
    rows = [
        ("active", show_ref(active) + by),
        ("previous", show_ref(answer.previous) if answer.previous else ""),
        ("turning", ", ".join(answer.turning)),
        ("last", ended),
        ("store", f"{store}, revision {answer.revision}" if store else ""),
    ]
    if source is not None and source.where:
        rows.append(("source", source.where))
        wanted = source.active or "nothing in particular"
        other = source.active not in ("", active.name)
        rows.append(("it wants", wanted + (", which is not what is active" if other else "")))
        rows += [("problem", problem) for problem in source.problems]
    parts: Parts = [facts(rows)]
    if answer.switch is not None:
        parts += ["", *switch_parts(answer.switch, elapsed_s)]
    if answer.routers:
        parts += ["", routers_table(answer)]
        if not agree(answer):
            parts.append("the routers do not all serve the same profile")
    return parts


def history_table(reports: Sequence[Report]) -> Table:
    """How switches ended, newest first."""
    table = Table("switch", "ended", "from", "to", "by", "outcome", "took", "reason",
                  box=None, pad_edge=False)  # fmt: skip
    for report in sorted(reports, key=lambda report: report.number, reverse=True):
        cells = (
            str(report.number),
            show_time(report.at_s),
            report.old.name,
            report.new.name,
            report.by,
            outcome_word(report.outcome),
            show_span(sum(report.took_s.values())),
            report.reason,
        )
        table.add_row(*(Text(cell) for cell in cells))
    return table


def changes_table(changes: Sequence[Change], a: str, b: str) -> Table:
    """What differs between two profiles."""
    table = Table("path", box=None, pad_edge=False)
    for heading in (a, b):
        table.add_column(Text(heading))
    for change in changes:
        cells = (
            change.path,
            change.old_text or show_value(change.old),
            change.new_text or show_value(change.new),
        )
        table.add_row(*(Text(cell) for cell in cells))
    return table


def check_parts(check: CheckAnswer) -> Parts:
    """What a switch would meet."""
    parts: Parts = ["it fits" if check.fits else "it does not fit"]
    parts += check.problems
    rows = [
        *(("note", note) for note in check.notes),
        ("shadow", shadow_line(check.shadow) if check.shadow else ""),
    ]
    if any(value for _, value in rows):
        parts.append(facts(rows))
    if check.changes:
        parts += ["", changes_table(check.changes, "now", "then")]
    return parts
