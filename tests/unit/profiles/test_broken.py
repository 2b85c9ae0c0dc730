"""Broken profiles: what is said about each, and on which line."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.errors import ProfileError
from profiles import parse_profile
from profiles.explain import MAX_PROBLEMS
from tests.unit.profiles.texts import DISAGGREGATED, STANDARD, changed

POOL = "      replicas: 2\n"
ARGS = "replicas: 2\n      engine_args:\n        "


def problems_of(text: str) -> list[str]:
    with pytest.raises(ProfileError) as caught:
        parse_profile(text, source="p.yaml")
    return list(caught.value.problems)


def test_the_example_texts_are_sound() -> None:
    """What the tables below break is accepted as it stands."""
    assert parse_profile(DISAGGREGATED, source="p.yaml").name == "example"
    assert parse_profile(STANDARD, source="p.yaml").name == "plain"


ONE_FIELD = [
    # presence
    ("kind: ServingProfile\n", "", "p.yaml:1: kind: is required"),
    ("  name: example\n", "", "p.yaml:3: metadata.name: is required"),
    ("    source: demo\n", "", "p.yaml:8: spec.model.source: is required"),
    (
        "    threshold_tokens: 256",
        "    {}",
        "p.yaml:11: spec.classify.threshold_tokens: is required",
    ),
    ("      accelerator: nvidia-l4\n", "", "p.yaml:17: spec.pools.decode.accelerator: is required"),
    # unknown fields
    (
        "replicas: 2",
        "replica: 2",
        "p.yaml:16: spec.pools.prefill.replica: is not a known field; did you mean replicas?",
    ),
    (
        "max_model_len: 8192",
        "maxModelLen: 8192",
        "p.yaml:10: spec.model.maxModelLen: is not a known field; did you mean max_model_len?",
    ),
    (
        "spec:\n",
        "threshold_tokens: 9\nspec:\n",
        "p.yaml:6: threshold_tokens: is not a known field here; it belongs at "
        "spec.classify.threshold_tokens",
    ),
    (
        "  limits:",
        "  fallback: {}\n  limits:",
        "p.yaml:24: spec.fallback: is not a known field (known here: mode, model,",
    ),
    ("spec:\n", "spec:\n  <<: {}\n", 'p.yaml:7: spec."<<": is not a known field'),
    # kinds
    ("replicas: 2", "replicas: 1.5", "p.yaml:16: spec.pools.prefill.replicas: must be a whole"),
    ("replicas: 2", "replicas: true", "prefill.replicas: must be a whole number (got true)"),
    (
        "replicas: 2",
        'replicas: "2"',
        'p.yaml:16: spec.pools.prefill.replicas: must be a whole number (got "2"; write the number '
        "without quotes)",
    ),
    (
        "replicas: 2",
        "replicas:",
        "p.yaml:16: spec.pools.prefill.replicas: must be a whole number (got null; leave the field "
        "out for its default)",
    ),
    ("replicas: 2", "replicas: 0x2", "spec.pools.prefill.replicas: must be a whole number (got"),
    ("in_flight: 64", "in_flight: 8Mi", "p.yaml:25: spec.limits.in_flight: must be a whole number"),
    (
        "total_s: 120",
        "total_s: 1:00",
        'p.yaml:23: spec.deadlines.total_s: must be a number (got "1',
    ),
    ("total_s: 120", "total_s: .inf", "p.yaml:23: spec.deadlines.total_s: must be a finite number"),
    ("total_s: 120", "total_s: .nan", "p.yaml:23: spec.deadlines.total_s: must be a finite number"),
    ("name: example", "name: 8", "p.yaml:4: metadata.name: must be text (got 8; put it in quotes)"),
    (
        POOL,
        POOL + "      enforce_eager: yes\n",
        'p.yaml:17: spec.pools.prefill.enforce_eager: must be true or false (got "yes")',
    ),
    ("  limits:\n    in_flight: 64", "  limits: 64", "p.yaml:24: spec.limits: must be a mapping"),
    ("  limits:\n    in_flight: 64", "  limits:", "p.yaml:24: spec.limits: must be a mapping of"),
    (
        "  limits:\n    in_flight: 64",
        "  limits: [1]",
        "spec.limits: must be a mapping of fields",
    ),
    # ranges
    ("replicas: 2", "replicas: 0", "p.yaml:16: spec.pools.prefill.replicas: must be at least 1"),
    ("replicas: 2", "replicas:\n        0", "p.yaml:17: spec.pools.prefill.replicas: must be at"),
    (
        "replicas: 2",
        "replicas: 5000",
        "spec.pools.prefill.replicas: must be at most 1000 (got",
    ),
    (
        "threshold_tokens: 256",
        "threshold_tokens: 0",
        "p.yaml:12: spec.classify.threshold_tokens:",
    ),
    (
        "total_s: 120",
        "total_s: 0",
        "p.yaml:23: spec.deadlines.total_s: must be more than 0 (got 0)",
    ),
    ("total_s: 120", "connect_s: -1", "p.yaml:23: spec.deadlines.connect_s: must be more than 0"),
    (
        "block_size: 64",
        "lease_s: 4",
        "p.yaml:21: spec.transfer.lease_s: must be at least 5 (got 4)",
    ),
    (
        "block_size: 64",
        "block_size: 48",
        "p.yaml:21: spec.transfer.block_size: must be one of 16, ",
    ),
    ("block_size: 64", "block_size: 64.0", "spec.transfer.block_size: must be a whole number (got"),
    (
        POOL,
        POOL + "      gpu_memory_utilization: 1.1\n",
        "p.yaml:17: spec.pools.prefill.gpu_memory_utilization: must be at most 1 (got 1.1)",
    ),
    (
        POOL,
        POOL + "      gpu_memory_utilization: 0\n",
        "p.yaml:17: spec.pools.prefill.gpu_memory_utilization: must be more than 0 (got 0)",
    ),
    # choices and spellings
    ("baton/v1", "baton/v2", 'p.yaml:1: apiVersion: must be baton/v1 (got "baton/v2")'),
    (
        "mode: disaggregated",
        "mode: disagregated",
        "p.yaml:7: spec.mode: must be one of disaggregated or standard "
        '(got "disagregated"; did you mean disaggregated?)',
    ),
    (
        "    source: demo\n",
        "    source: demo\n    dtype: bf16\n",
        "p.yaml:10: spec.model.dtype: must be one of auto, bfloat16, float16 or float32",
    ),
    (
        "block_size: 64",
        "transport: ucx",
        'p.yaml:21: spec.transfer.transport: must be one of auto, tcp or rdma (got "ucx")',
    ),
    (
        "name: example",
        "name: Example_1",
        "p.yaml:4: metadata.name: must be lower-case letters,",
    ),
    ("name: example", f"name: {'a' * 40}", "p.yaml:4: metadata.name: must have at most 39"),
    ("name: example", 'name: ""', "p.yaml:4: metadata.name: must not be empty"),
    ("nvidia-l4", "NVIDIA L4", "p.yaml:18: spec.pools.decode.accelerator: must be lower-case"),
    ("source: demo", "source: s3://b/m", "p.yaml:9: spec.model.source: must not be a URL"),
    ("source: demo", "source: a/b/c", 'p.yaml:9: spec.model.source: must be "demo", a folder'),
    ("source: demo", 'source: "--port"', 'p.yaml:9: spec.model.source: must be "demo", a folder'),
    (
        "source: demo",
        'source: "a "',
        "p.yaml:9: spec.model.source: must be text without spaces at ",
    ),
    (
        "source: demo",
        "source: /models/..",
        'p.yaml:9: spec.model.source: gives no usable name (".."); set model.served_name as well',
    ),
    # engine flags
    (
        "replicas: 2",
        ARGS + "model: x",
        "p.yaml:18: spec.pools.prefill.engine_args.model: is set by Baton:",
    ),
    (
        "replicas: 2",
        ARGS + "ssl-keyfile: x",
        "engine_args.ssl-keyfile: is set by Baton: engines listen on",
    ),
    (
        "replicas: 2",
        ARGS + "data-parallel-size: 2",
        "engine_args.data-parallel-size: is set by Baton",
    ),
    (
        "replicas: 2",
        ARGS + "kv-transfer-config.kv_role: kv_both",
        "engine_args.kv-transfer-config.kv_role: is set by Baton: use spec.transfer",
    ),
    (
        "replicas: 2",
        ARGS + "block-siz: 32",
        "engine_args.block-siz: is short for block-size, which is set by",
    ),
    (
        "replicas: 2",
        ARGS + "no-enforce-eager: true",
        "no-enforce-eager: write enforce-eager: false instead",
    ),
    (
        "replicas: 2",
        ARGS + "max_logprobs: 5",
        "engine_args.max_logprobs: must be the long name of a vLLM flag, without dashes in front; "
        "write max-logprobs",
    ),
    (
        "replicas: 2",
        ARGS + "--seed: 5",
        "engine_args.--seed: must be the long name of a vLLM flag, without",
    ),
    (
        "replicas: 2",
        ARGS + "seed: [5]",
        "p.yaml:18: spec.pools.prefill.engine_args.seed: must be text, a",
    ),
    (
        "replicas: 2",
        ARGS + "seed:",
        "p.yaml:18: spec.pools.prefill.engine_args.seed: must be text, a number",
    ),
    ("replicas: 2", ARGS + "seed: .inf", "engine_args.seed: must be a finite number"),
    (
        "replicas: 2",
        ARGS + "seed: --api-key=x",
        "engine_args.seed: must not start with a dash, which would",
    ),
    # the text as YAML
    (
        "replicas: 2",
        "replicas: 2\n      replicas: 3",
        "p.yaml:17: spec.pools.prefill.replicas: is",
    ),
    (
        "demo",
        "&a demo\n    served_name: *a",
        "p.yaml:10: spec.model.served_name: YAML aliases are",
    ),
    (
        "demo",
        "!!python/name:os.system x",
        "p.yaml:9: spec.model.source: YAML tags are not allowed",
    ),
    ("demo", "!!str demo", "p.yaml:9: spec.model.source: YAML tags are not allowed (got"),
    ("  mode", "  1: x\n  mode", "p.yaml:7: spec: keys must be text (got 1); put it in quotes"),
    (
        "  mode",
        "  ? [a]\n  : x\n  mode",
        "p.yaml:7: spec: keys must be plain text, without tags,",
    ),
]


@pytest.mark.parametrize(("old", "new", "expected"), ONE_FIELD)
def test_one_mistake_gives_one_line_with_its_place(old: str, new: str, expected: str) -> None:
    """One mistake is reported once: with file, line, field and a plain sentence."""
    (problem,) = problems_of(changed(DISAGGREGATED, (old, new)))
    assert problem.startswith("p.yaml:")
    assert expected in problem


BETWEEN_FIELDS = [
    (
        DISAGGREGATED,
        [("  classify:\n    threshold_tokens: 256\n", "")],
        ["p.yaml:6: spec.classify: is required in mode disaggregated"],
    ),
    (
        DISAGGREGATED,
        [("    threshold_tokens: 256", "    threshold_tokens: 8192")],
        ["p.yaml:12: spec.classify.threshold_tokens: must be less than model.max_model_len (8192)"],
    ),
    (
        DISAGGREGATED,
        [("    decode:\n      accelerator: nvidia-l4\n      max_num_seqs: 16\n", "")],
        ["p.yaml:13: spec.pools.decode: is required in mode disaggregated"],
    ),
    (
        DISAGGREGATED,
        [("  transfer:", "    standard:\n      accelerator: cpu\n  transfer:")],
        ["p.yaml:20: spec.pools.standard: is not a pool of mode disaggregated, which has prefill"],
    ),
    (
        DISAGGREGATED,
        [("mode: disaggregated", "mode: standard")],
        [
            "p.yaml:11: spec.classify: has no meaning in mode standard; remove it",
            "p.yaml:13: spec.pools.standard: is required in mode standard",
            "p.yaml:14: spec.pools.prefill: is not a pool of mode standard",
            "p.yaml:17: spec.pools.decode: is not a pool of mode standard",
        ],
    ),
    (
        DISAGGREGATED,
        [("max_num_seqs: 16", "max_num_seqs: 16\n      max_num_batched_tokens: 8")],
        ["p.yaml:20: spec.pools.decode.max_num_batched_tokens: must be at least max_num_seqs (16)"],
    ),
    (
        STANDARD,
        [("cpu", "cpu\n      gpu_memory_utilization: 0.9")],
        ["p.yaml:12: spec.pools.standard.gpu_memory_utilization: has no meaning with accelerator"],
    ),
    (
        STANDARD,
        [("  pools", "  transfer:\n    block_size: 16\n  pools")],
        ["p.yaml:10: spec.transfer.block_size: must be a multiple of 32, because pool standard"],
    ),
    (
        DISAGGREGATED,
        [("block_size: 64", "connector: stock\n    progress_delay_us: 5")],
        ["p.yaml:22: spec.transfer.progress_delay_us: has no meaning with connector stock"],
    ),
    (
        DISAGGREGATED,
        [("replicas: 2", ARGS + "kv-cache-dtype: fp8")],
        ["p.yaml:18: spec.pools.prefill.engine_args.kv-cache-dtype: must be the same in the pools"],
    ),
    (
        DISAGGREGATED,
        [
            ("replicas: 2", ARGS + "revision: a"),
            ("seqs: 16", "seqs: 16\n      engine_args: {revision: b}"),
        ],
        ["p.yaml:22: spec.pools.decode.engine_args.revision: must be the same in the pools"],
    ),
    (
        DISAGGREGATED,
        [("total_s: 120", "total_s: 50")],
        [
            "p.yaml:22: spec.deadlines.prefill_s: must not be more than total_s (50) (got 60)",
            "p.yaml:22: spec.deadlines.first_token_s: must not be more than total_s (50) (got 60)",
            "p.yaml:22: spec.deadlines.idle_s: must not be more than total_s (50) (got 60)",
        ],
    ),
    (
        DISAGGREGATED,
        [("total_s: 120", "connect_s: 61")],
        ["p.yaml:23: spec.deadlines.connect_s: must not be more than prefill_s (60)"],
    ),
    (
        DISAGGREGATED,
        [("threshold_tokens: 256", "threshold_tokens: 256\n    hysteresis: 0.5")],
        ["p.yaml:13: spec.classify.hysteresis: has no meaning with decider threshold"],
    ),
    (
        STANDARD,
        [("  pools", "  degrade:\n    attempts: 2\n  pools")],
        ["p.yaml:9: spec.degrade: has no meaning in mode standard; remove it"],
    ),
    (
        DISAGGREGATED,
        [("  limits", "  degrade: {steps: [local, elsewhere]}\n  limits")],
        ["p.yaml:24: spec.degrade.steps"],
    ),
    (
        DISAGGREGATED,
        [("  limits", "  routing: {picker: wurst, scorers: {load: -1}}\n  limits")],
        ["p.yaml:24: spec.routing.scorers.load", "p.yaml:24: spec.routing.picker"],
    ),
]


@pytest.mark.parametrize(("text", "changes", "expected"), BETWEEN_FIELDS)
def test_fields_that_do_not_fit_together(
    text: str, changes: list[tuple[str, str]], expected: list[str]
) -> None:
    """What one field forbids another is reported at the field that has to change."""
    problems = problems_of(changed(text, *changes))
    assert len(problems) == len(expected)
    for problem, start in zip(problems, expected, strict=True):
        assert problem.startswith(start)


WHOLE_TEXTS = [
    ("", "p.yaml:1: is empty; a profile is a YAML mapping"),
    ("# only a comment\n", "p.yaml:1: is empty"),
    ("---\n", "the top level must be a mapping with apiVersion, kind, ... (got nothing)"),
    (
        "a word",
        'p.yaml:1: the top level must be a mapping with apiVersion, kind, ... (got "a word")',
    ),
    (
        "\n- 1\n",
        "p.yaml:2: the top level must be a mapping with apiVersion, kind, ... (got a list)",
    ),
    ("*a", "p.yaml:1: YAML aliases are not allowed"),
    ("!x {a: 1}", 'p.yaml:1: YAML tags are not allowed (got "!x")'),
    (DISAGGREGATED + "---\na: 1\n", "p.yaml:26: a second document starts here"),
    (
        "a: 1\nb: c: d\n",
        'p.yaml:2: not valid YAML: mapping values are not allowed here; near "b"',
    ),
    (
        'a:\n  name: "x\n  c: 1\n  d: 2\n',
        'p.yaml:5: not valid YAML: found unexpected end of stream; look at "name" on line 2',
    ),
    (
        "a:\n  steps: [x\n  c: 1\n",
        "p.yaml:3: not valid YAML: expected ',' or ']', but got ':'; look at \"steps\" on line 2",
    ),
    (
        "a:\n  b: 1\n  count 2\n  d: 2\n",
        "p.yaml:4: not valid YAML: could not find expected ':'; look at \"count\" on line 3",
    ),
    ("a: [1,\n", "p.yaml:2: not valid YAML: "),
    (
        "a:\n\tb: 1\n",
        "p.yaml:2: not valid YAML: found character '\\t' that cannot start any token; ",
    ),
    ("a: 1\nb: \0\n", "p.yaml:2: not valid YAML: character U+0000 is not allowed"),
    ('a: "\\UFFFFFFFF"', "p.yaml: not valid YAML: a number or character escape in it is out of"),
    ("%YAML 3.0\n---\na: 1", "p.yaml:1: not valid YAML: "),
    ("[" * 100_000, "p.yaml:1: is nested more than 16 deep"),
    ("a: [" + "1," * 10_000, "p.yaml:1: holds more than 5000 values"),
    ("? {" + "[1]: 1, " * 10_000, "p.yaml:1: holds more than 5000 values"),
    (" " * (1024 * 1024 + 1), "p.yaml: is larger than 1048576 bytes"),
]


@pytest.mark.parametrize(
    ("text", "expected"), WHOLE_TEXTS, ids=[text[:12] for text, _ in WHOLE_TEXTS]
)
def test_texts_that_are_no_profile_at_all(text: str, expected: str) -> None:
    """A text that is not one small YAML mapping is refused in one line, and quickly."""
    (problem,) = problems_of(text)
    assert expected in problem


def test_all_mistakes_are_reported_at_once_in_the_order_of_lines() -> None:
    """YAML's mistakes, those of fields and those between sound sections come together."""
    text = changed(
        DISAGGREGATED,
        ("baton/v1", "v1"),
        ("  description: An example.", "  name: twice"),
        ("replicas: 2", "replicas: 0"),
        ("max_num_seqs: 16", "max_nums_seqs: 16"),
        ("total_s: 120", "total_s: 120\n    connect_s: 61"),
        ("threshold_tokens: 256", "threshold_tokens: 9000"),
        ("    in_flight: 64", "    drain_s: -1"),
    )
    places = [":".join(problem.split(":")[1:3]) for problem in problems_of(text)]
    assert places == [
        "1: apiVersion",
        "5: metadata.name",
        "12: spec.classify.threshold_tokens",
        "16: spec.pools.prefill.replicas",
        "19: spec.pools.decode.max_nums_seqs",
        "24: spec.deadlines.connect_s",
        "26: spec.limits.drain_s",
    ]


