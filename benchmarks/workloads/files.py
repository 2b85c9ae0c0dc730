"""Workloads from files and the built-in ones, with every mistake explained.

It reads the workload alone; a trace that it names is read when a plan is built. What it raises is
always ``WorkloadError``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from baton.errors import WorkloadError
from benchmarks.workloads.spec import LABEL_PATTERN, PRIORITY_PATTERN, Workload
from profiles import PATTERNS, Explainer, YamlKind

_EXPLAINER = Explainer(
    Workload,
    patterns={
        **PATTERNS,
        PRIORITY_PATTERN: "must be a whole number of at most nine digits",
        LABEL_PATTERN: "must be letters, digits and . _ : / @ - only, starting with a letter or "
        "digit",
    },
)


def _error(problems: Sequence[str]) -> WorkloadError:
    return WorkloadError("\n".join(problems))


_WORKLOADS = YamlKind(
    Workload,
    noun="workload",
    package="benchmarks.workloads",
    explain=_EXPLAINER.explain,
    error=_error,
    number_keys=True,
)


def parse_workload(text: str, *, source: str, folder: Path | None = None) -> Workload:
    """A workload from YAML text; ``source`` is what messages call it, ``folder`` where a relative
    path of a trace starts (None leaves it to the current folder).

    Raises:
        WorkloadError: one line per problem, ``source:line: field.path: what is wrong``.
    """
    workload = _WORKLOADS.parse(text, source=source)
    return workload if folder is None else _located(workload, folder)


def load_workload(source: str | Path) -> Workload:
    """A built-in workload by name, or one from a file: a Path, or text that holds a slash or ends
    in .yaml or .yml. A relative path of its trace becomes one that starts at the file's folder.

    Raises:
        WorkloadError: no such workload, or the file is not a sound one.
    """
    path = source if isinstance(source, Path) else _WORKLOADS.path_of(source)
    if path is None:
        return _WORKLOADS.builtin(str(source))
    return _located(_WORKLOADS.load(path), path.parent)


def builtin_workloads() -> tuple[str, ...]:
    """The names of the built-in workloads, in the order of the alphabet."""
    return _WORKLOADS.builtin_names()


def workload_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a workload, for editors. Rules between fields are not all in it:
    ``load_workload`` has the last word."""
    schema = Workload.model_json_schema(by_alias=True)
    # Distributions are generic, and pydantic names their definitions after all of their types.
    text = json.dumps(schema)
    for name, definition in schema["$defs"].items():
        text = text.replace(json.dumps(name)[1:-1] + '"', definition["title"] + '"')
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **json.loads(text)}


def _located(workload: Workload, folder: Path) -> Workload:
    """The workload with its trace's path resolved."""
    spec = workload.spec
    if spec.trace is None or spec.trace.file.startswith("~"):
        return workload
    trace = spec.trace.model_copy(update={"file": str(folder / spec.trace.file)})
    return workload.model_copy(update={"spec": spec.model_copy(update={"trace": trace})})
