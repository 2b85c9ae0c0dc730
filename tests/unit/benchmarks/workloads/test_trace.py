"""Recorded traces: every format, every kind of damage, windows, ticks, lengths, classes."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.errors import WorkloadError
from benchmarks.plan import Piece, Plan, Slo
from benchmarks.workloads import build_plan
from benchmarks.workloads.files import parse_workload
from tests.unit.benchmarks.workloads.texts import TRACES, of_trace

FORMATS = {
    "azure-2023.csv": ("azure", 24, {}),
    "azure-2024.csv": ("azure", 22, {}),
    "mooncake.jsonl": ("mooncake", 28, {}),
    "burstgpt.csv": ("burstgpt", 23, {"failed": 3}),
    "burstgpt-sessions.csv": ("burstgpt", 19, {"failed": 1}),
    "requests.jsonl": ("requests", 24, {}),
    "run-requests.jsonl": ("requests", 20, {}),
}


def times(plan: Plan) -> list[float]:
    return [request.at_s for request in plan.requests if request.at_s is not None]


def write(tmp_path: Path, *lines: str) -> Path:
    file = tmp_path / "trace"
    file.write_text("\n".join(lines) + "\n")
    return file


def requests_file(tmp_path: Path, *rows: tuple[float, int, int | None]) -> Path:
    names = ("at_s", "prompt_tokens", "output_tokens")
    return write(tmp_path, *(json.dumps(dict(zip(names, row, strict=True))) for row in rows))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_becomes_a_plan(name: str) -> None:
    """All usable rows are there, in order; failed ones are counted; the content is hashed."""
    form, count, dropped = FORMATS[name]
    file = TRACES / name
    plan = build_plan(of_trace(file, form))
    assert (len(plan.requests), plan.dropped) == (count, dropped)
    at = times(plan)
    assert at == sorted(at)
    assert len(at) == count
    assert at[-1] < plan.duration_s
    assert plan.trace_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert [request.index for request in plan.requests] == list(range(count))
    assert all(request.prompt_tokens > 0 for request in plan.requests)
    assert plan == build_plan(of_trace(file, form))
    assert plan.version != build_plan(of_trace(file, form), rate_scale=2).version


def test_the_version_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    """A copy elsewhere is the same schedule; another content is another one."""
    copy = tmp_path / "copy.csv"
    copy.write_bytes((TRACES / "azure-2023.csv").read_bytes())
    version = build_plan(of_trace(TRACES / "azure-2023.csv", "azure")).version
    assert build_plan(of_trace(copy, "azure")).version == version
    copy.write_bytes(copy.read_bytes().replace(b",144,", b",145,", 1))
    assert build_plan(of_trace(copy, "azure")).version != version


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"


def test_dates_keep_all_their_digits(tmp_path: Path) -> None:
    """Seven digits of a second survive, over midnight and with an offset from UTC."""
    file = write(
        tmp_path,
        AZURE,
        "2023-12-31 23:59:59.9999999,10,1",
        "2024-01-01 00:00:00.0000001,10,1",
        "2024-01-01 01:00:00.5000003+01:00,10,1",
        "2024-01-01T00:00:01Z,10,1",
    )
    at = times(build_plan(of_trace(file, "azure")))
    assert at == [0.0, 2e-7, 0.5000004, 1.0000001]


def test_azure_rows(tmp_path: Path) -> None:
    """Lengths are taken over, columns are found by name, rows without an answer are counted."""
    file = write(
        tmp_path,
        "GeneratedTokens,TIMESTAMP,ContextTokens",
        "7,2024-01-01 00:00:00,30",
        "0,2024-01-01 00:00:01,30",
    )
    plan = build_plan(of_trace(file, "azure"))
    (request,) = plan.requests
    assert (request.prompt_tokens, request.output_tokens, request.class_name) == (30, 7, "trace")
    assert plan.dropped == {"empty": 1}


def test_mooncake_blocks_are_pieces() -> None:
    """One key per hash, 512 tokens each, the last one the rest: equal hashes share text."""
    plan = build_plan(of_trace(TRACES / "mooncake.jsonl", "mooncake", more="jitter: false"))
    first, second = plan.requests[:2]
    assert first.pieces == (Piece("block/0", 512), Piece("block/1", 512), Piece("block/2", 260))
    assert second.pieces == (Piece("block/0", 512), Piece("block/3", 408))
    assert first.output_tokens == 141
    assert times(plan)[:5] == [0, 0, 0, 0, 3]


def test_a_tick_is_spread_in_its_order() -> None:
    """Rows of one tick lie apart within it, in the file's order; the seed decides where."""
    file = TRACES / "mooncake.jsonl"
    plain = build_plan(of_trace(file, "mooncake", more="jitter: false"))
    spread = build_plan(of_trace(file, "mooncake"))
    assert len(set(times(spread))) == len(spread.requests) == 28
    for was, now in zip(plain.requests, spread.requests, strict=True):
        assert was.at_s is not None
        assert now.at_s is not None
        assert was.at_s <= now.at_s < was.at_s + 3
        assert now.pieces == was.pieces
    assert times(build_plan(of_trace(file, "mooncake"), seed=1)) != times(spread)


