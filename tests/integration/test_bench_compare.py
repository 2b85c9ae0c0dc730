"""Whole comparisons, against mock servers with known delays: real HTTP, real child processes."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import psutil
import pytest

from baton.errors import EngineStartError, TargetError
from baton.process import Child
from benchmarks.compare import (
    CompareOptions,
    Events,
    analyse_folder,
    compare,
    parse_arms,
    read_result,
)
from benchmarks.compare.stacks import Stack, StackSettings
from benchmarks.comparison import CompareResult, Verdict
from benchmarks.load import read_run
from benchmarks.mock import Delay, Script, Shape, mock_process
from benchmarks.plan import Slo
from benchmarks.report import write_reports
from benchmarks.workloads import Workload, load_workload

WORKLOAD = """\
apiVersion: baton/v1
kind: Workload
metadata: {name: test, description: Streams that keep a mock busy.}
spec:
  duration_s: 1.2
  classes:
    stream:
      arrivals: {kind: closed, concurrency: 4}
      prompt_tokens: 30
      output_tokens: 10
    open:
      arrivals: {kind: poisson, rate: 20}
      prompt_tokens: 60
      output_tokens: 5
"""

pytestmark = pytest.mark.usefixtures("patient")

SLOW = Script(ttft=Delay(0.02), itl=Delay(0.012, Shape.UNIFORM, 0.3))
FAST = Script(ttft=Delay(0.02), itl=Delay(0.006, Shape.UNIFORM, 0.3))


def workload(folder: Path) -> Workload:
    file = folder / "test.yaml"
    file.write_text(WORKLOAD)
    return load_workload(file)


def verdict(result: CompareResult, class_name: str, key: str) -> Verdict:
    (found,) = [v for v in result.verdicts if (v.class_name, v.key) == (class_name, key)]
    return found


def processes_of(folder: Path) -> list[list[str]]:
    """Command lines of all processes that name a path in ``folder``."""
    found = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
    return [words for words in found if any(str(folder) in word for word in words)]


async def test_the_faster_server_wins_by_the_ratio_of_its_delays(tmp_path: Path) -> None:
    """TPOT differs by two, with an interval that holds it; the equal first token is a tie."""
    options = CompareOptions(pairs=8, warmup_s=0.2, slo=Slo(tpot_s=0.008))
    async with mock_process(SLOW) as slow, mock_process(FAST) as fast:
        arms = parse_arms([f"slow={slow.url}", f"fast={fast.url}"])
        result = await compare(arms, workload(tmp_path), options, folder=tmp_path / "result")
    assert result.complete
    assert [block.arm for block in result.blocks[:4]] == ["slow", "fast", "fast", "slow"]
    assert len({block.salt for block in result.blocks}) == 16
    assert all(block.counted for block in result.blocks), result.problems
    tpot = verdict(result, "stream", "tpot_p50")
    assert tpot.outcome == "better"
    assert tpot.low is not None
    assert tpot.high is not None
    assert tpot.low <= 0.5 <= tpot.high or tpot.ratio == pytest.approx(0.5, rel=0.03)
    assert verdict(result, "open", "ttft_p50").outcome == "tie"
    assert verdict(result, "all", "goodput_rps").outcome == "better"
    assert "fast" in result.headline[0]
    # The mock's own counters were scraped, and tell the same story.
    assert {entry.arm for entry in result.agreements} == {"slow", "fast"}
    assert all(entry.agrees for entry in result.agreements), result.agreements


async def test_a_result_can_be_read_computed_and_reported_again(tmp_path: Path) -> None:
    """Figures follow from the records on disk; too few pairs are said to be too few."""
    folder = tmp_path / "result"
    options = CompareOptions(pairs=2, warmup_s=0.0)
    async with mock_process(FAST) as one:
        arms = parse_arms([f"a={one.url}", f"b={one.url}"])
        result = await compare(arms, workload(tmp_path), options, folder=folder)
    again = analyse_folder(folder)
    assert again.verdicts == result.verdicts
    assert read_result(folder).metrics == result.metrics
    assert {v.outcome for v in result.verdicts} == {"unknown"}
    assert any(problem.code == "too_few" for problem in result.problems)
    names = {path.name for path in write_reports(result, folder)}
    assert names == {"report.html", "report.md", "report.svg"}
    block = result.blocks[0]
    assert read_run(folder / block.folder).records


async def test_an_interrupted_comparison_keeps_what_it_has(tmp_path: Path) -> None:
    """The stop in the second block: the first one stands, the second one does not count."""
    stop = asyncio.Event()
    events = Events(block=lambda number, _count, _block: stop.set() if number == 1 else None)
    folder = tmp_path / "result"
    async with mock_process(FAST) as one:
        arms = parse_arms([f"a={one.url}", f"b={one.url}"])
        result = await compare(
            arms,
            workload(tmp_path),
            CompareOptions(pairs=5, warmup_s=0.0),
            folder=folder,
            events=events,
            stop=stop,
        )
    assert not result.complete
    assert result.problems[0].code == "interrupted"
    assert 1 <= len(result.blocks) <= 2
    assert read_run(folder / result.blocks[0].folder).meta.valid
    assert not read_result(folder).complete
    assert "interrupted" in (write_reports(result, folder)[1]).read_text().lower()


async def test_an_endpoint_that_is_not_there_ends_it_at_once(tmp_path: Path) -> None:
    """Before anything is measured, with the address."""
    arms = parse_arms(["a=http://127.0.0.1:9", "b=http://127.0.0.1:9"])
    with pytest.raises(TargetError, match=r"127\.0\.0\.1:9"):
        await compare(arms, workload(tmp_path), CompareOptions(), folder=tmp_path / "result")


async def test_a_stop_while_profiles_start_ends_soon_and_says_so(tmp_path: Path) -> None:
    """Nothing was measured: no verdict, a report all the same, nothing left running."""
    stop = asyncio.Event()
    said: list[str] = []

    def say(sentence: str) -> None:
        # The moment at which a start begins, whatever the machine's speed: a timer could come
        # after `baton up` has refused the empty folder.
        said.append(sentence)
        if sentence.startswith("starting"):
            stop.set()

    options = CompareOptions(pairs=5, model=str(tmp_path), start_timeout_s=60)
    arms = parse_arms(["cpu-standard", "cpu-disaggregated"])
    folder = tmp_path / "result"
    async with asyncio.timeout(30):
        result = await compare(
            arms, workload(tmp_path), options, folder=folder, events=Events(say=say), stop=stop
        )
    assert said == ["starting cpu-standard", "stopping"]
    assert not result.complete
    assert result.blocks == []
    assert result.problems[0].code == "interrupted"
    assert write_reports(result, folder)
    assert processes_of(folder) == []


async def test_a_profile_that_dies_while_it_is_measured_is_said(tmp_path: Path) -> None:
    """In words, when it is to be parked or to go on: not as a process that is not there."""
    (arm, _) = parse_arms(["cpu-standard", "cpu-disaggregated"])
    settings = StackSettings(model=None, cpu_threads=None, timeout_s=5.0)
    stack = Stack(arm, tmp_path, settings, lambda _: None)
    stack._child = Child(
        "up", [sys.executable, "-c", "print('killed')"], {}, on_line=lambda _: None
    )
    await stack._child.start()
    assert await stack._child.wait() == 0
    with pytest.raises(
        EngineStartError, match=r"cpu-standard ended while it was measured(.|\n)*killed"
    ):
        stack.park()
    stack.url = "http://127.0.0.1:9"
    with pytest.raises(EngineStartError, match="ended while it was parked"):
        await stack.resume()


async def test_a_profile_that_cannot_start_ends_it_with_its_words(tmp_path: Path) -> None:
    """An empty folder is no model: the error of `baton up`, and where its logs are."""
    options = CompareOptions(model=str(tmp_path), start_timeout_s=60)
    arms = parse_arms(["cpu-standard", "cpu-disaggregated"])
    with pytest.raises(EngineStartError, match=r"cpu-standard ended with status 2(.|\n)*config"):
        await compare(arms, workload(tmp_path), options, folder=tmp_path / "result")
