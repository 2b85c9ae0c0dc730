"""Finding a model's files, reading its config, and digesting its weights.

It exists so that workers are paired by what their weights are and not by what they are called,
and so that a wrong model is a clear message before an engine starts. It refuses to import torch
(the router and the controller use it too) and to make models: "demo" is the command line's word.
"""

from __future__ import annotations

import contextlib
import errno
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
_WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer*"]
_UNWANTED = ["*/*"]  # other formats of the same model live in folders of their own
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
    if folder.exists():
        raise ModelError(f"{source} is a file; give the folder that holds config.json")
    if source.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(source):
        raise ModelError(
            f"{source}: no such folder. Check the path, or give an id on the hub such as owner/name"
        )
    if progress is not None:
        progress(f"fetching {source} from the hub", 0.0)
    folder = _checked(_from_hub(source))
    if progress is not None:
        progress(f"{source} is here", 1.0)
    return folder


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
                source, allow_patterns=_WANTED, ignore_patterns=_UNWANTED
            )
        )
    except Exception as error:  # the hub's own, its HTTP client's and the system's alike
        raise ModelError(
            f"{source} is not a folder, and could not be fetched from the hub: {_remedy(error)}"
        ) from error


def _remedy(error: Exception) -> str:
    """What went wrong on the way to the hub, and what to do.

    Goes by the names of classes, the error's own and its parents', because they moved between
    modules from one version of huggingface_hub to the next.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    what = type(error).__name__
    if "GatedRepoError" in names:
        return "it is gated. Accept its terms on its page, and set HF_TOKEN to a token of yours"
    if "RepositoryNotFoundError" in names:
        return (
            f"there is no such model, or it is private ({what}). Check the name, and for private "
            "models set HF_TOKEN; or give a folder"
        )
    if "HFValidationError" in names:
        return f"this is no id ({error}). Ids have the form owner/name; or give a folder"
    if names & {"OfflineModeIsEnabled", "LocalEntryNotFoundError"}:
        return (
            f"the hub was not reached and its cache does not hold the model ({what}). Check the "
            "network, HF_HUB_OFFLINE and HF_HOME; or give a folder"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({error}). Make room, or set HF_HOME to another disk"
    if isinstance(error, PermissionError):
        return f"the cache cannot be written ({error}). Set HF_HOME to a folder of yours"
    return (
        f"{what}: {error}. Check the name, the network, and for gated or private models HF_TOKEN; "
        "or give a folder"
    )


def _checked(folder: Path) -> Path:
    """The folder, if it has a config and all its weights.

    A tokenizer is not asked for here: engines read several kinds, and a router that cannot read
    one asks the engine.
    """
    read_model_config(folder)
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} holds no *.safetensors weights. Other formats are not read: save the model "
            "again with safetensors"
        )
    missing = [name for name in _shards(folder) if not (folder / name).exists()]
    if missing:
        raise ModelError(
            f"{folder} is not complete: {missing[0]} is missing"
            + (f", and {len(missing) - 1} more" if len(missing) > 1 else "")
            + ". Fetch or copy the model again"
        )
    return folder


def _shards(folder: Path) -> list[str]:
    """The weight files that the index names; none if there is no index."""
    path = folder / "model.safetensors.index.json"
    try:
        index = json.loads(path.read_text("utf-8"))
        return sorted(set(index["weight_map"].values()))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error


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
    believed; others are read once and remembered in ``cache_file`` by path, size and time (the
    last 256). A cache that cannot be read or written is done without.

    Raises:
        ModelError: no weights, or a file cannot be read.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(f"{folder} holds no *.safetensors weights")
    known = _read_cache(cache_file)
    fresh: dict[str, str] = {}
    total = hashlib.sha256()
    for path in [folder / "config.json", *weights]:
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
    if path.is_symlink() and target.parent.name == "blobs" and _BLOB.fullmatch(target.name):
        target.stat()  # a link to nothing is an error all the same
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
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(newest, file)
            os.replace(temporary, cache_file)
        except BaseException:
            os.unlink(temporary)
            raise
