"""Finding a model's files, reading its config, and digesting its weights.

No torch here: the router and the controller use it too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from baton.errors import ModelError

_CHUNK_BYTES = 4 * 1024 * 1024
_CACHE_ENTRIES = 256
_BLOB = re.compile(r"[0-9a-f]{64}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")

Progress = Callable[[str, float], None]


def resolve_model(source: str, *, home: Path, progress: Progress | None = None) -> Path:
    """The folder of a model.

    Args:
        source: a folder, or an id on the Hugging Face hub.
        home: not used for folders; hub models live in the hub's own cache.
        progress: told what is being done, with a share from 0 to 1.

    Raises:
        ModelError: not found, or files are missing; the message says what to do.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _checked(folder.resolve())
    if source.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(source):
        raise ModelError(f"{source}: no such folder")
    if progress is not None:
        progress(f"fetching {source} from the hub", 0.0)
    return _checked(_from_hub(source))


def _from_hub(source: str) -> Path:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{source} is not a folder, and huggingface_hub is not installed to fetch it; install "
            "a worker extra, or give a folder"
        ) from error
    try:
        return Path(
            huggingface_hub.snapshot_download(
                source, allow_patterns=["*.safetensors", "*.json", "*.jinja", "tokenizer*"]
            )
        )
    except Exception as error:
        raise ModelError(
            f"{source} is not a folder, and could not be fetched from the hub "
            f"({type(error).__name__}). Check the name, the network, and for gated models "
            "HF_TOKEN; or give a folder"
        ) from error


def _checked(folder: Path) -> Path:
    read_model_config(folder)
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} holds no *.safetensors weights")
    return folder


def read_model_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a model's folder.

    Raises:
        ModelError: missing, or not a JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{folder} is not a model: it has no config.json") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a JSON object")
    return config


def model_digest(folder: Path, *, cache_file: Path | None = None) -> str:
    """``sha256:...`` over names and contents of the weights, and over ``config.json``.

    Files of a hub cache are links to blobs that bear the content's SHA-256 as their name, which is
    believed; others are read once and remembered in ``cache_file`` by path, size and time.
    """
    known = _read_cache(cache_file)
    fresh: dict[str, str] = {}
    total = hashlib.sha256()
    for path in [folder / "config.json", *sorted(folder.glob("*.safetensors"))]:
        try:
            file_digest = _file_digest(path, known, fresh)
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error}") from error
        total.update(f"{path.name} {file_digest}\n".encode())
    if cache_file is not None and fresh.keys() - known.keys():
        _write_cache(cache_file, {**known, **fresh})
    return f"sha256:{total.hexdigest()}"


def _file_digest(path: Path, known: dict[str, str], fresh: dict[str, str]) -> str:
    target = path.resolve()
    if path.is_symlink() and _BLOB.fullmatch(target.name):
        return target.name
    stat = target.stat()
    key = f"{target}|{stat.st_size}|{stat.st_mtime_ns}"
    if key not in known:
        digest = hashlib.sha256()
        with target.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        fresh[key] = digest.hexdigest()
    return known.get(key) or fresh[key]


def _read_cache(cache_file: Path | None) -> dict[str, str]:
    if cache_file is None:
        return {}
    try:
        cache = json.loads(cache_file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(cache, dict):
        return {}
    return {k: v for k, v in cache.items() if isinstance(v, str)}


def _write_cache(cache_file: Path, cache: dict[str, str]) -> None:
    """Best effort: a digest that is not remembered is computed again."""
    newest = dict(list(cache.items())[-_CACHE_ENTRIES:])
    with contextlib.suppress(OSError):
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=cache_file.parent, prefix=".digests-")
        with os.fdopen(handle, "w") as file:
            json.dump(newest, file)
        os.replace(temporary, cache_file)
