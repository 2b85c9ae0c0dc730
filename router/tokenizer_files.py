"""What a model's folder says of its tokenizer, and whether an engine would do as it says.

It exists because ``tokenizer.json`` is not the whole truth: transformers gives some folders a
class that builds its own pipeline around the file's vocabulary, and some engines have tokenizers
of their own. The rules are those of transformers 5.19 (``models/auto/tokenization_auto.py``,
``tokenization_utils_tokenizers.py``) and vLLM 0.32.0 (``tokenizers/registry.py``), read here
without importing either. What is not known to follow the file is a doubt, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from tokenizers import AddedToken, Tokenizer

from baton.errors import ModelError

MAX_MODEL_FILE_BYTES: Final = 256 * 1024 * 1024
"""For the JSON files of a model's folder. Large vocabularies take some 30 MB."""

GENERIC_TOKENIZER_CLASSES: Final = frozenset({"PreTrainedTokenizerFast", "TokenizersBackend"})
"""Classes that add nothing of their own to what the folder's files say."""

NAMED_SPECIAL_TOKENS: Final = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def read_model_json(folder: Path, name: str) -> dict[str, Any] | None:
    """One JSON object of a model's folder; None if there is no such file.

    Raises:
        ModelError: the file is unreadable, too large, or holds something else.
    """
    path = folder / name
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > MAX_MODEL_FILE_BYTES:
            raise ModelError(f"{path} is larger than {MAX_MODEL_FILE_BYTES} bytes")
        value = msgspec.json.decode(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} does not hold a JSON object")
    return value


def special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """What the template's variables ``bos_token`` and so on hold, by name.

    The older ``special_tokens_map.json`` counts only where ``tokenizer_config.json`` has no
    ``added_tokens_decoder``, as in transformers; there it wins. Besides the seven names, every
    ``*_token`` that is a string is a variable, and so is every entry of a named
    ``extra_special_tokens``.
    """
    merged = dict(config)
    if "added_tokens_decoder" not in config:
        merged |= read_model_json(folder, "special_tokens_map.json") or {}
    tokens: dict[str, str] = {}
    for name, value in merged.items():
        if isinstance(value, dict) and name in NAMED_SPECIAL_TOKENS:
            value = value.get("content")
        if name.endswith("_token") and isinstance(value, str):
            tokens[name] = value
    extra = merged.get("extra_special_tokens")
    if isinstance(extra, dict):
        tokens |= {name: value for name, value in extra.items() if isinstance(value, str)}
    return tokens


# --- does an engine tokenize as the file says? -----------------------------------------------

# Model types whose tokenizers transformers loads from tokenizer.json as it stands, whatever class
# the folder names. There are more; for those left out the folder's class has to say it.
_GENERIC_MODEL_TYPES: Final = frozenset(
    {
        "deepseek_v3",
        "glm4",
        "glm4_moe",
        "granite",
        "minimax_m2",
        "mistral",
        "mixtral",
        "olmo2",
        "phi3",
    }
)
# The other way round: a class of their own, whatever the folder names.
_OWN_CLASS_MODEL_TYPES: Final = {
    "qwen2": "Qwen2Tokenizer",
    "qwen3_5": "Qwen3_5Tokenizer",
    "qwen3_5_moe": "Qwen3_5Tokenizer",
    "qwen3_5_moe_text": "Qwen3_5Tokenizer",
    "qwen4_exp": "Qwen3_5Tokenizer",
    "hyperclovax_vision_v2": "GPT2Tokenizer",
}
_BYTE_LEVEL: Final = {"type": "ByteLevel", "add_prefix_space": False}
# Classes that build their own pipeline around the file's vocabulary: normalizer, pre-tokenizer.
_REBUILT: Final[Mapping[str, tuple[Any, Any]]] = {
    "GPT2Tokenizer": (None, {**_BYTE_LEVEL, "use_regex": True}),
    "Qwen2Tokenizer": (
        {"type": "NFC"},
        {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {
                        "Regex": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
                        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
                    },
                    "behavior": "Isolated",
                    "invert": False,
                },
                {**_BYTE_LEVEL, "use_regex": False},
            ],
        },
    ),
}
# Engines read and render these with code of their own.
_OWN_TOKENIZERS: Final = ("DeepseekV32", "DeepseekV4", "Inkling", "KimiK3", "MoonshotKimia")


def architectures(model: Mapping[str, Any]) -> list[str]:
    """The classes that ``config.json`` names."""
    names = model.get("architectures")
    return [str(name) for name in names] if isinstance(names, list) else []


