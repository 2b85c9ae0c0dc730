"""A sound profile: its values, version, derived names, overrides and schema."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from baton.errors import ProfileError
from baton.types import Role
from profiles import (
    Connector,
    Decider,
    DegradeStep,
    Mode,
    Picker,
    PrefixKnowledge,
    ServingProfile,
    SourceKind,
    Transport,
    parse_profile,
    profile_schema,
    with_overrides,
)
from tests.unit.profiles.texts import DISAGGREGATED, STANDARD, changed


def parse(text: str) -> ServingProfile:
    return parse_profile(text, source="p.yaml")


def test_values_and_defaults() -> None:
    """What the text says is there, and the documented defaults are where it says nothing."""
    spec = parse(DISAGGREGATED).spec
    assert spec.mode is Mode.DISAGGREGATED
    assert spec.classify is not None
    assert spec.classify.threshold_tokens == 256
    prefill, decode = spec.pools.get(Role.PREFILL), spec.pools.get(Role.DECODE)
    assert prefill is not None
    assert decode is not None
    assert (prefill.replicas, decode.replicas) == (2, 1)
    assert (prefill.max_num_seqs, decode.max_num_seqs) == (None, 16)
    assert (prefill.tensor_parallel, prefill.cpu_kv_cache_mib) == (1, 256)
    assert prefill.engine_args == {}
    assert spec.pools.get(Role.STANDARD) is None
    assert list(spec.pools.by_role) == [Role.PREFILL, Role.DECODE]
    transfer = spec.transfer
    assert (transfer.connector, transfer.transport) == (Connector.BATON, Transport.AUTO)
    assert (transfer.progress_delay_us, transfer.block_size, transfer.lease_s) == (1000, 64, 30)
    deadlines = spec.deadlines
    assert (deadlines.connect_s, deadlines.prefill_s, deadlines.first_token_s) == (2, 60, 60)
    assert (deadlines.idle_s, deadlines.total_s) == (60, 120)
    assert (spec.limits.body_bytes, spec.limits.in_flight, spec.limits.drain_s) == (
        8 * 1024 * 1024,
        64,
        30,
    )


def test_traffic_settings() -> None:
    """What says how traffic is treated has its defaults, and takes lists as YAML writes them."""
    profile = parse(DISAGGREGATED)
    assert profile.degrade.steps == (DegradeStep.OTHER_PREFILL, DegradeStep.LOCAL)
    assert profile.spec.routing.picker is Picker.BEST
    assert profile.spec.routing.prefix is PrefixKnowledge.APPROXIMATE
    assert profile.spec.classify is not None
    assert profile.spec.classify.decider is Decider.THRESHOLD
    text = changed(
        DISAGGREGATED,
        ("  limits:", "  degrade: {steps: [queue], local_tokens: 10}\n  limits:"),
        ("  limits:", "  routing: {prefix: exact, picker: power_of_two}\n  limits:"),
        ("    threshold_tokens: 256", "    {threshold_tokens: 256, decider: cost, hysteresis: 0}"),
    )
    changed_profile = parse(text)
    assert changed_profile.degrade.steps == (DegradeStep.QUEUE,)
    assert changed_profile.spec.routing.picker is Picker.POWER_OF_TWO
    assert changed_profile.version != profile.version


def test_degradation_written_out_is_the_same_profile() -> None:
    """The version does not depend on whether the defaults of ``degrade`` are written down."""
    written = changed(DISAGGREGATED, ("  limits:", "  degrade: {attempts: 3}\n  limits:"))
    assert parse(written).version == parse(DISAGGREGATED).version


def test_numbers_mean_what_they_say() -> None:
    """Scalars follow YAML 1.2: a leading zero is no octal number, 1e1 is ten, ``no`` is text."""
    text = changed(
        DISAGGREGATED,
        ("replicas: 2", "replicas: 010"),
        ("total_s: 120", "idle_s: 1e1"),
        ("An example.", "no"),
    )
    profile = parse(text)
    assert profile.spec.pools.by_role[Role.PREFILL].replicas == 10
    assert profile.spec.deadlines.idle_s == 10.0
    assert profile.metadata.description == "no"


def test_engine_args_keep_their_kinds() -> None:
    """Text, numbers and truth values reach the engine as they were written."""
    flags = '{seed: 7, quantization: fp8, watermark: 0.5, async-scheduling: false, revision: "1"}'
    both = changed(
        DISAGGREGATED,
        ("replicas: 2", f"engine_args: {flags}"),
        ("max_num_seqs: 16", 'engine_args: {revision: "1", quantization: fp8}'),
    )
    args = parse(both).spec.pools.by_role[Role.PREFILL].engine_args
    assert [(type(value), value) for value in args.values()] == [
        (int, 7),
        (str, "fp8"),
        (float, 0.5),
        (bool, False),
        (str, "1"),
    ]


def test_profiles_are_frozen_values() -> None:
    """A profile cannot be changed, equals its copy, and can be sent to another process."""
    profile = parse(DISAGGREGATED)
    with pytest.raises(ValidationError):
        profile.spec.limits.in_flight = 1
    assert pickle.loads(pickle.dumps(profile)) == profile
    assert parse(DISAGGREGATED) == profile


@pytest.mark.parametrize(
    ("source", "kind", "name"),
    [
        ("demo", SourceKind.DEMO, "demo"),
        ("/models/llama-8b", SourceKind.FOLDER, "llama-8b"),
        ("/models/llama-8b/", SourceKind.FOLDER, "llama-8b"),
        ("./demo", SourceKind.FOLDER, "demo"),
        ("~/models/x", SourceKind.FOLDER, "x"),
        ("owner/name", SourceKind.HUB, "owner/name"),
        ("gpt2", SourceKind.HUB, "gpt2"),
    ],
)
def test_the_served_name_follows_from_the_source(source: str, kind: SourceKind, name: str) -> None:
    """The kind of a source is told by its spelling, and gives the name that clients ask for."""
    profile = parse(changed(STANDARD, ("source: demo", f"source: {source}")))
    assert profile.spec.model.kind is kind
    assert profile.served_name == name


SAME = [
    ("comments and spaces", DISAGGREGATED.replace("\n", "   # why\n")),
    ("a name and a description", changed(DISAGGREGATED, ("name: example", "name: other"))),
    ("a default that is written out", changed(DISAGGREGATED, ("block_size: 64", "lease_s: 30"))),
    ("a whole number for seconds", changed(DISAGGREGATED, ("total_s: 120", "total_s: 120.0"))),
    (
        "the derived name that is written out",
        changed(DISAGGREGATED, ("source: demo", "source: demo\n    served_name: demo")),
    ),
    (
        "null for a default",
        changed(DISAGGREGATED, ("replicas: 2", "replicas: 2\n      enforce_eager: null")),
    ),
    (
        "another order of keys",
        changed(
            DISAGGREGATED,
            ("  limits:\n    in_flight: 64\n", ""),
            ("spec:\n", "spec:\n  limits: {in_flight: 64}\n"),
        ),
    ),
]


@pytest.mark.parametrize("text", [text for _, text in SAME], ids=[name for name, _ in SAME])
def test_the_version_does_not_depend_on_how_a_profile_is_written(text: str) -> None:
    """Two files that decide the same have the same version."""
    assert parse(text).version == parse(DISAGGREGATED).version


DIFFERENT = [
    ("replicas: 2", "replicas: 3"),
    ("threshold_tokens: 256", "threshold_tokens: 257"),
    ("source: demo", "source: ./demo"),
    ("block_size: 64", "block_size: 32"),
    ("total_s: 120", "total_s: 120.5"),
    ("nvidia-l4", "nvidia-l40s"),
    ("replicas: 2", "replicas: 2\n      engine_args: {seed: 1}"),
]


@pytest.mark.parametrize(("old", "new"), DIFFERENT)
def test_the_version_changes_with_every_decision(old: str, new: str) -> None:
    """Two files that decide differently have different versions."""
    assert parse(changed(DISAGGREGATED, (old, new))).version != parse(DISAGGREGATED).version


def test_the_version_is_stable_over_releases() -> None:
    """Workers and routers compare versions, so a change of this value is a change to announce:
    a field was added, renamed or has another default."""
    assert parse(DISAGGREGATED).version == "c879c95479fb"


def test_overrides_replace_single_values() -> None:
    """An override changes what it names and nothing else."""
    profile = parse(DISAGGREGATED)
    changed_profile = with_overrides(
        profile,
        model_source="owner/name",
        max_model_len=4096,
        threshold_tokens=512,
        replicas={Role.DECODE: 3},
    )
    text = changed(
        DISAGGREGATED,
        ("source: demo", "source: owner/name"),
        ("8192", "4096"),
        ("256", "512"),
        ("max_num_seqs: 16", "max_num_seqs: 16\n      replicas: 3"),
    )
    assert changed_profile == parse(text)
    assert with_overrides(profile) == profile
    assert with_overrides(profile).version == profile.version


def test_a_new_model_drops_the_old_name() -> None:
    """A served name does not outlive the weights it was given to, unless it is given again."""
    named = parse(changed(STANDARD, ("source: demo", "source: demo\n    served_name: chat")))
    assert with_overrides(named, model_source="/m/other").served_name == "other"
    assert with_overrides(named, model_source="/m/other", served_name="x").served_name == "x"
    assert with_overrides(named, served_name="x").spec.model.source == "demo"


def test_overrides_are_checked_like_a_file() -> None:
    """A value that the profile could not hold is refused, all at once, without a line."""
    with pytest.raises(ProfileError) as caught:
        with_overrides(
            parse(STANDARD),
            model_source="s3://bucket",
            threshold_tokens=5,
            replicas={Role.STANDARD: 0, Role.DECODE: 1},
        )
    text = "\n".join(caught.value.problems)
    assert "override: spec.model.source: must not be a URL" in text
    assert "override: spec.pools.standard.replicas: must be at least 1 (got 0)" in text
    assert "override: spec.pools.decode: profile plain has no such pool" in text
    assert "override: spec.classify: has no meaning in mode standard" in text
    assert len(caught.value.problems) == 4


def test_rules_hold_without_yaml_too() -> None:
    """A profile that is built in code is held to the same rules."""
    data = parse(STANDARD).model_dump(mode="json", by_alias=True)
    data["spec"]["mode"] = "disaggregated"
    with pytest.raises(ValidationError, match=r"classify is required in mode disaggregated"):
        ServingProfile.model_validate(data)


def test_every_field_is_described() -> None:
    """Each field of each section says what it is, and its default or that it is required."""
    schema = profile_schema()
    sections = {"ServingProfile": schema, **schema["$defs"]}
    checked = 0
    for name, section in sections.items():
        for field, definition in section.get("properties", {}).items():
            text = definition.get("description", "")
            assert text, f"{name}.{field}"
            says = any(word in text for word in ("Default:", "Required", "required", "Always"))
            assert says, f"{name}.{field}: {text}"
            checked += 1
    assert checked > 40


def test_the_schema_knows_the_modes() -> None:
    """Editors learn from the schema which pools a mode has, and that nothing else is allowed."""
    schema = profile_schema()
    assert schema["$schema"].endswith("2020-12/schema")
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"apiVersion", "kind", "metadata", "spec"}
    spec = schema["$defs"]["ProfileSpec"]
    required = {
        rule["if"]["properties"]["mode"]["const"]: rule["then"]["properties"]["pools"]["required"]
        for rule in spec["allOf"]
    }
    assert required == {"disaggregated": ["prefill", "decode"], "standard": ["standard"]}
    json.dumps(schema)


_TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_categories=["C"]))


@st.composite
def _profiles(draw: st.DrawFn) -> dict[str, object]:
    flags = st.one_of(
        st.booleans(),
        st.integers(-(10**17), 10**17),
        st.floats(allow_nan=False, allow_infinity=False),
        _TEXT.filter(lambda text: not text.startswith("-")),
    )
    pool = st.fixed_dictionaries(
        {"accelerator": st.sampled_from(["cpu", "nvidia-l4"])},
        optional={
            "replicas": st.integers(1, 1000),
            "enforce_eager": st.none() | st.booleans(),
            "cpu_kv_cache_mib": st.integers(1, 10_000),
            "engine_args": st.dictionaries(
                st.sampled_from(["seed", "max-logprobs", "compilation-config.mode"]), flags
            ),
        },
    )
    return {
        "apiVersion": "baton/v1",
        "kind": "ServingProfile",
        "metadata": {"name": "drawn", "description": draw(_TEXT)},
        "spec": {
            "mode": "disaggregated",
            "model": {"source": draw(st.sampled_from(["demo", "/m/x", "owner/name"]))},
            "classify": {"threshold_tokens": draw(st.integers(1, 10**6))},
            "pools": {"prefill": draw(pool), "decode": draw(pool)},
            "deadlines": {"total_s": draw(st.floats(60, 86_400))},
        },
    }


@given(_profiles())
@settings(max_examples=50, deadline=None, derandomize=True)
def test_a_profile_survives_being_written_and_read(data: dict[str, object]) -> None:
    """JSON is YAML: a profile that is dumped as JSON reads back equal, with the same version."""
    profile = ServingProfile.model_validate(data)
    text = json.dumps(profile.model_dump(mode="json", by_alias=True), ensure_ascii=False)
    again = parse(text)
    assert again == profile
    assert again.version == profile.version
