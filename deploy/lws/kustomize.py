"""Writes a tree as a kustomize folder that a person can read and keep in Git.

What is written depends on the tree alone, so that two renderings of the same are equal byte by
byte. A folder that holds anything else is not written into: a mistyped path must not cost files.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path, PurePosixPath

from baton.errors import SettingsError
from deploy.lws import yaml_text
from deploy.lws.build import build
from deploy.lws.notes import NOTES
from deploy.lws.readme import readme
from deploy.lws.tree import MARK, Json, Part, Patch, Tree

__all__ = ["build", "differences", "files_of", "write"]

_KUSTOMIZATION = "kustomization.yaml"
_BASE = "base"
_COMPONENTS = "components"
_OVERLAYS = "overlays"
_CLUSTER = "cluster"
_RENDERED = "rendered"


def files_of(tree: Tree, *, built: bool = False) -> dict[str, str]:
    """The text of every file by its path below the tree's folder; with ``built``, also what each
    overlay comes to."""
    found: dict[str, str] = {"README.md": readme(tree)}
    parts = [
        (PurePosixPath(_BASE), tree.base),
        *((PurePosixPath(_COMPONENTS, name), part) for name, part in tree.components.items()),
        *((PurePosixPath(_OVERLAYS, name), part) for name, part in tree.overlays.items()),
        *((PurePosixPath(_CLUSTER, name), part) for name, part in tree.cluster.items()),
    ]
    for folder, part in parts:
        kind = folder.parts[0]
        found[str(folder / _KUSTOMIZATION)] = _kustomization(tree, part, kind)
        for name, objects in part.files.items():
            about = part.abouts.get(name, "")
            found[str(folder / name)] = _head(tree, about) + yaml_text.stream(objects, NOTES)
    for name in tree.overlays if built else ():
        head = _head(tree, f"What overlays/{name} comes to, for reading and comparing.")
        found[f"{_RENDERED}/{name}.yaml"] = head + yaml_text.stream(build(tree, name), NOTES)
    return dict(sorted(found.items()))


def write(tree: Tree, folder: Path, *, force: bool = False, built: bool = False) -> list[str]:
    """Writes the tree to a folder, which then holds this tree and nothing else of ours.

    The new files are complete in a folder beside it before the first old one goes.

    Args:
        tree: what is written.
        folder: made if it is not there.
        force: whether what else lies in it is removed.
        built: whether what each overlay comes to is written as well.

    Returns:
        The paths of the files below the folder.

    Raises:
        SettingsError: the folder holds something that was not made by this, or cannot be written.
    """
    files = files_of(tree, built=built)
    try:
        foreign = [] if force else _foreign(folder)
        if foreign:
            shown = ", ".join(foreign[:3]) + (" and more" if len(foreign) > 3 else "")
            raise SettingsError(
                f"{folder} holds what was not made by `baton deploy render`: {shown}. Choose "
                "another folder, or take --force, which removes it"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            making, old = Path(temporary, "new"), Path(temporary, "old")
            for name, text in files.items():
                path = making / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, "utf-8")
            if folder.exists():
                folder.rename(old)
            try:
                making.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)
                raise
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise SettingsError(f"{folder} cannot be written: {error.strerror or error}") from error
    return list(files)


def differences(tree: Tree, folder: Path) -> list[str]:
    """How a folder differs from what would be written: one line for each file.

    Raises:
        SettingsError: the folder is not there, or cannot be read.
    """
    if not folder.is_dir():
        raise SettingsError(f"{folder} is not a folder; write one with --out {folder}")
    try:
        there = _texts(folder)
    except OSError as error:
        raise SettingsError(f"{folder} cannot be read: {error.strerror or error}") from error
    built = any(name.startswith(f"{_RENDERED}/") for name in there)
    wanted = files_of(tree, built=built)
    lines = []
    for name in sorted({*wanted, *there}):
        if name not in there:
            lines.append(f"missing: {name}")
        elif name not in wanted:
            lines.append(f"not of this tree: {name}")
        elif there[name] != wanted[name]:
            lines.append(f"differs: {name}")
    return lines


def _texts(folder: Path) -> dict[str, str]:
    return {
        str(PurePosixPath(path.relative_to(folder))): path.read_text("utf-8", "replace")
        for path in folder.rglob("*")
        if path.is_file()
    }


def _foreign(folder: Path) -> list[str]:
    """What lies in a folder and was not made by this module."""
    if not os.path.lexists(folder):
        return []
    if not folder.is_dir() or folder.is_symlink():
        return [str(folder)]
    found = []
    for path in sorted(folder.rglob("*")):
        name = str(PurePosixPath(path.relative_to(folder)))
        if path.is_symlink() or (not path.is_dir() and not _ours(path)):
            found.append(name)
    return found


def _ours(path: Path) -> bool:
    with path.open("rb") as file:
        return MARK.encode() in file.readline(1000)


def _head(tree: Tree, about: str) -> str:
    head = f"# Profile {tree.profile}; {MARK}, which writes over changes.\n"
    return head + (yaml_text.comment(f"\n{about}") if about else "") + "\n"


def _kustomization(tree: Tree, part: Part, kind: str) -> str:
    component = kind == _COMPONENTS
    data: Json = {
        "apiVersion": f"kustomize.config.k8s.io/{'v1alpha1' if component else 'v1beta1'}",
        "kind": "Component" if component else "Kustomization",
    }
    if part.namespace:
        data["namespace"] = part.namespace
    resources = [*(["../../base"] if kind == _OVERLAYS else []), *part.files]
    if resources:
        data["resources"] = resources
    if part.components:
        data["components"] = [f"../../{_COMPONENTS}/{name}" for name in part.components]
    text = _head(tree, part.about) + yaml_text.dump(data)
    if part.patches:
        text += "patches:\n" + "".join(_patch_text(patch) for patch in part.patches)
    return text


def _patch_text(patch: Patch) -> str:
    target: Json = {"kind": patch.target.kind}
    if patch.target.name:
        # Kustomize takes it for a regular expression, anchored at both ends.
        target["name"] = patch.target.name
    if patch.target.labels:
        target["labelSelector"] = patch.target.labels
    text = yaml_text.dump([_block_inside(op) for op in patch.ops])
    entry = yaml_text.dump([{"target": target, "patch": text}])
    lines = "".join(f"  {line}\n" if line else "\n" for line in entry.splitlines())
    return yaml_text.comment(patch.about, 2) + lines


def _block_inside(op: Json) -> Json:
    """The operation with a text of several lines before its path: kustomize takes the line end
    off the end of a patch, and with it the text's own."""
    if isinstance(op.get("value"), str) and "\n" in op["value"]:
        return {"op": op["op"], "value": op["value"], "path": op["path"]}
    return op
