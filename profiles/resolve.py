"""Profiles from files, from text and from the built-in ones, with every mistake explained.

The only part of the package that touches a file system, and it only reads. What it raises is
always ``ProfileError``, with all problems that could be found at once.
"""

from __future__ import annotations

import stat
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from pydantic import ValidationError

from baton.errors import ProfileError
from profiles.document import MAX_BYTES, Problem, UnreadableError, read_document, show
from profiles.problems import closest, explain, in_order
from profiles.schema import ServingProfile

_SUFFIXES = (".yaml", ".yml")


def parse_profile(text: str, *, source: str) -> ServingProfile:
    """A profile from YAML text; ``source`` is what messages call it.

    Raises:
        ProfileError: one line per problem, ``source:line: field.path: what is wrong``.
    """
    try:
        document = read_document(text)
    except UnreadableError as error:
        raise ProfileError([error.problem.render(source)]) from error
    problems = list(document.problems)
    profile: ServingProfile | None = None
    cause: ValidationError | None = None
    if isinstance(document.value, dict):
        try:
            profile = ServingProfile.model_validate(document.value)
        except ValidationError as error:
            problems.extend(explain(error, document))
            cause = error
    elif () not in document.unread:
        got = "nothing" if document.value is None else show(document.value)
        sentence = f"the top level must be a mapping with apiVersion, kind, ... (got {got})"
        problems.append(Problem(document.line_of(()), (), sentence))
    if profile is None or problems:
        raise ProfileError([problem.render(source) for problem in in_order(problems)]) from cause
    return profile


def load_profile(path: Path) -> ServingProfile:
    """A profile from a YAML file of at most 1 MiB.

    Raises:
        ProfileError: the file cannot be read, or is not a sound profile.
    """
    source = str(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            # A pipe or device could keep the reader waiting for ever.
            kind = "a directory" if path.is_dir() else "not a regular file"
            raise ProfileError([f"{source}: is {kind}; a profile is a YAML file"])
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ProfileError([f"{source}: no such file"]) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise ProfileError([f"{show(source)}: cannot be read: {reason or error}"]) from error
    if len(raw) > MAX_BYTES:
        raise ProfileError([f"{source}: is larger than {MAX_BYTES} bytes; a profile is small"])
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ProfileError([f"{source}:{line}: is not UTF-8 text"]) from error
    return parse_profile(text, source=source)


def builtin_names() -> tuple[str, ...]:
    """The built-in profiles, in the order of the alphabet."""
    return tuple(sorted(_builtin_files()))


def resolve_profile(name_or_path: str) -> ServingProfile:
    """A built-in profile by name, or one from a file: what holds a slash or ends in .yaml or .yml.

    Raises:
        ProfileError: no such profile, or the file is not a sound one.
    """
    if "/" in name_or_path or name_or_path.endswith(_SUFFIXES):
        try:
            path = Path(name_or_path).expanduser()
        except RuntimeError as error:
            raise ProfileError([f"{show(name_or_path)}: no such home folder"]) from error
        return load_profile(path)
    files = _builtin_files()
    file = files.get(name_or_path)
    if file is not None:
        return parse_profile(file.read_text("utf-8"), source=str(file))
    near = closest(name_or_path, list(files))
    hint = f"; did you mean {near}?" if near else "."
    raise ProfileError(
        [
            f"no built-in profile is called {show(name_or_path)}{hint} Built-in profiles: "
            f"{', '.join(sorted(files))}. A file is given with a slash, or ends in .yaml or .yml."
        ]
    )


def _builtin_files() -> dict[str, Traversable]:
    folder = resources.files("profiles") / "builtin"
    return {
        file.name.removesuffix(".yaml"): file
        for file in folder.iterdir()
        if file.name.endswith(".yaml")
    }
