"""The pages on Kubernetes are right where a machine can tell: commands parse, files are sound and
render to objects that a cluster would take, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from baton.cli.app import app
from deploy.lws.site import site_from_text
from profiles import parse_profile
from tests.manifests import check

ROOT = Path(__file__).resolve().parents[3]
PAGES = [*sorted((ROOT / "docs" / "kubernetes").glob("*.md")), ROOT / "docs" / "images.md"]
GUIDES = ["gke.md", "on-premises.md", "kind.md"]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_IN_CHECKOUT = re.compile(r"\b(?:deploy|docs|tests|requirements)/[\w./-]*\w")


def page(name: str) -> str:
    """The text of one of the pages."""
    return (ROOT / "docs" / "kubernetes" / name).read_text("utf-8")


def blocks(text: str, *languages: str) -> list[str]:
    """Code blocks in these languages."""
    return [block for language, block in _BLOCK.findall(text) if language in languages]


def lines(text: str) -> Iterator[str]:
    """What people type: lines of a shell, those that go on joined; of a console those after $."""
    for block in blocks(text, "sh", "bash", ""):
        yield from block.replace("\\\n", " ").splitlines()
    for block in blocks(text, "console"):
        joined = block.replace("\\\n", " ").splitlines()
        yield from (line[2:] for line in joined if line.startswith("$ "))


def baton_commands(text: str) -> Iterator[list[str]]:
    """What follows ``baton`` wherever it is called: on its own, in a pipe, or in a pod."""
    for line in lines(text):
        if not re.search(r"(?:^|[\s|;&])baton\s", line):
            continue  # other people's commands need not be taken apart
        words = shlex.shlex(line, posix=True, punctuation_chars="|;&<>")
        words.whitespace_split = True
        call: list[str] | None = None
        before = ";"
        for word in words:
            if set(word) <= set("|;&<>"):
                if call is not None:
                    yield call
                call = None
            elif call is not None:
                call.append(word)
            elif word == "baton" and (before == "--" or set(before) <= set("|;&")):
                call = []
            before = word
        if call is not None:
            yield call


@cache
def whole_command() -> Any:
    """``baton`` with all its commands, as typer reads them."""
    return get_command(app)


def resolve(arguments: list[str]) -> None:
    """Goes down to the command that is meant, and has it read its arguments.

    Raises:
        typer's usage errors: no such command, option or value.
    """
    command, name, parent = whole_command(), "baton", None
    while True:
        context = command.make_context(name, list(arguments), parent=parent)
        if not hasattr(command, "resolve_command"):
            return
        rest = [*context._protected_args, *context.args]
        if not rest:
            return
        name, command, arguments = command.resolve_command(context, rest)
        parent = context


def slug(title: str) -> str:
    """The anchor that is made of a heading."""
    kept = re.sub(r"[^\w\- ]", "", title.strip().lower())
    return kept.replace(" ", "-")


@cache
def anchors(path: Path) -> frozenset[str]:
    """The anchors of a page."""
    text = _BLOCK.sub("", path.read_text("utf-8"))
    return frozenset(slug(found) for found in re.findall(r"^#+ (.+)$", text, re.MULTILINE))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_are_understood(path: Path) -> None:
    """Each call of ``baton`` names a command that exists, with options and values that it takes."""
    for arguments in baton_commands(path.read_text("utf-8")):
        try:
            resolve(arguments)
        except Exception as error:
            pytest.fail(f"{path.name}: baton {shlex.join(arguments)}: {error!r}")


@pytest.mark.parametrize("name", GUIDES)
def test_guides_call_the_commands_of_this_piece(name: str) -> None:
    """So that the test above does not pass because it finds nothing."""
    called = {" ".join(call[:2]) for call in baton_commands(page(name))}
    assert {"deploy render", "doctor cluster"} <= called
    assert "pairs" in called


@pytest.mark.parametrize(
    "arguments", [["doctor", "clutser"], ["doctor", "cluster", "--sight", "gke"], ["pears"]]
)
def test_a_wrong_command_is_found(arguments: list[str]) -> None:
    """A misspelt command or option does not pass."""
    with pytest.raises(Exception, match="No such"):
        resolve(arguments)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    """To a file that exists, and to a heading in it."""
    for link in _LINK.findall(_BLOCK.sub("", path.read_text("utf-8"))):
        if link.startswith("http"):
            continue
        target, _, anchor = link.partition("#")
        there = (path.parent / target).resolve() if target else path
        assert there.exists(), f"{path.name}: {link}"
        if anchor:
            assert anchor in anchors(there), f"{path.name}: {link}"


@pytest.mark.parametrize("name", ["README.md", *GUIDES])
def test_files_of_the_checkout_exist(name: str) -> None:
    """Wherever a page names one, in prose or in a command."""
    text = page(name).replace("$NAME", "router")
    for found in _IN_CHECKOUT.findall(text):
        assert (ROOT / found).exists(), f"{name}: {found}"


@pytest.mark.parametrize("name", GUIDES)
def test_yaml_is_sound(name: str) -> None:
    """Each block parses; profiles and sites are taken as such."""
    for block in blocks(page(name), "yaml"):
        found = yaml.safe_load(block)
        if found.get("kind") == "ServingProfile":
            parse_profile(block, source=name)
        elif found.get("kind") == "Site":
            site_from_text(block, name)


def write_files(text: str, folder: Path) -> None:
    """Writes the page's files: blocks whose first line is a comment with their name."""
    for block in blocks(text, "yaml"):
        if found := re.match(r"# (\S+\.yaml)\n", block):
            path = folder / found[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block, "utf-8")