def test_bursts_of_the_own_format_stay_bursts(tmp_path: Path) -> None:
    """Equal times that somebody wrote down are meant."""
    file = requests_file(tmp_path, (0.0, 5, 5), (0.0, 6, 5), (4.0, 7, 5))
    assert times(build_plan(of_trace(file, "requests"))) == [0, 0, 4]


def test_own_rows_carry_their_options() -> None:
    """Class, model, tenant and priority are taken over; a free answer stays free."""
    plan = build_plan(of_trace(TRACES / "requests.jsonl", "requests"))
    first = plan.requests[0]
    assert (first.class_name, first.model) == ("batch", "adapter-a")
    assert (first.tenant, first.priority) == ("team-0", 10)
    second = plan.requests[1]
    assert (second.class_name, second.model, second.tenant) == ("trace", None, None)
    assert plan.requests[11].output_tokens is None
    assert times(plan)[0] == 0.112


def test_a_run_can_be_sent_again() -> None:
    """Records keep schedule, class and lengths; where the server counted none, the plan's."""
    rows = [json.loads(line) for line in (TRACES / "run-requests.jsonl").read_text().splitlines()]
    plan = build_plan(of_trace(TRACES / "run-requests.jsonl", "requests"))
    for row, request in zip(rows, plan.requests, strict=True):
        assert request.at_s == pytest.approx(row["scheduled_s"], abs=1e-9)
        assert request.class_name == row["class_name"]
        failed = row["error"] is not None
        assert request.prompt_tokens == row["planned_prompt_tokens" if failed else "prompt_tokens"]
        assert request.output_tokens == row["planned_output_tokens"]
        assert request.model is None


def test_windows_and_durations(tmp_path: Path) -> None:
    """A window is cut in the trace's time; the run's duration cuts after scaling."""
    file = requests_file(tmp_path, *((float(n), 10 + n, 5) for n in range(100)))
    plan = build_plan(of_trace(file, "requests", more="start_s: 20, duration_s: 30"))
    assert [request.prompt_tokens for request in plan.requests] == list(range(30, 60))
    assert (times(plan)[0], plan.duration_s) == (0, 30)
    plan = build_plan(of_trace(file, "requests", duration_s=10), rate_scale=4)
    assert (len(plan.requests), plan.duration_s) == (40, 10)
    plan = build_plan(of_trace(file, "requests", duration_s=1000), rate_scale=4)
    assert (len(plan.requests), plan.duration_s) == (100, 25)
    plan = build_plan(of_trace(file, "requests"), time_scale=2)
    assert (times(plan)[-1], plan.duration_s) == (198, 200)
    plan = build_plan(of_trace(file, "requests"), duration_s=7, time_scale=2)
    assert (len(plan.requests), plan.duration_s) == (4, 7)
    assert build_plan(of_trace(file, "requests")).offered_rps == pytest.approx(1)


def test_a_window_without_rows_is_refused(tmp_path: Path) -> None:
    """An empty run would measure nothing; the message says what became of the rows."""
    file = requests_file(tmp_path, (1.0, 100, 5), (2.0, 100, 5))
    with pytest.raises(WorkloadError, match=r"holds no requests from 50 s on"):
        build_plan(of_trace(file, "requests", more="start_s: 50"))
    with pytest.raises(WorkloadError, match=r"within 3 s; 2 rows left out \(too_long\)"):
        build_plan(of_trace(file, "requests", more="max_prompt_tokens: 50"))


@given(scale=st.floats(0.1, 20))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_rate_scale_compresses_time(scale: float) -> None:
    """The same rows in less time, spread ticks included."""
    workload = of_trace(TRACES / "burstgpt.csv", "burstgpt")
    base, scaled = build_plan(workload), build_plan(workload, rate_scale=scale)
    assert scaled.duration_s == pytest.approx(base.duration_s / scale)
    assert times(scaled) == pytest.approx([at / scale for at in times(base)])


