"""Where profiles come from: built-in names and files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from baton.errors import ProfileError
from baton.types import Role
from profiles import Decider, builtin_names, load_profile, resolve_profile
from tests.unit.profiles.texts import DISAGGREGATED, STANDARD


def problem_of(name_or_path: str) -> str:
    with pytest.raises(ProfileError) as caught:
        resolve_profile(name_or_path)
    (problem,) = caught.value.problems
    return problem


def test_the_built_in_profiles_load_under_their_names() -> None:
    """Each built-in file is sound and called as its file."""
    assert builtin_names() == (
        "adaptive",
        "cpu-demo",
        "cpu-disaggregated",
        "cpu-standard",
        "cpu-standard-chunk512",
        "disaggregated",
        "long-context",
        "low-latency",
        "multi-node",
        "standard",
    )
    for name in builtin_names():
        profile = resolve_profile(name)
        assert profile.name == name
        assert profile.metadata.description


def test_the_built_in_profiles_run_on_any_machine() -> None:
    """They serve the demo model, with a block size and KV memory that a CPU worker can use, and
    no more ranks than it has KV heads. One is about a model that no machine here could hold."""
    for name in builtin_names():
        spec = resolve_profile(name).spec
        assert spec.transfer.block_size % 32 == 0
        if name == "multi-node":
            continue
        assert spec.model.source == "demo"
        for pool in spec.pools.by_role.values():
            assert pool.cpu_kv_cache_mib >= 64
            assert pool.tensor_parallel <= 2
            assert pool.nodes == 1


def test_all_workers_can_change_between_the_built_in_profiles() -> None:
    """What a switch cannot change without a restart is equal: the model, the size of KV blocks."""
    names = ("adaptive", "disaggregated", "long-context", "low-latency", "standard")
    specs = [resolve_profile(name).spec for name in names]
    assert {spec.transfer.block_size for spec in specs} == {64}
    assert {spec.model for spec in specs} == {specs[0].model}


def test_adaptive_differs_from_disaggregated_in_how_it_decides() -> None:
    """A comparison of the two is about the decider: the pools and the handover are the same."""
    adaptive, disaggregated = (
        resolve_profile("adaptive").spec,
        resolve_profile("disaggregated").spec,
    )
    assert adaptive.pools == disaggregated.pools
    assert adaptive.transfer == disaggregated.transfer
    assert adaptive.classify is not None
    assert disaggregated.classify is not None
    assert adaptive.classify.threshold_tokens == disaggregated.classify.threshold_tokens
    assert adaptive.classify.decider is Decider.COST


def test_multi_node_has_a_group_of_nodes() -> None:
    """Sixteen devices on two machines, counted as sixteen."""
    decode = resolve_profile("multi-node").spec.pools.by_role[Role.DECODE]
    assert (decode.nodes, decode.devices) == (2, 16)


def test_disaggregated_and_standard_differ_in_the_prefill_pool_only() -> None:
    """A comparison of the two is about the handoff: workers that generate are set up alike, on
    CPU too, and share the block size that a change of role depends on."""
    disaggregated, standard = resolve_profile("disaggregated"), resolve_profile("standard")
    decode = disaggregated.spec.pools.by_role[Role.DECODE]
    assert standard.spec.pools.by_role == {Role.STANDARD: decode}
    assert standard.spec.transfer == disaggregated.spec.transfer
    assert disaggregated.spec.classify is not None
    assert disaggregated.spec.classify.threshold_tokens == decode.max_num_batched_tokens


def test_a_near_miss_gets_a_suggestion() -> None:
    """An unknown name is answered with the closest built-in one and with all of them."""
    problem = problem_of("disagregated")
    assert 'no built-in profile is called "disagregated"; did you mean disaggregated?' in problem
    assert ", ".join(builtin_names()) in problem
    assert "did you mean cpu-demo?" in problem_of("CPU_Demo")
    assert "did you mean" not in problem_of("xyzzy")
    assert "did you mean" not in problem_of("")


@pytest.mark.parametrize("file_name", ["mine.yaml", "mine.yml", "mine"])
def test_a_path_is_read_as_a_file(tmp_path: Path, file_name: str) -> None:
    """What holds a slash is a file, whatever its ending."""
    path = tmp_path / file_name
    path.write_text(STANDARD)
    assert resolve_profile(str(path)).name == "plain"


def test_an_ending_alone_makes_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare name with a YAML ending is a file in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yml").write_text(DISAGGREGATED)
    assert resolve_profile("mine.yml").name == "example"
    assert problem_of("other.yaml") == "other.yaml: no such file"


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """~/ stands for the home folder, as a shell would have it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text(STANDARD)
    assert resolve_profile("~/mine.yaml").name == "plain"


def test_files_that_cannot_be_a_profile(tmp_path: Path) -> None:
    """A folder, a pipe, a huge file, bytes that are no text: one line each, and no waiting."""
    assert problem_of(str(tmp_path)).endswith("is a directory; a profile is a YAML file")
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    assert problem_of(str(pipe)).endswith("is not a regular file; a profile is a YAML file")
    huge = tmp_path / "huge.yaml"
    huge.write_bytes(b"#" * (1024 * 1024 + 1))
    assert problem_of(str(huge)) == f"{huge}: is larger than 1048576 bytes; a profile is small"
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"a: 1\nb: \xe9\n")
    assert problem_of(str(latin)) == f"{latin}:2: is not UTF-8 text"
    assert "cannot be read" in problem_of("a\0/b")
    assert "cannot be read: File name too long" in problem_of("./" + "x" * 5000)


def test_problems_name_the_file(tmp_path: Path) -> None:
    """Messages lead with the path, so that an editor can jump to it."""
    path = tmp_path / "mine.yaml"
    path.write_text(DISAGGREGATED.replace("replicas: 2", "replicas: 0"))
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    assert str(caught.value).startswith(
        f"{path}:16: spec.pools.prefill.replicas: must be at least 1"
    )
