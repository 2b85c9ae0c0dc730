"""Profiles from files, from text and from the built-in ones, with every mistake explained.

The only part of the package that touches a file system, and it only reads. What it raises is
always ``ProfileError``, with all problems that could be found at once.
"""

from __future__ import annotations

from pathlib import Path

from baton.errors import ProfileError
from profiles.problems import explain
from profiles.schema import ServingProfile
from profiles.yaml_files import YamlKind

_PROFILES = YamlKind(
    ServingProfile, noun="profile", package="profiles", explain=explain, error=ProfileError
)


def parse_profile(text: str, *, source: str) -> ServingProfile:
    """A profile from YAML text; ``source`` is what messages call it.

    Raises:
        ProfileError: one line per problem, ``source:line: field.path: what is wrong``.
    """
    return _PROFILES.parse(text, source=source)


def load_profile(path: Path) -> ServingProfile:
    """A profile from a YAML file of at most 1 MiB.

    Raises:
        ProfileError: the file cannot be read, or is not a sound profile.
    """
    return _PROFILES.load(path)


def builtin_names() -> tuple[str, ...]:
    """The built-in profiles, in the order of the alphabet."""
    return _PROFILES.builtin_names()


def resolve_profile(name_or_path: str) -> ServingProfile:
    """A built-in profile by name, or one from a file: what holds a slash or ends in .yaml or .yml.

    Raises:
        ProfileError: no such profile, or the file is not a sound one.
    """
    path = _PROFILES.path_of(name_or_path)
    return _PROFILES.builtin(name_or_path) if path is None else _PROFILES.load(path)