def test_the_number_of_problems_is_bounded() -> None:
    """Beyond the bound one line says how many are left out."""
    text = changed(DISAGGREGATED, ("spec:\n", "".join(f"x{i}: 1\n" for i in range(80)) + "spec:\n"))
    problems = problems_of(text)
    assert len(problems) == MAX_PROBLEMS + 1
    assert problems[-1].endswith("and 30 more problems from here on")


def test_a_refused_value_is_not_reported_twice() -> None:
    """Where YAML's part of the check refused a value, the profile's part is silent about it."""
    problems = problems_of(changed(DISAGGREGATED, ("replicas: 2", "replicas: !!int 2")))
    assert len(problems) == 1
    assert "YAML tags" in problems[0]


def test_secrets_are_not_repeated() -> None:
    """The value of a refused flag stays out of the message, which ends up in logs."""
    problems = problems_of(changed(DISAGGREGATED, ("replicas: 2", ARGS + "api-key: -hunter2")))
    assert len(problems) == 1
    assert "hunter2" not in problems[0]


def test_messages_stay_on_one_line_and_harmless() -> None:
    """Control characters and long texts from the file do not reach the terminal as they are."""
    text = changed(DISAGGREGATED, ("name: example", f'"a\\nb\\e[31m": 1\n  name: "\\e{"x" * 500}"'))
    problems = problems_of(text)
    assert len(problems) == 2
    for problem in problems:
        assert problem.isprintable()
        assert len(problem) < 300


