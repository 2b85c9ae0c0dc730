"""Trees as files: readable, whole, the same each time, and what kubectl makes of them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from baton.errors import SettingsError
from deploy.lws import yaml_text
from deploy.lws.build import build
from deploy.lws.kustomize import differences, files_of, write
from deploy.lws.tree import Json, Part, Patch, Target, Tree

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here")


def configmap(name: str, labels: dict[str, str] | None = None, **data: str) -> Json:
    metadata: Json = {"name": name, **({"labels": labels} if labels else {})}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def set_value(path: str, value: Any) -> Json:
    return {"op": "add", "path": path, "value": value}


BINDING: Json = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "RoleBinding",
    "metadata": {"name": "b"},
    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
    "subjects": [
        {"kind": "ServiceAccount", "name": "s"},
        {"kind": "ServiceAccount", "name": "s", "namespace": "elsewhere"},
        {"kind": "ServiceAccount", "name": "other"},
    ],
}

TREE = Tree(
    profile="p",
    base=Part(
        name="base",
        about="The base.",
        files={
            "all.yaml": [
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "base"}},
                {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "s"}},
                BINDING,
                configmap("a", {"team": "red", "tier": "x"}, key="base"),
                configmap("ab", {"team": "red"}, key="base"),
                configmap("c", {"team": "blue"}, key="base", text="one\ntwo\n"),
            ]
        },
    ),
    components={
        "first": Part(
            name="first",
            about="Adds one, and changes what is there.",
            files={"d.yaml": [configmap("d", {"team": "red"}, key="first")]},
            patches=[
                Patch(
                    "By label.", Target("ConfigMap", labels="team=red"), [set_value("/data/a", "1")]
                ),
                Patch("By name.", Target("ConfigMap", name="a"), [set_value("/data/b~1c", "2")]),
                Patch("Nobody.", Target("ConfigMap", name="x"), [set_value("/data/a", "3")]),
            ],
        ),
        "second": Part(
            name="second",
            about="Comes after.",
            patches=[
                Patch(
                    "After the first.",
                    Target("ConfigMap", labels="team=red,tier=x"),
                    [
                        {"op": "test", "path": "/data/a", "value": "1"},
                        {"op": "remove", "path": "/data/a"},
                        set_value("/data/text", "x: |\n  y\n\n"),
                    ],
                )
            ],
        ),
    },
    overlays={
        "both": Part(
            name="both",
            about="Takes both.",
            files={"e.yaml": [configmap("e", {"team": "red"}, key="overlay")]},
            components=["first", "second"],
            namespace="there",
            patches=[Patch("Last.", Target("ConfigMap", name="e"), [set_value("/data/z", "9")])],
        ),
        "bare": Part(name="bare", about="Takes none.", namespace="there"),
    },
)


def by_name(objects: list[Json]) -> dict[tuple[str, str], Json]:
    return {(found["kind"], found["metadata"]["name"]): found for found in objects}


def test_patches_apply_in_order() -> None:
    """Components change what is there when their turn comes, the overlay's own files included."""
    found = by_name(build(TREE, "both"))
    data = {name: found["ConfigMap", name]["data"] for name in ("a", "ab", "c", "d", "e")}
    assert data["a"] == {"key": "base", "b/c": "2", "text": "x: |\n  y\n\n"}
    assert data["ab"] == {"key": "base", "a": "1"}
    assert data["c"] == {"key": "base", "text": "one\ntwo\n"}
    assert data["d"] == {"key": "first", "a": "1"}
    assert data["e"] == {"key": "overlay", "a": "1", "z": "9"}


def test_the_namespace_is_set() -> None:
    """Objects get it, the Namespace is called so, and a binding's account is looked for there."""
    found = by_name(build(TREE, "bare"))
    assert found["ConfigMap", "a"]["metadata"]["namespace"] == "there"
    assert "namespace" not in found["Namespace", "there"]["metadata"]
    subjects = found["RoleBinding", "b"]["subjects"]
    assert [one.get("namespace") for one in subjects] == ["there", "elsewhere", None]


def test_building_changes_no_tree() -> None:
    """A tree can be built again, with the same result."""
    assert build(TREE, "both") == build(TREE, "both")
    assert TREE.base.files["all.yaml"][3]["data"] == {"key": "base"}


def test_a_patch_that_does_not_fit_is_told() -> None:
    """The object is named, since the patch alone does not say where it went wrong."""
    part = Part(
        name="bad",
        about="",
        patches=[
            Patch("", Target("ConfigMap", name="a"), [{"op": "remove", "path": "/data/none"}])
        ],
    )
    tree = Tree("p", TREE.base, {}, {"bad": part})
    with pytest.raises(SettingsError, match="does not fit ConfigMap a"):
        build(tree, "bad")


def test_unknown_parts_are_told() -> None:
    """An overlay that is not there, and one that takes a component that is not there."""
    with pytest.raises(SettingsError, match="there are bare, both"):
        build(TREE, "none")
    tree = Tree("p", TREE.base, {}, {"o": Part(name="o", about="", components=["lost"])})
    with pytest.raises(SettingsError, match="'lost', which is not there"):
        build(tree, "o")


