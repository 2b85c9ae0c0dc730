"""Workload texts that the tests change in one place at a time, and plans made from them."""

from __future__ import annotations

from pathlib import Path

from benchmarks.workloads import Workload
from benchmarks.workloads.files import parse_workload

TRACES = Path(__file__).resolve().parents[3] / "data" / "traces"

CLASSES = """\
apiVersion: baton/v1
kind: Workload
metadata:
  name: example
spec:
  duration_s: 50
  classes:
    short:
      arrivals: {kind: poisson, rate: 4}
      prompt_tokens: {kind: uniform, min: 10, max: 90}
      output_tokens: 20
    long:
      arrivals: {kind: closed, concurrency: 3}
      prompt_tokens: 2000
      output_tokens: {kind: choice, values: [8, 16]}
"""


def changed(text: str, *changes: tuple[str, str]) -> str:
    """The text with each ``old`` replaced by ``new``, once; a missing one is the test's mistake."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    return text


def parse(text: str) -> Workload:
    return parse_workload(text, source="w.yaml")


def one_class(arrivals: str, *, duration_s: float = 50, more: str = "", seed: int = 0) -> Workload:
    """A workload with the class ``a``; ``more`` is added to the class as flow mapping entries."""
    extra = f", {more}" if more else ""
    return parse(
        "apiVersion: baton/v1\nkind: Workload\nmetadata: {name: one}\n"
        f"spec:\n  seed: {seed}\n  duration_s: {duration_s}\n  classes:\n"
        f"    a: {{arrivals: {arrivals}, prompt_tokens: 100, output_tokens: 5{extra}}}\n"
    )


def of_trace(file: Path, form: str, *, more: str = "", duration_s: float | None = None) -> Workload:
    """A workload of one trace; ``more`` is added to the trace as flow mapping entries."""
    duration = "" if duration_s is None else f"  duration_s: {duration_s}\n"
    extra = f", {more}" if more else ""
    return parse(
        "apiVersion: baton/v1\nkind: Workload\nmetadata: {name: replay}\nspec:\n"
        f'{duration}  trace: {{format: {form}, file: "{file}"{extra}}}\n'
    )
