"""The report as Markdown, for pull requests, chats and logs.

The same words as the page, without its charts. Everything that came from outside (names, notes,
problems) is escaped, so that it cannot become a heading, a link or a piece of HTML.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from benchmarks.comparison import CompareResult
from benchmarks.report import evidence, verdict_rows, words

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#!~])")


def render_markdown(result: CompareResult) -> str:
    """Headline, verdicts, validity and provenance; ends with a newline."""
    word, meaning = words.badge(result)
    first, *rest = result.headline or ["No verdict: too little was measured"]
    lines = [f"# {_text(first)}", ""]
    for line in rest:
        lines += [_text(line), ""]
    lines += [f"**{_text(word)}**: {meaning}. {_text(words.subtitle(result))}.", ""]
    alarm = words.alarm(result)
    if alarm is not None:
        lines += [f"> **{alarm[0]}**", ">", *(f"> - {_text(reason)}" for reason in alarm[1])]
        lines.append("")
    lines += [*_verdicts(result), *_economy(result), *_validity(result), *_provenance(result)]
    return "\n".join(lines).rstrip() + "\n"


def _verdicts(result: CompareResult) -> list[str]:
    lines = ["## Verdict", ""]
    found = [entry for entry in verdict_rows.arm_verdicts(result) if entry.primary]
    if not found:
        return [*lines, "There is no verdict: nothing could be compared.", ""]
    for entry in found:
        rows = [
            [
                group.title,
                row.label,
                row.base,
                row.value,
                row.change,
                row.interval,
                f"{row.symbol} {row.word}" + (f" ({row.note})" if row.note else ""),
            ]
            for group in entry.primary
            for row in group.rows
        ]
        head = ["Requests", "Figure", entry.base, entry.arm, "Change", "Interval", "Outcome"]
        lines += [f"### {_text(entry.arm)} against {_text(entry.base)}", ""]
        lines += _table(head, rows, right=(2, 3))
    return lines


def _economy(result: CompareResult) -> list[str]:
    groups = verdict_rows.economy_groups(result)
    if not groups:
        return []
    rows = [
        [group.title, row.label, *(cell[0] for cell in row.cells)]
        for group in groups
        for row in group.rows
    ]
    head = ["Requests", "Figure", *(arm.name for arm in result.arms)]
    return ["## Goodput and price", "", *_table(head, rows, right=range(2, len(head)))]


def _validity(result: CompareResult) -> list[str]:
    lines = ["## Can it be believed?", ""]
    if words.alarm(result) is None:
        lines += ["Nothing was found that makes it invalid.", ""]
    notes = words.notes(result)
    lines += [f"- {_text(note)}" for note in notes] + ([""] if notes else [])
    rows = [[label, *cells] for label, _meaning, cells in evidence.worst_rows(result)]
    if rows:
        head = ["Worst block", *(arm.name for arm in result.arms)]
        lines += _table(head, rows, right=range(1, len(head)))
    left_out = [row for row in evidence.block_rows(result) if not row.counted]
    lines += [
        f"- block {row.order} ({_text(row.arm)}, pair {row.pair}) does not count: {_text(row.why)}"
        for row in left_out
    ]
    lines += [""] if left_out else []
    titles, servers = evidence.server_table(result)
    if servers:
        rows = [[arm, source, *cells] for arm, source, cells in servers]
        head = ["Arm", "Server says", *titles]
        lines += _table(head, rows, right=range(2, len(head)))
    disagree = [row for row in evidence.agreement_rows(result) if not row[4]]
    lines += [
        f"- {_text(arm)}, {_text(what)}: client {client}, server {server}"
        + (f" ({_text(note)})" if note else "")
        for arm, what, client, server, _agrees, note in disagree
    ]
    return lines + ([""] if disagree else [])


def _provenance(result: CompareResult) -> list[str]:
    lines = ["## Where it comes from", "", *_fenced(result.command)]
    names = [arm.name for arm in result.arms]
    differences = [[label, *cells] for label, cells in evidence.difference_rows(result)]
    if differences:
        lines += _table(["Setting", *names], differences)
    lines += _table(
        ["Arm", *names], [[label, *cells] for label, cells in evidence.arm_rows(result)]
    )
    facts = [*evidence.fact_rows(result), *evidence.environment_rows(result)]
    return lines + _table(["", ""], [[label, value] for label, value in facts])


def _table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[int] = ()
) -> list[str]:
    places = set(right)
    rule = ["---:" if place in places else "---" for place in range(len(head))]
    lines = [_row([_text(cell) for cell in head]), _row(rule)]
    return [*lines, *(_row([_text(cell) for cell in row]) for row in rows), ""]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(value: str) -> str:
    return _SPECIAL.sub(r"\\\1", " ".join(value.split()))


def _fenced(command: str) -> list[str]:
    longest = max((len(run) for run in re.findall("`+", command)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence, command, fence, ""]
