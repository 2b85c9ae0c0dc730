"""The shape and size of a model's KV cache, from its Hugging Face config.

It exists so that two workers can be compared before anything is moved between them (different
block sizes give HTTP 200 with wrong text), and so that a handoff's bytes are known before they
move. Everything here is pure arithmetic over dictionaries.

It computes one kind of cache only: every layer keeps K and V of the whole sequence, all layers
alike. Anything else (latent attention, windows, recurrent or shared layers), and any config that
leaves a figure to a default that this module does not know, is refused with ``ModelError``: a
wrong figure would pair workers that must not be paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from baton.errors import ModelError, SettingsError
from baton.types import KvGeometry

DTYPE_BYTES: Mapping[str, int] = {
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "fp8_e4m3": 1,
    "fp8_e5m2": 1,
}
"""Bytes of one KV element. Formats that keep scales beside the elements are not here."""

_DTYPE_ALIASES = {"half": "float16", "float": "float32", "fp8": "fp8_e4m3"}

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
_HIDDEN = ("hidden_size", "n_embd", "d_model")

# What the transformers library takes a config to mean when it leaves a key out differs between
# model types (a Mistral without num_key_value_heads has 8, a Qwen3 without head_dim has 128).
# These are the types for which silence means the textbook rule; checked against transformers 5.
_MHA_WHEN_SILENT = frozenset(
    {"bloom", "codegen", "gpt2", "gpt_neox", "gptj", "granite", "granitemoe", "llama", "olmo"}
    | {"olmo2", "olmoe", "opt", "phi", "phi3"}
)
_HEAD_SIZE_WHEN_SILENT = _MHA_WHEN_SILENT | frozenset(
    {"mistral", "mixtral", "qwen2", "qwen2_moe", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl"}
    | {"qwen2_5_vl_text", "qwen3_moe", "smollm3", "stablelm", "starcoder2"}
)
# And for these silence about sliding_window means that there is one.
_WINDOW_WHEN_SILENT = frozenset(
    {"cohere2", "exaone4", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "gpt_oss"}
    | {"ministral", "mistral", "olmo3", "vaultgemma"}
)
# qwen2 and its kin write a window into their configs and turn it off with use_sliding_window.
_WINDOW_SWITCH_PREFIX = "qwen"

_FULL_LAYER_TYPES = frozenset({"full_attention", "attention"})

# Keys whose presence (not null, false, 0 or empty) shows a cache of another kind.
_OTHER_KINDS: Mapping[str, tuple[str, ...]] = {
    "latent attention (MLA), one shared vector per token instead of K and V per head": (
        "kv_lora_rank",
        "compress_ratios",
        "index_topk",
    ),
    "windowed or chunked attention, where layers forget": (
        "attention_chunk_size",
        "attention_window_size",
        "sliding_window_pattern",
        "hybrid_layer_pattern",
        "global_attn_every_n_layers",
        "attention_types",
    ),
    "recurrent or linear layers, which keep a state instead of K and V": (
        "ssm_cfg",
        "mamba_d_state",
        "mamba_d_ssm",
        "mamba_expand",
        "mamba_num_heads",
        "ssm_state_size",
        "state_size",
        "lru_width",
        "conv_L_cache",
        "linear_num_key_heads",
        "linear_num_value_heads",
        "linear_attn_config",
        "full_attention_interval",
        "full_attn_idxs",
        "hybrid_override_pattern",
        "attn_type_list",
        "attn_layer_period",
        "attn_layer_indices",
        "layers_block_type",
        "block_types",
    ),
    "layers that differ from each other or share their cache": (
        "block_configs",
        "per_layer_config",
        "num_key_value_heads_per_layer",
        "num_kv_shared_layers",
        "use_cla",
        "cross_attention_layers",
        "num_global_key_value_heads",
        "global_head_dim",
    ),
    "KV heads stated in a way whose meaning differs between model types": (
        "multi_query",
        "multi_query_attention",
        "multi_query_group_num",
        "num_attention_groups",
        "attn_config",
        "hidden_size_per_head",
        "attention_head_dim",
    ),
    "an encoder with a cache of its own": ("is_encoder_decoder",),
}


def geometry_from_config(
    config: Mapping[str, Any],
    *,
    block_size: int,
    kv_dtype: str = "auto",
    tensor_parallel: int = 1,
    layout: str = "HND",
) -> KvGeometry:
    """The KV geometry of a worker that runs the model of ``config`` (its ``config.json``).

    ``bytes_per_token`` is 2 (K and V) x layers x KV heads x head size x bytes of the dtype, summed
    over all ranks. When ``tensor_parallel`` exceeds the KV heads, the engine keeps copies of each
    head on several ranks; copies are not counted, so that the same model has the same figure at
    every degree. What such a group stores, and pulls, is ``tensor_parallel / kv_heads`` times it.

    Args:
        config: the parsed config; a multimodal model's language part is taken from
            ``text_config``.
        block_size: tokens in one block, as the engine runs it.
        kv_dtype: the engine's ``kv_cache_dtype``. ``auto`` means the model's own dtype, and is
            refused where the engine would decide by itself: no dtype or float32 in the config
            (it takes what the device prefers), or a checkpoint that asks for a quantized cache.
            An engine started with its own ``--dtype`` has to name that here.
        tensor_parallel: ranks; has to divide the KV heads, or be a multiple of them.
        layout: the engine's name for the order of axes in a block; compared, not interpreted.

    Raises:
        ModelError: if the config lacks a figure, contradicts itself, or is of another kind.
        SettingsError: if ``block_size``, ``tensor_parallel`` or ``kv_dtype`` is impossible.
    """
    for name, value in (("block_size", block_size), ("tensor_parallel", tensor_parallel)):
        if value < 1:
            raise SettingsError(f"{name} must be 1 or more: {value}")
    text = config.get("text_config") or config
    if not isinstance(text, Mapping):
        raise ModelError(f"text_config must be an object, not {type(text).__name__}")
    for part in (config,) if text is config else (config, text):
        _refuse_other_kinds(part)
    if text.get("model_type") in _WINDOW_WHEN_SILENT and "sliding_window" not in text:
        raise ModelError(
            f"the config does not state sliding_window, and model type {text['model_type']!r} "
            'has one unless told otherwise; state it (null for none, "sliding_window": null)'
        )
    layers = _stated(text, _LAYERS)
    heads = _stated(text, _HEADS)
    kv_heads = _kv_heads(text, heads)
    head_size = _head_size(text, heads)
    if kv_heads % tensor_parallel and tensor_parallel % kv_heads:
        raise SettingsError(
            f"tensor_parallel {tensor_parallel} does not fit {kv_heads} KV heads: "
            "one has to divide the other"
        )
    dtype = _kv_dtype(config, text, kv_dtype)
    return KvGeometry(
        layers=layers,
        kv_heads=kv_heads,
        head_size=head_size,
        dtype=dtype,
        block_size=block_size,
        bytes_per_token=2 * layers * kv_heads * head_size * DTYPE_BYTES[dtype],
        tensor_parallel=tensor_parallel,
        layout=layout,
    )


def blocks(geometry: KvGeometry, tokens: int) -> int:
    """Whole blocks that hold ``tokens`` tokens; 0 for 0.

    Raises:
        ValueError: if ``tokens`` is negative.
    """
    if tokens < 0:
        raise ValueError(f"tokens must not be negative: {tokens}")
    return -(-tokens // geometry.block_size)


def kv_bytes(geometry: KvGeometry, tokens: int) -> int:
    """Bytes of the whole blocks that hold ``tokens`` tokens, over all layers and ranks.

    Raises:
        ValueError: if ``tokens`` is negative.
    """
    return blocks(geometry, tokens) * geometry.block_bytes


# Tensor parallelism is not here: the connector splits and joins heads between degrees, and a
# handoff from one rank to two was measured to be correct.
_COMPARED: Mapping[str, str] = {
    "layers": "layers",
    "kv_heads": "KV heads",
    "head_size": "head size",
    "dtype": "KV dtype",
    "block_size": "block size (tokens)",
    "bytes_per_token": "bytes per token",
    "layout": "block layout",
}


def differences(a: KvGeometry, b: KvGeometry) -> tuple[str, ...]:
    """Why ``a`` and ``b`` cannot be paired, one phrase each, in a fixed order; empty if they can.

    ``tensor_parallel`` may differ.
    """
    return tuple(
        f"{words}: {getattr(a, name)} against {getattr(b, name)}"
        for name, words in _COMPARED.items()
        if getattr(a, name) != getattr(b, name)
    )


def _refuse_other_kinds(config: Mapping[str, Any]) -> None:
    for kind, keys in _OTHER_KINDS.items():
        for key in keys:
            if config.get(key):
                raise ModelError(f"KV geometry of this model is not supported: {kind} ({key})")
    window_off = (
        str(config.get("model_type", "")).startswith(_WINDOW_SWITCH_PREFIX)
        and config.get("use_sliding_window") is False
    )
    if config.get("sliding_window") and not window_off:
        raise ModelError(
            "KV geometry of this model is not supported: windowed attention, where layers forget "
            f"(sliding_window is {config['sliding_window']})"
        )
    layer_types = config.get("layer_types") or ()
    others = sorted({str(kind) for kind in layer_types} - _FULL_LAYER_TYPES)
    if others:
        raise ModelError(
            "KV geometry of this model is not supported: layers of other kinds "
            f"(layer_types has {', '.join(others)})"
        )


def _optional(config: Mapping[str, Any], names: Sequence[str]) -> int | None:
    """The figure under any of ``names``; None if all are missing or null."""
    found: dict[str, int] = {}
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelError(f"the config's {name} must be a positive whole number: {value!r}")
        found[name] = value
    if len(set(found.values())) > 1:
        raise ModelError(f"the config contradicts itself: {found}")
    return next(iter(found.values()), None)


def _stated(config: Mapping[str, Any], names: Sequence[str]) -> int:
    value = _optional(config, names)
    if value is None:
        raise ModelError(f"the config does not state {names[0]}")
    return value


def _refuse_silence(config: Mapping[str, Any], key: str, known: frozenset[str]) -> None:
    """A config without ``key`` (null is an answer) is read by the textbook for known types only."""
    model_type = config.get("model_type")
    if key not in config and model_type is not None and model_type not in known:
        raise ModelError(
            f"the config does not state {key}, and what model type {model_type!r} means by that "
            "is not known here; state it in the config"
        )


def _kv_heads(config: Mapping[str, Any], heads: int) -> int:
    kv_heads = _optional(config, _KV_HEADS)
    if kv_heads is None:
        _refuse_silence(config, _KV_HEADS[0], _MHA_WHEN_SILENT)
        return heads
    if heads % kv_heads:
        raise ModelError(f"{heads} attention heads cannot share {kv_heads} KV heads evenly")
    return kv_heads


def _head_size(config: Mapping[str, Any], heads: int) -> int:
    head_size = _optional(config, ("head_dim",))
    if head_size is None:
        _refuse_silence(config, "head_dim", _HEAD_SIZE_WHEN_SILENT)
        hidden = _stated(config, _HIDDEN)
        if hidden % heads:
            raise ModelError(f"hidden size {hidden} is not a multiple of {heads} attention heads")
        head_size = hidden // heads
    value_size = _optional(config, ("v_head_dim",))
    if value_size not in (None, head_size):
        raise ModelError(f"K and V of different sizes are not supported: {head_size}, {value_size}")
    return head_size


def _kv_dtype(config: Mapping[str, Any], text: Mapping[str, Any], kv_dtype: str) -> str:
    if kv_dtype != "auto":
        name = _DTYPE_ALIASES.get(kv_dtype, kv_dtype)
        if name not in DTYPE_BYTES:
            raise SettingsError(
                f"KV dtype {kv_dtype!r} is not supported; known: auto, fp8, "
                + ", ".join(DTYPE_BYTES)
            )
        return name
    for part in (config, text):
        if _asks_for_quantized_kv(part):
            raise ModelError(
                "the checkpoint asks for a quantized KV cache; name the engine's KV dtype"
            )
    stated = next(
        (p[k] for p in (config, text) for k in ("dtype", "torch_dtype") if p.get(k)), None
    )
    name = str(stated).removeprefix("torch.")
    name = _DTYPE_ALIASES.get(name, name)
    if name not in ("bfloat16", "float16"):
        raise ModelError(
            f"the config's dtype is {stated}, so the engine picks one for the device; "
            "name the engine's KV dtype"
        )
    return name


def _asks_for_quantized_kv(config: Mapping[str, Any]) -> bool:
    """Whether a quantization section (compressed-tensors, ModelOpt) names a KV format."""
    for section in ("quantization_config", "compression_config"):
        outer = config.get(section)
        if not isinstance(outer, Mapping):
            continue
        inner = outer.get("quantization")
        for part in (outer, inner) if isinstance(inner, Mapping) else (outer,):
            if part.get("kv_cache_scheme") or part.get("kv_cache_quant_algo"):
                return True
    return False
