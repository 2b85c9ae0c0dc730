"""Workloads: what a benchmark sends, from a YAML file or a recorded trace to a plan and its text.

Everything is decided here before a run starts, as a pure function of the workload, a seed and a
scale. Nothing is sent.
"""

from __future__ import annotations

from benchmarks.workloads.build import build_plan
from benchmarks.workloads.files import builtin_workloads, load_workload, workload_schema
from benchmarks.workloads.spec import Workload
from benchmarks.workloads.text import PromptWriter

__all__ = [
    "PromptWriter",
    "Workload",
    "build_plan",
    "builtin_workloads",
    "load_workload",
    "workload_schema",
]
