"""Comparisons: arms, measured block by block in turn, and what follows from the blocks."""

from benchmarks.compare.arms import ArmSpec, parse_arms, parse_slo
from benchmarks.compare.files import read_result, write_result
from benchmarks.compare.runner import (
    Between,
    CompareOptions,
    Events,
    analyse_folder,
    check_options,
    compare,
)

__all__ = [
    "ArmSpec",
    "Between",
    "CompareOptions",
    "Events",
    "analyse_folder",
    "check_options",
    "compare",
    "parse_arms",
    "parse_slo",
    "read_result",
    "write_result",
]
