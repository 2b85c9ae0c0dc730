"""The folder of a comparison: ``compare.json``, ``report.html``, ``report.md``, ``blocks/``."""

from __future__ import annotations

from pathlib import Path

import msgspec

from baton.errors import SettingsError
from benchmarks.comparison import COMPARE_FILE, COMPARE_FORMAT, CompareResult
from benchmarks.whole import write_json


def write_result(folder: Path, result: CompareResult) -> None:
    """Writes ``compare.json`` whole or not at all."""
    write_json(folder / COMPARE_FILE, result)


def read_result(folder: Path) -> CompareResult:
    """Reads ``compare.json`` of a folder.

    Raises:
        SettingsError: there is none, or it is not one of ours.
    """
    path = folder / COMPARE_FILE
    try:
        result = msgspec.json.decode(path.read_bytes(), type=CompareResult)
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror})") from error
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise SettingsError(f"{path} is not a comparison of ours: {error}") from error
    if result.format != COMPARE_FORMAT:
        raise SettingsError(f"{path} has format {result.format}; this Baton reads {COMPARE_FORMAT}")
    return result
