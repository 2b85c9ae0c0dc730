"""The folder of a run: ``run.json``, ``requests.jsonl``, ``scrapes.jsonl``.

Records are appended as requests end and are with the system within a second, so that even a
process that is killed leaves a run that can be read; a torn last line is dropped. ``run.json`` is
there from the start, with ``complete`` false, and is replaced as a whole at the end.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from baton.errors import SettingsError
from benchmarks.records import RUN_FILE, RUN_FORMAT, Problem, RequestRecord, Run, RunMeta, Scrape
from benchmarks.whole import write_json

REQUESTS = "requests.jsonl"
SCRAPES = "scrapes.jsonl"
PART = "requests-{}.jsonl"
FLUSH_S = 0.5
_BUFFER_BYTES = 1 << 20

T = TypeVar("T")


class RecordFile:
    """Records as JSON lines, appended.

    Args:
        path: the file; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=_BUFFER_BYTES)
        self._encoder = msgspec.json.Encoder()
        self._flushed_s = 0.0

    def add(self, record: RequestRecord) -> None:
        """Appends a record; it may stay in memory until the next flush.

        Raises:
            SettingsError: it cannot be written, as on a full disk; so do the others.
        """
        with self._writing():
            self._file.write(self._encoder.encode(record) + b"\n")

    def tick(self, now: float) -> None:
        """Flushes if it is time; to be called several times a second."""
        if abs(now - self._flushed_s) >= FLUSH_S:
            self._flushed_s = now
            with self._writing():
                self._file.flush()

    def close(self) -> None:
        """Flushes and closes; safe to call twice."""
        with self._writing():
            self._file.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SettingsError(f"{self._path} cannot be written ({error.strerror})") from error


def write_meta(folder: Path, meta: RunMeta) -> None:
    """Writes ``run.json`` whole or not at all."""
    write_json(folder / RUN_FILE, meta)


def write_scrapes(folder: Path, scrapes: Iterable[Scrape]) -> None:
    """Writes ``scrapes.jsonl``."""
    encoder = msgspec.json.Encoder()
    with (folder / SCRAPES).open("wb") as file:
        file.writelines(encoder.encode(scrape) + b"\n" for scrape in scrapes)


def new_folder(folder: Path) -> None:
    """Makes the folder of a run.

    Raises:
        SettingsError: there is a run in it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Found out now, and not when the first answer is to be written.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise SettingsError(f"{folder} cannot be written ({error.strerror})") from error
    if (folder / RUN_FILE).exists() or (folder / REQUESTS).exists():
        raise SettingsError(f"{folder} holds a run already; name another folder")


def merge_parts(folder: Path) -> None:
    """Puts the files of several processes into ``requests.jsonl``, by time of sending.

    A file stays as it is when the machine stops in between: ``read_run`` reads both forms.
    """
    parts = _parts(folder)
    records = [record for path in parts for record in _lines(path, RequestRecord)]
    if not parts:
        return
    scratch = folder / f".{REQUESTS}.{os.getpid()}"
    encoder = msgspec.json.Encoder()
    with scratch.open("wb") as file:
        file.writelines(encoder.encode(record) + b"\n" for record in ordered(records))
    scratch.replace(folder / REQUESTS)
    for path in parts:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def ordered(records: Iterable[RequestRecord]) -> list[RequestRecord]:
    """By scheduled time, then lane and index: the same whatever process sent them."""
    return sorted(records, key=lambda r: (r.scheduled_s, r.lane or "", r.index))


def read_records(folder: Path) -> list[RequestRecord]:
    """All records of a run's folder, ordered.

    Raises:
        SettingsError: a line in the middle is broken.
    """
    whole = folder / REQUESTS
    # Parts beside the whole are what a merge that was cut short has left behind.
    paths = [whole] if whole.exists() else _parts(folder)
    return ordered(record for path in paths for record in _lines(path, RequestRecord))


def read_run(folder: Path) -> Run:
    """Reads a run, finished or not.

    Raises:
        SettingsError: there is none, it has another format, or it is damaged.
    """
    path = folder / RUN_FILE
    try:
        meta = msgspec.json.decode(path.read_bytes(), type=RunMeta)
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror})") from error
    except msgspec.DecodeError as error:
        raise SettingsError(f"{path} is no run of ours: {error}") from error
    if meta.format != RUN_FORMAT:
        raise SettingsError(f"{path} has format {meta.format}; this Baton reads {RUN_FORMAT}")
    records = read_records(folder)
    scrapes = _lines(folder / SCRAPES, Scrape) if (folder / SCRAPES).exists() else []
    if not meta.complete and not any(p.code == "interrupted" for p in meta.problems):
        meta.ended_s = max((r.end_s for r in records if r.end_s is not None), default=0.0)
        meta.problems = [
            *meta.problems,
            Problem("interrupted", f"The run ended early, with {len(records)} requests recorded."),
        ]
    return Run(meta=meta, records=records, scrapes=scrapes)


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob(PART.format("*")))


def _lines(path: Path, kind: type[T]) -> list[T]:
    decoder = msgspec.json.Decoder(kind)
    found: list[T] = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    # Torn by a death in the middle of a write.
                    break
                try:
                    found.append(decoder.decode(line))
                except msgspec.DecodeError as error:
                    raise SettingsError(f"{path}:{number}: not a record: {error}") from error
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror})") from error
    return found
