"""YAML files that describe one model each: reading, checking, and every mistake explained.

What profiles and workloads have in common. It only reads, and what it raises is always the error
of the kind of file, with all problems that could be found at once.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from baton.errors import OperatorError
from profiles.document import MAX_BYTES, Document, Problem, UnreadableError, read_document, show
from profiles.explain import closest, in_order

_SUFFIXES = (".yaml", ".yml")

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class YamlKind(Generic[Model]):
    """One kind of file.

    Attributes:
        model: what a file is validated as.
        noun: what messages call it, such as ``profile``.
        package: whose folder ``builtin`` holds the files that come with Baton.
        explain: what pydantic found, as problems with lines.
        error: the error to raise with lines ``source:line: field.path: what is wrong``.
        number_keys: whether a key may be a whole number; it is then its digits.
    """

    model: type[Model]
    noun: str
    package: str
    explain: Callable[[ValidationError, Document], list[Problem]]
    error: Callable[[Sequence[str]], OperatorError]
    number_keys: bool = False

    def parse(self, text: str, *, source: str) -> Model:
        """From YAML text; ``source`` is what messages call it."""
        try:
            document = read_document(text, noun=self.noun, number_keys=self.number_keys)
        except UnreadableError as error:
            raise self.error([error.problem.render(source)]) from error
        problems = list(document.problems)
        value: Model | None = None
        cause: ValidationError | None = None
        if isinstance(document.value, dict):
            try:
                value = self.model.model_validate(document.value)
            except ValidationError as error:
                problems.extend(self.explain(error, document))
                cause = error
        elif () not in document.unread:
            got = "nothing" if document.value is None else show(document.value)
            sentence = f"the top level must be a mapping with apiVersion, kind, ... (got {got})"
            problems.append(Problem(document.line_of(()), (), sentence))
        if value is None or problems:
            raise self.error([problem.render(source) for problem in in_order(problems)]) from cause
        return value

    def load(self, path: Path) -> Model:
        """From a file of at most 1 MiB."""
        source = str(path)
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                # A pipe or device could keep the reader waiting for ever.
                kind = "a directory" if path.is_dir() else "not a regular file"
                raise self.error([f"{source}: is {kind}; a {self.noun} is a YAML file"])
            with path.open("rb") as file:
                raw = file.read(MAX_BYTES + 1)
        except FileNotFoundError as error:
            raise self.error([f"{source}: no such file"]) from error
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            raise self.error([f"{show(source)}: cannot be read: {reason or error}"]) from error
        if len(raw) > MAX_BYTES:
            what = f"is larger than {MAX_BYTES} bytes; a {self.noun} is small"
            raise self.error([f"{source}: {what}"])
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            raise self.error([f"{source}:{line}: is not UTF-8 text"]) from error
        return self.parse(text, source=source)

    def path_of(self, name_or_path: str) -> Path | None:
        """The path that is meant, by what holds a slash or ends in .yaml or .yml; None for a
        built-in's name."""
        if "/" not in name_or_path and not name_or_path.endswith(_SUFFIXES):
            return None
        try:
            return Path(name_or_path).expanduser()
        except RuntimeError as error:
            raise self.error([f"{show(name_or_path)}: no such home folder"]) from error

    def builtin_names(self) -> tuple[str, ...]:
        """Those that come with Baton, in the order of the alphabet."""
        return tuple(sorted(self._builtin_files()))

    def builtin(self, name: str) -> Model:
        """One that comes with Baton."""
        files = self._builtin_files()
        file = files.get(name)
        if file is not None:
            return self.parse(file.read_text("utf-8"), source=str(file))
        near = closest(name, list(files))
        hint = f"; did you mean {near}?" if near else "."
        raise self.error(
            [
                f"no built-in {self.noun} is called {show(name)}{hint} Built-in {self.noun}s: "
                f"{', '.join(sorted(files))}. A file is given with a slash, or ends in .yaml or "
                ".yml."
            ]
        )

    def _builtin_files(self) -> dict[str, Traversable]:
        folder = resources.files(self.package) / "builtin"
        return {
            file.name.removesuffix(".yaml"): file
            for file in folder.iterdir()
            if file.name.endswith(".yaml")
        }
