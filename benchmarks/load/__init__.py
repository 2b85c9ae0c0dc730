"""The load generator: sends a plan to an OpenAI endpoint, and writes down what came back when.

It judges itself as well: a run says how late it was, how much CPU it took, and what speaks against
believing it. What the records mean in figures is ``benchmarks.metrics``' business.
"""

from benchmarks.load.api import Observer, run, run_plan
from benchmarks.load.endpoint import ResolvedTarget
from benchmarks.load.files import read_run, write_meta, write_scrapes
from benchmarks.load.loops import new_loop
from benchmarks.load.parquet import read_parquet, write_parquet
from benchmarks.load.progress import Progress, ProgressView
from benchmarks.load.resolve import resolve
from benchmarks.load.sweep import Saturation, saturation, sweep
from benchmarks.load.validity import expected_cached_tokens, find_problems, planned_shared_share

__all__ = [
    "Observer",
    "Progress",
    "ProgressView",
    "ResolvedTarget",
    "Saturation",
    "expected_cached_tokens",
    "find_problems",
    "new_loop",
    "planned_shared_share",
    "read_parquet",
    "read_run",
    "resolve",
    "run",
    "run_plan",
    "saturation",
    "sweep",
    "write_meta",
    "write_parquet",
    "write_scrapes",
]
