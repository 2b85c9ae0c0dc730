"""``baton profile``: built-in profiles listed, any one shown, files checked, the schema printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.table import Table
from rich.text import Text

from baton.cli.console import print_table
from baton.errors import ProfileError
from profiles import builtin_names, load_profile, profile_schema, resolve_profile


def show_list() -> None:
    """Prints name, mode and description of each built-in profile."""
    table = Table("name", "mode", "description", box=None, pad_edge=False)
    for name in builtin_names():
        profile = resolve_profile(name)
        table.add_row(Text(name), str(profile.spec.mode), Text(profile.metadata.description))
    print_table(table)


def show_profile(name: str) -> None:
    """Prints a profile as YAML that reads back as the same profile.

    Raises:
        ProfileError: no such profile, or it is wrong.
    """
    profile = resolve_profile(name)
    data = profile.model_dump(mode="json", by_alias=True)
    # Filled in, so that it is seen; it is also what the version is computed from.
    data["spec"] = profile.canonical_spec()
    sys.stdout.write(f"# Version {profile.version}: what these decisions are, as one word.\n")
    sys.stdout.write(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100))


def validate(files: Sequence[Path]) -> int:
    """Prints a line for each sound file on stdout and one for each problem on stderr."""
    status = 0
    for file in files:
        try:
            profile = load_profile(file)
        except ProfileError as error:
            status = 2
            for problem in error.problems:
                sys.stderr.write(f"{problem}\n")
        else:
            sys.stdout.write(
                f"{file}: ok, profile {profile.name} ({profile.spec.mode}), "
                f"version {profile.version}\n"
            )
    return status


def show_schema() -> None:
    """Prints the JSON Schema."""
    sys.stdout.write(json.dumps(profile_schema(), indent=2) + "\n")
