"""An OpenAI server with known delays, to test instruments with. It generates nothing."""

from benchmarks.mock.launch import MockProcess, mock_process
from benchmarks.mock.script import Delay, Outcome, Script, Shape, Stall
from benchmarks.mock.truth import Truth, as_records, read_truth

__all__ = [
    "Delay",
    "MockProcess",
    "Outcome",
    "Script",
    "Shape",
    "Stall",
    "Truth",
    "as_records",
    "mock_process",
    "read_truth",
]