@needs_kubectl
def test_kubectl_builds_the_same(tmp_path: Path) -> None:
    """What kubectl makes of the files is what is built in memory."""
    write(TREE, tmp_path / "tree")
    for overlay in TREE.overlays:
        command = ["kubectl", "kustomize", str(tmp_path / "tree" / "overlays" / overlay)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        made = by_name(list(yaml.safe_load_all(done.stdout)))
        assert made == by_name(build(TREE, overlay))


def test_files_read_well() -> None:
    """Comments say what it is and why, keys keep their order, short lists take one line."""
    files = files_of(TREE)
    assert list(files) == sorted(files)
    assert files["components/first/kustomization.yaml"].startswith(
        "# Profile p; made by baton deploy render, which writes over changes.\n#\n"
        "# Adds one, and changes what is there.\n\n"
        "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\nresources: [d.yaml]\n"
        "patches:\n  # By label.\n  - target:\n      kind: ConfigMap\n"
        "      labelSelector: team=red\n    patch: |\n      - op: add\n"
    )
    assert "  text: |\n    one\n    two\n" in files["base/all.yaml"]


def test_text_stays_text() -> None:
    """What looks like a number or a truth value is quoted; what is one is not."""
    data = {"a": "1", "b": 1, "c": "true", "d": True, "e": "x y", "f": "140Gi", "g": "a1:b@c"}
    text = yaml_text.dump(data)
    plain = ["b: 1", 'c: "true"', "d: true", "e: x y", "f: 140Gi", "g: a1:b@c"]
    assert text.splitlines() == ['a: "1"', *plain]
    assert yaml.safe_load(text) == data


@pytest.mark.parametrize(
    "text", ["04416038", "1e3", "12e45678", "0x1f", "0o17", "1_000", "y", "N", "no", "1:30", ".5"]
)
def test_what_some_reader_takes_for_a_number_is_quoted(text: str) -> None:
    """Readers of YAML disagree about numbers; text in quotes is text to all of them."""
    assert yaml_text.dump({"a": text}) == f'a: "{text}"\n'


def test_notes_stand_above_what_they_explain() -> None:
    """A comment is put above the first place of its path, at its indentation."""
    found = {"kind": "K", "spec": {"a": {"size": 1}, "b": [{"name": "x", "size": 2}]}}
    text = yaml_text.document(found, {"K": {"a.size": "One.", "b.size": "Two."}, "L": {"a": "x"}})
    assert text == (
        "kind: K\nspec:\n  a:\n    # One.\n    size: 1\n"
        "  b:\n    - name: x\n      # Two.\n      size: 2\n"
    )
    assert yaml.safe_load(text) == found


def test_writing_twice_writes_the_same(tmp_path: Path) -> None:
    """A second time nothing differs, and files of an older tree are gone."""
    folder = tmp_path / "deep" / "tree"
    written = write(TREE, folder)
    old = folder / "base" / "old.yaml"
    old.write_text((folder / "base" / "all.yaml").read_text())
    assert differences(TREE, folder) == ["not of this tree: base/old.yaml"]
    assert write(TREE, folder) == written
    assert differences(TREE, folder) == []
    assert not old.exists()
    assert [path.name for path in folder.parent.iterdir()] == ["tree"]


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    """What was not made by this is not removed, unless it is asked for."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SettingsError, match=r"notes\.txt.*--force"):
        write(TREE, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    write(TREE, tmp_path, force=True)
    assert differences(TREE, tmp_path) == []


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """A link in the place of the folder could lead anywhere."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(SettingsError, match="link"):
        write(TREE, tmp_path / "link")


def test_what_fails_leaves_the_old_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full in the middle, what was there stays there as it was."""
    folder = tmp_path / "tree"
    write(TREE, folder)
    before = {path: path.read_text() for path in folder.rglob("*.yaml")}
    plain = Path.write_text

    def full(self: Path, text: str, *more: Any) -> int:
        if self.name == "e.yaml":
            raise OSError(28, "No space left on device")
        return plain(self, text, *more)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(SettingsError, match="No space left"):
        write(TREE, folder)
    assert {path: path.read_text() for path in folder.rglob("*.yaml")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


def test_differences_name_the_files(tmp_path: Path) -> None:
    """A check says which file is missing, which differs, and which is another's."""
    folder = tmp_path / "tree"
    with pytest.raises(SettingsError, match="is not a folder"):
        differences(TREE, folder)
    write(TREE, folder)
    (folder / "base" / "all.yaml").unlink()
    (folder / "overlays" / "both" / "e.yaml").write_text("changed")
    (folder / "mine.txt").write_text("mine")
    assert differences(TREE, folder) == [
        "missing: base/all.yaml",
        "not of this tree: mine.txt",
        "differs: overlays/both/e.yaml",
    ]


def test_built_results_are_written_beside(tmp_path: Path) -> None:
    """With them, a check compares them as well."""
    folder = tmp_path / "tree"
    write(TREE, folder, built=True)
    made = list(yaml.safe_load_all((folder / "rendered" / "both.yaml").read_text()))
    assert made == build(TREE, "both")
    assert differences(TREE, folder) == []
    (folder / "rendered" / "both.yaml").write_text("changed")
    assert differences(TREE, folder) == ["differs: rendered/both.yaml"]
