"""Looking at results: ``baton bench show``, ``report``, ``history``, ``export``, ``workload``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from baton.cli.console import print_table
from baton.errors import SettingsError, WorkloadError
from benchmarks.compare import analyse_folder, read_result
from benchmarks.comparison import COMPARE_FILE
from benchmarks.export import write_inference_perf
from benchmarks.history import entries, find
from benchmarks.load import read_run, write_parquet
from benchmarks.metrics import summarise
from benchmarks.report import show as show_comparison
from benchmarks.report import show_run, write_reports
from benchmarks.workloads import build_plan, builtin_workloads, load_workload, workload_schema


def show(home: Path, wanted: str, *, as_json: bool) -> None:
    """Prints a run or a comparison."""
    folder = find(home, wanted)
    console = Console(file=sys.stdout, highlight=False)
    if (folder / COMPARE_FILE).is_file():
        result = read_result(folder)
        if as_json:
            sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
        else:
            show_comparison(result, console)
        return
    found = read_run(folder)
    summary = summarise(found)
    if as_json:
        data = {"meta": found.meta, "summary": summary}
        sys.stdout.write(msgspec.json.encode(data).decode() + "\n")
    else:
        show_run(found, summary, console)


def report(home: Path, wanted: str) -> None:
    """Computes a comparison anew and writes its reports; says where."""
    folder = find(home, wanted)
    if not (folder / COMPARE_FILE).is_file():
        raise SettingsError(f"{folder} is a single run; reports are made of comparisons")
    for path in write_reports(analyse_folder(folder), folder):
        sys.stdout.write(f"{path}\n")


def history(home: Path, *, as_json: bool) -> None:
    """Prints a line for each result."""
    found = entries(home)
    if as_json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
        return
    if not found:
        sys.stdout.write(
            "no results yet; `baton bench run URL` or `baton bench compare` make some\n"
        )
        return
    table = Table("id", "when", "workload", "arms", "commit", "found", box=None, pad_edge=False)
    for entry in found:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.created_wall_s))
        table.add_row(
            Text(entry.id),
            when,
            Text(entry.workload),
            Text(", ".join(entry.arms)),
            (entry.commit or "")[:9],
            Text(entry.headline),
        )
    print_table(table)


def export(home: Path, wanted: str, form: str, output: Path) -> None:
    """Writes a run in another format; says where."""
    folder = find(home, wanted)
    if (folder / COMPARE_FILE).is_file():
        blocks = ", ".join(str(folder / block.folder) for block in read_result(folder).blocks[:2])
        raise SettingsError(f"{folder} is a comparison; export one of its blocks, such as {blocks}")
    found = read_run(folder)
    writer = {
        "parquet": write_parquet,
        "inference-perf": write_inference_perf,
    }[form]
    try:
        writer(found, output)
    except OSError as error:
        raise SettingsError(f"{output} cannot be written: {error.strerror}") from error
    sys.stdout.write(f"{output}\n")


def workload_table() -> None:
    """Prints name and purpose of each built-in workload."""
    table = Table("name", "description", box=None, pad_edge=False)
    for name in builtin_workloads():
        table.add_row(Text(name), Text(load_workload(name).metadata.description))
    print_table(table)


def show_workload(name: str) -> None:
    """Prints a workload as YAML that reads back as the same workload."""
    data = load_workload(name).model_dump(mode="json", by_alias=True)
    sys.stdout.write(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100))


def validate_workloads(files: Sequence[Path]) -> int:
    """Prints what each would send, or what is wrong with it; returns the exit status."""
    status = 0
    for file in files:
        try:
            workload = load_workload(file)
            plan = build_plan(workload)
        except WorkloadError as error:
            status = 2
            sys.stderr.write(f"{error.message}\n")
            continue
        parts = [f"{plan.duration_s:g} s", f"classes {', '.join(plan.class_names)}"]
        if plan.requests:
            parts.append(f"{len(plan.requests)} requests on a schedule")
        if plan.lanes:
            parts.append(f"{len(plan.lanes)} closed loops")
        parts += [f"{count} rows left out ({why})" for why, count in plan.dropped.items()]
        sys.stdout.write(f"{file}: ok, version {plan.version}, {', '.join(parts)}\n")
    return status


def show_schema() -> None:
    """Prints the JSON Schema."""
    sys.stdout.write(json.dumps(workload_schema(), indent=2) + "\n")