@pytest.mark.parametrize(
    ("name", "overlays"),
    [
        ("gke.md", {"serving/my-gke", "serving-standard/my-gke-standard"}),
        ("on-premises.md", {"serving/my-racks"}),
        ("kind.md", set()),
    ],
)
def test_renderings_run(
    name: str, overlays: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the page's own files, in the page's order; a cluster would take what comes out."""
    monkeypatch.chdir(tmp_path)
    write_files(page(name), tmp_path)
    for line in lines(page(name)):
        if line.startswith("sed ") and ".yaml >" in line:
            subprocess.run(["sh", "-c", line], check=True)
        for call in baton_commands(f"```sh\n{line}\n```"):
            if call[:2] not in (["deploy", "render"], ["profile", "validate"]):
                continue
            told = [*call, "--rendered"] if "--out" in call else call
            done = CliRunner().invoke(app, told)
            assert done.exit_code == 0, f"{shlex.join(call)}: {done.output}"
            if call[1] == "render" and "--out" not in call:
                assert check(yaml.safe_load_all(done.stdout)) == []
    built = {f"{path.parent.parent.name}/{path.stem}" for path in tmp_path.glob("*/rendered/*")}
    assert built == overlays
    for path in tmp_path.glob("*/rendered/*.yaml"):
        objects = list(yaml.load_all(path.read_text("utf-8"), yaml.CSafeLoader))
        assert check(objects) == [], path.name


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl")
def test_a_kustomization_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one of the GKE page adds a profile and the wish, and leaves scaling to the controller."""
    monkeypatch.chdir(tmp_path)
    write_files(page("gke.md"), tmp_path)
    render = ["--profile", "llama-8b.yaml", "--site", "my-gke.yaml", "--out", "serving"]
    assert CliRunner().invoke(app, ["deploy", "render", *render]).exit_code == 0
    built = subprocess.run(
        ["kubectl", "kustomize", "live"], capture_output=True, text=True, check=True
    )
    objects = list(yaml.load_all(built.stdout, yaml.CSafeLoader))
    profiles = next(
        found
        for found in objects
        if (found["kind"], found["metadata"]["name"]) == ("ConfigMap", "baton-profiles")
    )
    assert profiles["data"]["active"] == "llama-8b"
    assert parse_profile(profiles["data"]["standard-8b.yaml"], source="").name == "standard-8b"
    assert parse_profile(profiles["data"]["llama-8b.yaml"], source="").name == "llama-8b"
    sets = [found for found in objects if found["kind"] == "LeaderWorkerSet"]
    assert len(sets) == 2
    assert not any("replicas" in found["spec"] for found in sets)