_CUT = st.tuples(
    st.integers(0, len(DISAGGREGATED)),
    st.integers(0, 12),
    st.text(st.sampled_from("\n\t :-#[]{}&*!|>'\"%@`?,a1.~\\\x85\u2028\ud7ff"), max_size=6),
)


@given(st.lists(_CUT, min_size=1, max_size=4))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_text_is_a_profile_or_explained(cuts: list[tuple[int, int, str]]) -> None:
    """Whatever happens to a file, it still loads or is refused with readable lines."""
    text = DISAGGREGATED
    for start, length, inserted in cuts:
        text = text[:start] + inserted + text[start + length :]
    problems: tuple[str, ...] = ()
    try:
        profile = parse_profile(text, source="p.yaml")
    except ProfileError as error:
        problems = error.problems
    else:
        assert len(profile.version) == 12
        return
    assert problems
    assert all(re.match(r"p\.yaml(:\d+)?: \S", problem) for problem in problems)
    assert all(problem.isprintable() for problem in problems)


def test_no_jargon_of_the_validator() -> None:
    """None of the messages above speak pydantic's language."""
    texts = [changed(DISAGGREGATED, (old, new)) for old, new, _ in ONE_FIELD]
    words = ("Input should", "valid integer", "pydantic", "dictionary", "[type=", "extra_forbidden")
    for text in texts:
        for problem in problems_of(text):
            assert not any(word in problem for word in words), problem
