"""What a reader needs to believe a comparison, or not to, and to repeat it, as rows of words.

Blocks, the instrument's own health, client against servers, and provenance. The only thing that
is picked from several blocks is the worst one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.comparison import Block, CompareResult
from benchmarks.report.names import (
    DASH,
    SERVER_FIGURES,
    Kind,
    digits,
    kind_text,
    server_cells,
    server_columns,
)
from benchmarks.report.words import took, when, workload_name


@dataclass(frozen=True, slots=True)
class BlockRow:
    """One block as the validity panel lists it."""

    order: int
    arm: str
    pair: int
    level: str
    salt: str
    achieved: str
    errors: str
    lag: str
    cached: str
    chunks: str
    cpu: str
    counted: bool
    why: str


def block_rows(result: CompareResult) -> list[BlockRow]:
    """Every block in the order in which they ran."""
    return [_block_row(block, result) for block in sorted(result.blocks, key=lambda b: b.order)]


def worst_rows(result: CompareResult) -> list[tuple[str, str, list[str]]]:
    """What tells whether the instrument worked: label, what it means, the worst block per arm."""
    found = []
    for label, meaning, path, kind, pick in _CHECKS:
        cells, known = [], False
        for arm in result.arms:
            values = [
                value
                for block in result.blocks
                if block.arm == arm.name
                and not any(problem.code == "interrupted" for problem in block.problems)
                and (value := _dig(block.summary, path)) is not None
            ]
            known = known or bool(values)
            cells.append(kind_text(kind, pick(values)) if values else DASH)
        if known:
            found.append((label, meaning, cells))
    return found


def fact_rows(result: CompareResult) -> list[tuple[str, str]]:
    """Provenance: what a reader needs to judge and to repeat the comparison."""
    rows = [("Comparison", result.id), ("Started", when(result.created_wall_s))]
    rows.append(("Took", took(result.took_s)))
    rows.append(("Workload", workload_name(result.workload) or DASH))
    for key, label in (
        ("version", "Schedule version"),
        ("seed", "Seed"),
        ("trace_sha256", "Trace SHA-256"),
        ("duration_s", "Seconds per block"),
        ("dropped", "Left out of the trace"),
    ):
        value = _workload_value(result.workload, key)
        if value not in (None, {}, ""):
            rows.append((label, _plain(value)))
    if result.levels:
        rows.append(("Levels of load", ", ".join(f"{level:g}x" for level in result.levels)))
    rows.append(("Pairs of blocks per level", str(result.pairs)))
    rows.append(("Confidence", f"{result.confidence * 100:g} %"))
    rows.append(("Commit", result.commit or "not a checkout"))
    return rows


def arm_rows(result: CompareResult) -> list[tuple[str, list[str]]]:
    """What the arms are, a column each."""
    arms = result.arms
    rows = [
        ("Profile", [arm.profile or DASH for arm in arms]),
        ("Profile version", [arm.profile_version or DASH for arm in arms]),
        ("Model", [arm.model or DASH for arm in arms]),
        (
            "Accelerators",
            [
                " + ".join(f"{a.count} x {a.label}" for a in arm.accelerators) or DASH
                for arm in arms
            ],
        ),
        (
            "Price per hour",
            [DASH if (p := arm.price_per_hour) is None else f"${p:,.2f}" for arm in arms],
        ),
        ("Endpoint", [arm.url or DASH for arm in arms]),
    ]
    for key in sorted({key for arm in arms for key in arm.versions}):
        rows.append((f"{key} (server)", [arm.versions.get(key, DASH) for arm in arms]))
    return [(label, cells) for label, cells in rows if any(cell != DASH for cell in cells)]


def slo_rows(result: CompareResult) -> list[tuple[str, list[str]]]:
    """Service levels by class: TTFT, TPOT, E2E."""
    return [
        (name, [kind_text(Kind.SECONDS, v) for v in (slo.ttft_s, slo.tpot_s, slo.e2e_s)])
        for name, slo in sorted(result.slos.items())
    ]


def difference_rows(result: CompareResult) -> list[tuple[str, list[str]]]:
    """Settings in which the arms differ: the setting and a value per arm.

    An entry names its setting ``field`` and holds the arms' names as further keys.
    """
    rows = []
    for entry in result.config_differences:
        cells = [_plain(entry.get(arm.name)) for arm in result.arms]
        rows.append((str(entry.get("field", DASH)), cells))
    return rows


def environment_rows(result: CompareResult) -> list[tuple[str, str]]:
    """Versions and the machine that the load came from."""
    rows = [(key, str(value)) for key, value in sorted(result.versions.items())]
    for key, value in result.machine.items():
        if key == "memory_bytes" and isinstance(value, int | float):
            rows.append(("memory", f"{value / 2**30:.1f} GiB"))
        else:
            rows.append((key.replace("_", " "), _plain(value)))
    return rows


def agreement_rows(result: CompareResult) -> list[tuple[str, str, str, str, bool, str]]:
    """Client against servers: arm, what, both values, whether they agree, remark."""
    return [
        (
            a.arm,
            a.what,
            _with_unit(a.client, a.unit),
            _with_unit(a.server, a.unit),
            a.agrees,
            a.note,
        )
        for a in result.agreements
    ]


def server_table(result: CompareResult) -> tuple[list[str], list[tuple[str, str, list[str]]]]:
    """What the servers say of themselves: titles of the figures, and (arm, server, figures)."""
    everyone = [
        (arm.name, source, figures)
        for arm in result.arms
        for source, figures in result.servers.get(arm.name, {}).items()
    ]
    columns = server_columns(figures for _, _, figures in everyone)
    rows = [(arm, source, server_cells(figures, columns)) for arm, source, figures in everyone]
    return [SERVER_FIGURES[key].label for key in columns], rows


# Label, meaning, where it stands in a block's summary, kind, which of the blocks is the worst.
_CHECKS: tuple[tuple[str, str, tuple[str, ...], Kind, Any], ...] = (
    (
        "Schedule lag p99",
        "from when a request was due to when it was sent",
        ("client", "lag_p99_s"),
        Kind.SECONDS,
        max,
    ),
    ("Event loop stall, longest", "", ("client", "stall_max_s"), Kind.SECONDS, max),
    (
        "Load generator CPU",
        "of one core, busiest process",
        ("client", "cpu_share"),
        Kind.SHARE,
        max,
    ),
    ("Failed requests", "", ("all", "error_share"), Kind.SHARE, max),
    (
        "Prompt tokens from cache",
        "what salted prompts should keep near zero unless the workload shares prefixes",
        ("all", "cached_share"),
        Kind.SHARE,
        max,
    ),
    ("Chunks per token", "", ("all", "chunks_per_token"), Kind.PLAIN, min),
)


def _block_row(block: Block, result: CompareResult) -> BlockRow:
    summary = block.summary
    reasons = [problem.text for problem in block.problems]
    if not block.counted and not reasons:
        reasons = ["another block of its pair is invalid"]
    return BlockRow(
        order=block.order + 1,
        arm=block.arm,
        pair=block.pair + 1,
        level=f"{block.level:g}x",
        salt=block.salt,
        achieved=kind_text(Kind.RATE, _dig(summary, ("all", "requests_per_s"))),
        errors=kind_text(Kind.PLAIN, _dig(summary, ("all", "errors"))),
        lag=kind_text(Kind.SECONDS, _dig(summary, ("client", "lag_p99_s"))),
        cached=kind_text(Kind.SHARE, _dig(summary, ("all", "cached_share"))),
        chunks=kind_text(Kind.PLAIN, _dig(summary, ("all", "chunks_per_token"))),
        cpu=kind_text(Kind.SHARE, _dig(summary, ("client", "cpu_share"))),
        counted=block.counted,
        why=" ".join(reasons),
    )


def _workload_value(workload: Mapping[str, Any], key: str) -> Any:
    spec = workload.get("spec")
    inner = spec.get(key) if isinstance(spec, Mapping) else None
    return workload.get(key, inner)


def _dig(summary: Mapping[str, Any], path: Sequence[str]) -> float | None:
    """The number at ``path``; a figure stands under its ``value``. None if it is not there."""
    found: Any = summary
    for step in path:
        found = found.get(step) if isinstance(found, Mapping) else None
    if isinstance(found, Mapping):
        found = found.get("value")
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return float(found)


def _with_unit(value: float, unit: str) -> str:
    if unit in ("s", "seconds"):
        return kind_text(Kind.SECONDS, value)
    return f"{digits(value)} {unit}".strip()


def _plain(value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, ensure_ascii=False, default=str)