def test_rows_out_of_order_are_sorted(tmp_path: Path) -> None:
    """By time, and the first in time is second zero."""
    file = write(tmp_path, AZURE, "2024-01-01 00:00:05,11,1", "2024-01-01 00:00:02,12,1")
    plan = build_plan(of_trace(file, "azure"))
    assert [(r.at_s, r.prompt_tokens) for r in plan.requests] == [(0, 12), (3, 11)]


def test_time_units(tmp_path: Path) -> None:
    """A unit that is given replaces the format's own."""
    lines = [
        f'{{"timestamp": {t}, "input_length": 5, "output_length": 1, "hash_ids": [1]}}'
        for t in (1000, 1500)
    ]
    file = write(tmp_path, *lines)
    for more, last in (("", 0.5), (", time_unit: s", 500.0), (", time_unit: us", 0.0005)):
        plan = build_plan(of_trace(file, "mooncake", more="jitter: false" + more))
        assert times(plan) == pytest.approx([0, last])


def test_long_rows_are_dropped_or_clipped(tmp_path: Path) -> None:
    """Dropped ones are counted; clipped ones lose the end of their prompts."""
    file = requests_file(tmp_path, (0.0, 100, 5), (1.0, 900, 5), (2.0, 100, 50), (3.0, 100, None))
    limits = "max_prompt_tokens: 500, max_output_tokens: 20"
    plan = build_plan(of_trace(file, "requests", more=limits))
    assert [request.prompt_tokens for request in plan.requests] == [100, 100]
    assert plan.dropped == {"too_long": 2}
    plan = build_plan(of_trace(file, "requests", more=limits + ", too_long: clip"))
    lengths = [(request.prompt_tokens, request.output_tokens) for request in plan.requests]
    assert lengths == [(100, 5), (500, 5), (100, 20), (100, None)]
    assert plan.dropped == {}
    plan = build_plan(of_trace(file, "requests", more="max_prompt_tokens: 500"))
    assert [request.output_tokens for request in plan.requests] == [5, 50, None]
    more = "max_prompt_tokens: 600, too_long: clip"
    plan = build_plan(of_trace(TRACES / "mooncake.jsonl", "mooncake", more=more))
    assert plan.requests[0].pieces == (Piece("block/0", 512), Piece("block/1", 88))


def test_classes_by_prompt_length(tmp_path: Path) -> None:
    """The smallest bound that takes a prompt, by its recorded length; each with its level."""
    file = requests_file(tmp_path, (0.0, 512, 5), (1.0, 513, 5), (2.0, 64, 5), (3.0, 65, 5))
    classes = (
        "classes: {long: {}, short: {max_prompt_tokens: 512, slo: {ttft_s: 1}}, "
        "tiny: {max_prompt_tokens: 64}}, max_prompt_tokens: 100, too_long: clip"
    )
    workload = parse_workload(
        "apiVersion: baton/v1\nkind: Workload\nmetadata: {name: t}\nspec:\n  slo: {e2e_s: 9}\n"
        f'  trace: {{format: requests, file: "{file}", {classes}}}\n',
        source="w.yaml",
    )
    plan = build_plan(workload)
    assert [request.class_name for request in plan.requests] == ["short", "long", "tiny", "short"]
    assert plan.slos == {"short": Slo(ttft_s=1), "long": Slo(e2e_s=9), "tiny": Slo(e2e_s=9)}


# damage -----------------------------------------------------------------------------------------

MOON = '{"timestamp": 0, "input_length": 600, "output_length": 3, "hash_ids": [1, 2]}'
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
OWN = '{"at_s": 0, "prompt_tokens": 5, "output_tokens": 5}'

