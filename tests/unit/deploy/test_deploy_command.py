"""``baton deploy render``: what it prints and writes, and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from baton.cli.app import app
from deploy.lws.site import site_text


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["deploy", "render", *arguments])


def test_without_a_folder_objects_are_printed() -> None:
    """The objects of one overlay as a YAML stream, for a pipe to kubectl."""
    done = run("--profile", "cpu-demo", "--overlay", "kind-cpu")
    assert done.exit_code == 0
    objects = list(yaml.safe_load_all(done.stdout))
    assert objects[0]["kind"] == "Namespace"
    names = {found["metadata"]["name"] for found in objects if found["kind"] == "LeaderWorkerSet"}
    assert names == {"baton-prefill", "baton-decode"}
    assert all(found["metadata"].get("namespace") == "baton" for found in objects[1:])


def test_the_default_overlay_is_gke() -> None:
    """Without an overlay, the first of the ones that profiles are written for."""
    done = run("--profile", "standard")
    assert "cloud.google.com/gke-accelerator" in done.stdout


def test_a_folder_is_written_and_checked(tmp_path: Path) -> None:
    """What was written is what a check wants; a change is told by file, with status 1."""
    folder = tmp_path / "serving"
    done = run("--profile", "cpu-demo", "--out", str(folder), "--rendered")
    assert done.exit_code == 0
    assert f"kubectl apply --server-side -k {folder}/overlays/kind-cpu" in done.stderr
    assert sorted(path.name for path in (folder / "overlays").iterdir()) == [
        "gke",
        "kind-cpu",
        "onprem",
    ]
    assert (folder / "rendered" / "gke.yaml").is_file()
    assert run("--profile", "cpu-demo", "--check", str(folder)).exit_code == 0
    (folder / "base" / "router.yaml").write_text("changed")
    done = run("--profile", "cpu-demo", "--check", str(folder))
    assert done.exit_code == 1
    assert done.stdout == "differs: base/router.yaml\n"
    assert (folder / "base" / "router.yaml").read_text() == "changed"


def test_a_profile_keeps_its_comments(tmp_path: Path) -> None:
    """The ConfigMap that operators edit holds the file as it was written."""
    path = tmp_path / "mine.yaml"
    text = "# why\n" + yaml.safe_dump(
        {
            "apiVersion": "baton/v1",
            "kind": "ServingProfile",
            "metadata": {"name": "mine"},
            "spec": {
                "mode": "standard",
                "model": {"source": "demo"},
                "pools": {"standard": {"accelerator": "cpu"}},
            },
        }
    )
    path.write_text(text)
    done = run("--profile", str(path), "--overlay", "kind-cpu")
    (found,) = [
        found
        for found in yaml.safe_load_all(done.stdout)
        if found["metadata"]["name"] == "baton-profiles"
    ]
    assert found["data"] == {"active": "mine", "mine.yaml": text}


def test_a_site_of_ones_own(tmp_path: Path) -> None:
    """A site's file gives one overlay, called as the site is."""
    path = tmp_path / "cluster.yaml"
    path.write_text(site_text("kind-cpu")[0].replace("name: kind-cpu", "name: lab"))
    done = run("--profile", "cpu-demo", "--site", str(path), "--out", str(tmp_path / "out"))
    assert done.exit_code == 0
    assert [found.name for found in (tmp_path / "out" / "overlays").iterdir()] == ["lab"]


def test_one_disaggregated_set() -> None:
    """``--controller`` says what the pools are."""
    done = run("--profile", "cpu-demo", "--controller", "disaggregatedset")
    kinds = {found["kind"] for found in yaml.safe_load_all(done.stdout)}
    assert "DisaggregatedSet" in kinds
    assert "LeaderWorkerSet" not in kinds


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--profile", "disagregated"], "did you mean disaggregated?"),
        (["--profile", "standard", "--overlay", "eks"], "there are gke, kind-cpu, onprem"),
        (["--profile", "standard", "--overlay", "gke", "--site", "x.yaml"], "give one of them"),
        (["--profile", "standard", "--site", "none.yaml"], "none.yaml: no such file"),
        (["--profile", "standard", "--out", "a", "--check", "b"], "give one of them"),
        (["--profile", "standard", "--rendered"], "go with --out DIR"),
        (["--profile", "standard", "--controller", "disaggregatedset"], "--controller lws"),
        (["--profile", "standard", "--controller", "pods"], "lws or disaggregatedset"),
        (["--profile", "standard", "--check", "/no/such/folder"], "is not a folder"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], says: str) -> None:
    """One message that says what to do, and status 2."""
    done = run(*arguments)
    assert done.exit_code == 2
    assert says in done.stderr
    assert done.stdout == ""


def test_other_files_are_not_removed(tmp_path: Path) -> None:
    """A folder of other things is left alone, unless it is asked for."""
    (tmp_path / "thesis.txt").write_text("mine")
    done = run("--profile", "standard", "--overlay", "gke", "--out", str(tmp_path))
    assert done.exit_code == 2
    assert "thesis.txt" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_site_to_start_from(tmp_path: Path) -> None:
    """A built-in site is printed as it is written, and can be used as it is."""
    done = CliRunner().invoke(app, ["deploy", "site", "onprem"])
    assert done.stdout == site_text("onprem")[0]
    path = tmp_path / "cluster.yaml"
    path.write_text(done.stdout)
    ours = run("--profile", "standard", "--site", str(path))
    assert ours.stdout == run("--profile", "standard", "--overlay", "onprem").stdout
    done = CliRunner().invoke(app, ["deploy", "site", "eks"])
    assert (done.exit_code, "Built-in sites: gke" in done.stderr) == (2, True)
