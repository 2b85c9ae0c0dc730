"""A run on disk: readable whatever happened to the process that wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest

from baton.errors import SettingsError
from benchmarks.load import read_parquet, read_run, write_meta, write_parquet, write_scrapes
from benchmarks.load.files import PART, REQUESTS, RecordFile, merge_parts, new_folder
from benchmarks.plan import Slo
from benchmarks.records import Problem, RequestRecord, Run, RunMeta, Scrape


def record(index: int, **more: object) -> RequestRecord:
    fields: dict[str, object] = {
        "index": index,
        "class_name": "short",
        "scheduled_s": index * 0.5,
        "sent_s": index * 0.5 + 0.001,
        "end_s": index * 0.5 + 0.2,
        "chunks": 2,
        "chunks_s": [0.1, 0.2],
        **more,
    }
    return RequestRecord(**fields)  # type: ignore[arg-type]


def meta(**more: object) -> RunMeta:
    fields: dict[str, object] = {
        "id": "r",
        "started_wall_s": 1.0,
        "duration_s": 2.0,
        "ended_s": 2.5,
        "complete": True,
        "salt": "s",
        "plan": {"workload": "w", "rate_scale": 1.0},
        "target": {"url": "http://x"},
        "slos": {"short": Slo(ttft_s=0.5)},
        "problems": [Problem("errors", "one failed", fatal=False)],
        **more,
    }
    return RunMeta(**fields)  # type: ignore[arg-type]


def write(folder: Path, records: list[RequestRecord], name: str = REQUESTS) -> None:
    file = RecordFile(folder / name)
    for entry in records:
        file.add(entry)
    file.close()


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    """In words, at the write that does not fit."""
    (tmp_path / "full").symlink_to("/dev/full")
    file = RecordFile(tmp_path / "full")
    file.add(record(0))
    with pytest.raises(SettingsError, match=r"full cannot be written \(No space left"):
        file.tick(100.0)
    with pytest.raises(SettingsError, match="cannot be written"):
        file.close()
    file.close()


def test_round_trip(tmp_path: Path) -> None:
    """What was written is read again, records by schedule."""
    records = [record(0), record(1, error="timeout", detail="late", tenant="t", priority=3)]
    scrapes = [Scrape(at_s=0.0, source="router", role="router", values={'a{b="c"}': 1.0})]
    write_meta(tmp_path, meta())
    write(tmp_path, records[::-1])
    write_scrapes(tmp_path, scrapes)
    assert read_run(tmp_path) == Run(meta=meta(), records=records, scrapes=scrapes)


def test_torn_last_line(tmp_path: Path) -> None:
    """A process that was killed in the middle of a write loses that line alone, and the run says
    that it was interrupted."""
    write_meta(tmp_path, meta(complete=False, ended_s=0.0))
    write(tmp_path, [record(0), record(1)])
    whole = (tmp_path / REQUESTS).read_bytes()
    (tmp_path / REQUESTS).write_bytes(whole[:-20])
    run = read_run(tmp_path)
    assert [r.index for r in run.records] == [0]
    assert [p.code for p in run.meta.problems] == ["errors", "interrupted"]
    assert run.meta.ended_s == pytest.approx(0.2)


def test_broken_line_in_the_middle(tmp_path: Path) -> None:
    """Damage anywhere else is named with file and line."""
    write_meta(tmp_path, meta())
    write(tmp_path, [record(0)])
    with (tmp_path / REQUESTS).open("ab") as file:
        file.write(b"{\n")
    with pytest.raises(SettingsError, match=r"requests\.jsonl:2: not a record"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{}", "no run of ours"),
        ('{"format": "other/v9"}', "no run of ours"),
    ],
)
def test_no_run(tmp_path: Path, text: str | None, message: str) -> None:
    """A folder without a run, or with something else, is said to be so."""
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(SettingsError, match=message):
        read_run(tmp_path)


def test_another_format(tmp_path: Path) -> None:
    """A run of a later Baton is not guessed at."""
    write_meta(tmp_path, meta(format="baton/bench-run/v9"))
    with pytest.raises(SettingsError, match="this Baton reads"):
        read_run(tmp_path)


def test_used_folder(tmp_path: Path) -> None:
    """A run never writes over another one."""
    new_folder(tmp_path / "a" / "b")
    write_meta(tmp_path / "a" / "b", meta())
    with pytest.raises(SettingsError, match="holds a run already"):
        new_folder(tmp_path / "a" / "b")


def test_parts(tmp_path: Path) -> None:
    """Files of several processes are read as they are, and the same after they were merged."""
    write_meta(tmp_path, meta())
    write(tmp_path, [record(0), record(2)], PART.format(0))
    write(tmp_path, [record(1), record(3)], PART.format(1))
    before = read_run(tmp_path).records
    merge_parts(tmp_path)
    assert [r.index for r in before] == [0, 1, 2, 3]
    assert read_run(tmp_path).records == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [REQUESTS, "run.json"]


def test_parquet(tmp_path: Path) -> None:
    """Records and the run's own data survive Parquet, with nothing where nothing was."""
    run = Run(
        meta=meta(),
        records=[record(0, cached_tokens=5), record(1, sent_s=None, chunks_s=[], error="connect")],
    )
    write_parquet(run, tmp_path / "run.parquet")
    assert read_parquet(tmp_path / "run.parquet") == run
    assert [path.name for path in tmp_path.iterdir()] == ["run.parquet"]


def test_no_parquet(tmp_path: Path) -> None:
    """Another file is said to be none."""
    (tmp_path / "x.parquet").write_bytes(b"hello")
    with pytest.raises(SettingsError, match="cannot be read"):
        read_parquet(tmp_path / "x.parquet")