DAMAGE = [
    ("azure", ["TIMESTAMP,ContextTokens"], "1: expected a header with the columns TIMESTAMP, Con"),
    ("azure", ["2023-11-16 18:15:46.68,144,6"], "1: expected a header with the columns"),
    ("azure", [AZURE, "16.11.2023 18:15,1,1"], "2: TIMESTAMP: expected a date and time such as"),
    ("azure", [AZURE, "2023-13-16 18:15:46,1,1"], "2: TIMESTAMP: there is no such date or time"),
    ("azure", [AZURE, "2023-11-16 25:15:46,1,1"], "2: TIMESTAMP: there is no such date or time"),
    ("azure", [AZURE, "", "2023-11-16 18:15:46,1"], "3: expected 3 columns as in the header (got "),
    ("azure", [AZURE, "2023-11-16 18:15:46,x,1"], "2: ContextTokens: expected a whole number of"),
    ("azure", [AZURE, "2023-11-16 18:15:46,1,-1"], "2: GeneratedTokens: expected a whole number"),
    ("azure", [AZURE, "2023-11-16 18:15:46,1.5,1"], "2: ContextTokens: expected a whole number"),
    ("azure", [AZURE, "2023-11-16 18:15:46,99999999,1"], "2: ContextTokens: must be from 0 to"),
    ("azure", [AZURE, '"2023-11-16 18:15:46,1,1'], "2: is not valid CSV"),
    ("azure", [AZURE], ": holds no requests"),
    ("azure", [""], ": holds no requests; expected rows of format azure"),
    ("burstgpt", [BURST, "x,m,1,1,2,API log"], "2: Timestamp: expected a number"),
    ("burstgpt", [BURST, "nan,m,1,1,2,API log"], "2: Timestamp: expected a number"),
    ("burstgpt", [BURST, "-1,m,1,1,2,API log"], "2: Timestamp: is negative or too large"),
    ("burstgpt", [BURST, "1e99,m,1,1,2,API log"], "2: Timestamp: is negative or too large"),
    ("burstgpt", [BURST, "1,m,1,1"], "2: expected 6 columns as in the header (got 4)"),
    ("mooncake", [MOON, MOON[:30]], "2: expected a JSON object"),
    ("mooncake", [MOON, "[1]"], "2: expected `object`, got `array`".replace("`", "")),
    ("mooncake", [MOON.replace("600", '"600"')], "1: expected int, got str in input_length"),
    ("mooncake", [MOON.replace(', "hash_ids": [1, 2]', "")], "required field hash_ids"),
    ("mooncake", [MOON.replace("600", "1025")], "1: hash_ids: expected 3 of them, one per 512"),
    ("mooncake", [MOON.replace("600", "512")], "hash_ids: expected 1 of them, one per 512 tokens"),
    ("mooncake", [MOON.replace("[1, 2]", "[1, 2.5]")], "1: expected int, got float in hash_ids[1]"),
    ("mooncake", [MOON.replace(": 3", ": -3")], "1: output_length: must be from 0 to"),
    ("mooncake", [MOON.replace('timestamp": 0', 'timestamp": -5')], "1: timestamp: is negative"),
    ("mooncake", [MOON.replace('timestamp": 0', 'timestamp": null')], "in timestamp"),
    ("mooncake", ["{" * 100_000], "1: expected a JSON object"),
    ("requests", [OWN, OWN.replace('"at_s": 0, ', "")], "2: object missing required field at_s"),
    ("requests", [OWN.replace("}", ', "prio": 1}')], "1: object contains unknown field prio"),
    ("requests", [OWN.replace("}", ', "class": ""}')], "1: class: expected 1 to 200 printable"),
    ("requests", [OWN.replace("}", ', "class": "a\\nb"}')], "1: class: expected 1 to 200"),
    ("requests", [OWN.replace('"at_s": 0', '"at_s": "0"')], "1: expected int | float, got str in"),
    ("requests", ['{"scheduled_s": 1}'], "1: object missing required field index"),
    ("requests", [" " * (1024 * 1024 + 1)], "1: is longer than 1048576 bytes"),
]


@pytest.mark.parametrize(
    ("form", "lines", "expected"),
    DAMAGE,
    ids=[f"{form}-{n}" for n, (form, _, _) in enumerate(DAMAGE)],
)
def test_damage_is_found_with_its_line(
    tmp_path: Path, form: str, lines: list[str], expected: str
) -> None:
    """A broken file is refused before anything is sent: file, line, what was expected."""
    file = write(tmp_path, *lines)
    with pytest.raises(WorkloadError) as caught:
        build_plan(of_trace(file, form))
    message = str(caught.value)
    assert message.startswith(f"{file}:")
    assert expected in message
    assert message.isprintable()
    assert len(message) < 400


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """Missing files, folders and other bytes than UTF-8 are refused by name."""
    with pytest.raises(WorkloadError, match="missing: no such file"):
        build_plan(of_trace(tmp_path / "missing", "azure"))
    with pytest.raises(WorkloadError, match="is not a file"):
        build_plan(of_trace(tmp_path, "azure"))
    file = tmp_path / "latin"
    file.write_bytes(AZURE.encode() + b"\n\xff\xfe\n")
    with pytest.raises(WorkloadError, match="latin:2: is not UTF-8 text"):
        build_plan(of_trace(file, "azure"))


