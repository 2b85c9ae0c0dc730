"""A run as one Parquet file: a row per request, what belongs to the whole run in its metadata.

Scrapes are not in it. Needs pyarrow, which is loaded only here and only when asked.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from baton.errors import SettingsError
from benchmarks.records import RequestRecord, Run, RunMeta

_META_KEY = b"baton.run"
_WHOLE = (
    *("index", "turn", "process", "status", "priority", "chunks", "planned_prompt_tokens"),
    *("planned_output_tokens", "prompt_tokens", "output_tokens", "cached_tokens"),
)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise SettingsError(
            'Parquet needs pyarrow: pip install "baton-serving[benchmarks]"'
        ) from error
    return pyarrow, pyarrow.parquet


def _schema(arrow: Any) -> Any:
    columns = []
    for name in RequestRecord.__struct_fields__:
        if name == "chunks_s":
            kind = arrow.list_(arrow.float64())
        elif name.endswith("_s"):
            kind = arrow.float64()
        elif name in _WHOLE:
            kind = arrow.int64()
        else:
            kind = arrow.string()
        columns.append((name, kind))
    return arrow.schema(columns)


def write_parquet(run: Run, path: Path) -> None:
    """Writes the run, whole or not at all.

    Raises:
        SettingsError: pyarrow is not there, or the file cannot be written.
    """
    arrow, parquet = _pyarrow()
    schema = _schema(arrow).with_metadata({_META_KEY: msgspec.json.encode(run.meta)})
    columns = {
        name: [getattr(record, name) for record in run.records]
        for name in RequestRecord.__struct_fields__
    }
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        parquet.write_table(arrow.table(columns, schema=schema), scratch, compression="zstd")
        scratch.replace(path)
    except OSError as error:
        raise SettingsError(f"{path} cannot be written ({error})") from error
    finally:
        scratch.unlink(missing_ok=True)


def read_parquet(path: Path) -> Run:
    """Reads what ``write_parquet`` wrote.

    Raises:
        SettingsError: no such file, or not one of ours.
    """
    arrow, parquet = _pyarrow()
    try:
        table = parquet.read_table(path)
    except (OSError, arrow.ArrowInvalid) as error:
        raise SettingsError(f"{path} cannot be read ({error})") from error
    raw = (table.schema.metadata or {}).get(_META_KEY)
    if raw is None:
        raise SettingsError(f"{path} is no run of ours")
    try:
        meta = msgspec.json.decode(raw, type=RunMeta)
        records = [msgspec.convert(row, RequestRecord) for row in table.to_pylist()]
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise SettingsError(f"{path} is no run of ours: {error}") from error
    return Run(meta=meta, records=records)