def text_doubt(
    folder: Path, pipeline: Mapping[str, Any], settings: Mapping[str, Any], model: Mapping[str, Any]
) -> str | None:
    """Why text may not become the tokens that ``tokenizer.json`` says, or None if it does.

    Args:
        folder: the model's folder.
        pipeline: its ``tokenizer.json``.
        settings: its ``tokenizer_config.json``.
        model: its ``config.json``.
    """
    if any(name.startswith(_OWN_TOKENIZERS) for name in architectures(model)):
        return "the engine has a tokenizer of its own for this architecture"
    if any(folder.glob("consolidated*.safetensors")) and (
        (folder / "tekken.json").exists() or any(folder.glob("tokenizer.model.v*"))
    ):
        return "the engine reads this folder in Mistral's format"
    if "auto_map" in settings:
        return "the folder brings code for its tokenizer"
    if (pipeline.get("model") or {}).get("dropout"):
        return "the tokenizer is random (BPE dropout)"
    model_type = str(model.get("model_type"))
    if model_type in _GENERIC_MODEL_TYPES:
        return None
    named = settings.get("tokenizer_class") or model.get("tokenizer_class")
    if named is None and model_type == "llama":
        return None
    named = _OWN_CLASS_MODEL_TYPES.get(model_type, str(named))
    if named in GENERIC_TOKENIZER_CLASSES:
        return None
    rebuilt = _REBUILT.get(named.removesuffix("Fast"))
    if rebuilt is None:
        return f"tokenizer class {named}: not known to follow tokenizer.json"
    same = (pipeline.get("normalizer"), _without(pipeline.get("pre_tokenizer"))) == rebuilt
    if not same or settings.get("add_prefix_space") or not _is_plain_bpe(pipeline):
        return f"tokenizer.json does not say what {named} builds"
    return None


def _without(pre_tokenizer: Any, key: str = "trim_offsets") -> Any:
    """The pre-tokenizer without a flag that changes offsets and no tokens."""
    if isinstance(pre_tokenizer, dict):
        return {k: _without(v) for k, v in pre_tokenizer.items() if k != key}
    if isinstance(pre_tokenizer, list):
        return [_without(item) for item in pre_tokenizer]
    return pre_tokenizer


def _is_plain_bpe(pipeline: Mapping[str, Any]) -> bool:
    model = pipeline.get("model")
    return (
        isinstance(model, dict)
        and model.get("type") == "BPE"
        and not any(
            model.get(flag)
            for flag in (
                "continuing_subword_prefix",
                "end_of_word_suffix",
                "fuse_unk",
                "byte_fallback",
                "ignore_merges",
            )
        )
    )


def add_missing_specials(tokenizer: Tokenizer, folder: Path, settings: Mapping[str, Any]) -> None:
    """Special tokens that only the settings name are tokens of the engine's tokenizer as well."""
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens")
    wanted = [*special_tokens(folder, settings).values(), *(extra if type(extra) is list else [])]
    decoder = settings.get("added_tokens_decoder")
    wanted += decoder.values() if isinstance(decoder, dict) else []
    for item in wanted:
        flags = dict(item) if isinstance(item, dict) else {"content": item, "special": True}
        flags.pop("__type", None)
        token = AddedToken(**flags)
        if token.content not in known:
            known.add(token.content)
            tokenizer.add_tokens([token])


# --- bounds -----------------------------------------------------------------------------------

_KEEPS_TEXT: Final = frozenset({"ByteLevel", "Digits", "Punctuation", "Split"})


def longest_token_bytes(tokenizer: Tokenizer, pipeline: Mapping[str, Any]) -> int | None:
    """Bytes of the longest token, or None if text and tokens do not share their bytes out.

    They do where nothing is removed, replaced or added on the way: no normalizer but NFC, only
    pre-tokenizers that cut, all 256 bytes in the vocabulary, and no added token that swallows the
    blanks around it.
    """
    if pipeline.get("normalizer") not in (None, {"type": "NFC"}):
        return None
    stages = pipeline.get("pre_tokenizer") or {}
    stages = stages.get("pretokenizers", [stages])
    if not any(stage.get("type") == "ByteLevel" for stage in stages):
        return None
    for stage in stages:
        if stage.get("type") not in _KEEPS_TEXT or stage.get("behavior") == "Removed":
            return None
        if stage.get("type") == "ByteLevel" and stage.get("add_prefix_space", True):
            return None
    model = pipeline.get("model") or {}
    if model.get("type") != "BPE" or any(
        model.get(flag) for flag in ("continuing_subword_prefix", "end_of_word_suffix")
    ):
        return None
    added = tokenizer.get_added_tokens_decoder().values()
    if any(token.lstrip or token.rstrip for token in added):
        return None
    # In a byte-level vocabulary each character stands for one byte.
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    if not _byte_alphabet() <= vocabulary.keys():
        return None
    return max(
        *(len(token) for token in vocabulary), *(len(token.content.encode()) for token in added), 1
    )


def _byte_alphabet() -> set[str]:
    """The characters that stand for the 256 bytes: printable Latin-1 for themselves, the other
    68 from U+0100 on (the encoding of GPT-2's vocabulary)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return {chr(code) for code in printable} | {chr(0x100 + i) for i in range(256 - len(printable))}