def test_the_number_of_rows_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading stops at the bound."""
    monkeypatch.setattr("benchmarks.workloads.trace_rows.MAX_ROWS", 10)
    with pytest.raises(WorkloadError, match=r"azure-2023.csv:12: has more than 10 rows"):
        build_plan(of_trace(TRACES / "azure-2023.csv", "azure"))


def azure_file(tmp_path: Path, *seconds: float) -> Path:
    rows = [f"2024-05-10 00:{int(s) // 60:02}:{s % 60:09.6f},10,5" for s in seconds]
    return write(tmp_path, "TIMESTAMP,ContextTokens,GeneratedTokens", *rows)


def test_a_part_of_a_trace_larger_than_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published traces of 2024 have tens of millions of rows: the part that is asked for is
    what counts against the bound, and the hash is of the whole file all the same."""
    monkeypatch.setattr("benchmarks.workloads.trace_rows.MAX_ROWS", 200)
    file = azure_file(tmp_path, *range(1000))
    with pytest.raises(WorkloadError, match=r"more than 200 rows; .* start_s and duration_s"):
        build_plan(of_trace(file, "azure"))
    plan = build_plan(of_trace(file, "azure", more="start_s: 500, duration_s: 100"))
    assert times(plan) == list(range(100))
    assert plan.duration_s == 100
    assert plan.trace_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    # The sending time asked for counts as well, with its scale: 50 s at half the speed are 25.
    short = build_plan(of_trace(file, "azure", more="start_s: 500"), duration_s=50, time_scale=2)
    assert times(short) == [2.0 * n for n in range(25)]


def test_a_part_of_a_trace_is_in_order_of_time(tmp_path: Path) -> None:
    """Rows may be a little out of order; one from before the first moves second 0 of what was
    left out already, and is refused."""
    mixed = azure_file(tmp_path, 0, 20, 12, 11, 13, 30, 25)
    assert times(build_plan(of_trace(mixed, "azure", more="start_s: 10, duration_s: 10"))) == [
        1,
        2,
        3,
    ]
    with pytest.raises(WorkloadError, match="holds no requests from 99 s on"):
        build_plan(of_trace(mixed, "azure", more="start_s: 99"))
    wrong = azure_file(tmp_path, 5, 6, 0, 30)
    with pytest.raises(WorkloadError, match=r"trace:4: is earlier than the first row.*in order"):
        build_plan(of_trace(wrong, "azure", more="start_s: 10"))
    # A whole trace may come in any order.
    assert times(build_plan(of_trace(wrong, "azure"))) == [0, 5, 6, 30]


def test_byte_order_marks_and_blank_lines_are_no_damage(tmp_path: Path) -> None:
    """Files of other systems are read as they are."""
    file = tmp_path / "bom.csv"
    file.write_bytes(b"\xef\xbb\xbf" + AZURE.encode() + b"\r\n\r\n2024-01-01 00:00:00,5,5\r\n\r\n")
    assert len(build_plan(of_trace(file, "azure")).requests) == 1


@given(
    cuts=st.lists(
        st.tuples(st.integers(0, 2500), st.integers(0, 9), st.binary(max_size=4)),
        min_size=1,
        max_size=3,
    ),
    name=st.sampled_from(sorted(FORMATS)),
)
@settings(max_examples=120, deadline=None, derandomize=True)
def test_any_damage_is_read_or_explained(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[tuple[int, int, bytes]], name: str
) -> None:
    """Whatever happens to a file, it gives a plan or one line that says where it is broken."""
    raw = (TRACES / name).read_bytes()
    for start, length, inserted in cuts:
        raw = raw[:start] + inserted + raw[start + length :]
    file = tmp_path_factory.getbasetemp() / f"damaged-{name}"
    file.write_bytes(raw)
    problem: str | None = None
    try:
        plan = build_plan(of_trace(file, FORMATS[name][0]))
    except WorkloadError as error:
        problem = str(error)
    else:
        assert all(0 <= at < plan.duration_s and math.isfinite(at) for at in times(plan))
    assert problem is None or (problem.isprintable() and len(problem) < 500)
