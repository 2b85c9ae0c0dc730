"""KV geometry: figures of real models, refusals of what would be figured wrong, pairing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import ModelError, SettingsError
from baton.types import KvGeometry
from kvtransfer.geometry import blocks, differences, geometry_from_config, kv_bytes

# Only the keys that matter here, as the published config files have them.
LLAMA_3_8B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
}
LLAMA_2_70B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "torch_dtype": "float16",
}
LLAMA_1_7B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "torch_dtype": "float16",
}
QWEN_2_5_7B: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "torch_dtype": "bfloat16",
}
QWEN_3_0_6B: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "sliding_window": None,
    "use_sliding_window": False,
    "torch_dtype": "bfloat16",
}
MISTRAL_7B_V03: dict[str, Any] = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
}
GPT_2: dict[str, Any] = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12}
MULTIMODAL: dict[str, Any] = {
    "model_type": "llava",
    "torch_dtype": "bfloat16",
    "vision_config": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "text_config": {k: v for k, v in LLAMA_3_8B.items() if k != "torch_dtype"},
}


def geometry(config: dict[str, Any] | None = None, /, **options: Any) -> KvGeometry:
    return geometry_from_config(config or LLAMA_3_8B, **({"block_size": 16} | options))


@pytest.mark.parametrize(
    ("config", "kv_dtype", "shape", "bytes_per_token"),
    [
        pytest.param(LLAMA_3_8B, "auto", (32, 8, 128, "bfloat16"), 131072, id="Llama-3-8B"),
        pytest.param(LLAMA_2_70B, "auto", (80, 8, 128, "float16"), 327680, id="Llama-2-70B"),
        pytest.param(LLAMA_1_7B, "auto", (32, 32, 128, "float16"), 524288, id="Llama-7B, MHA"),
        pytest.param(QWEN_2_5_7B, "auto", (28, 4, 128, "bfloat16"), 57344, id="Qwen2.5-7B"),
        pytest.param(QWEN_3_0_6B, "auto", (28, 8, 128, "bfloat16"), 114688, id="Qwen3-0.6B"),
        pytest.param(MISTRAL_7B_V03, "auto", (32, 8, 128, "bfloat16"), 131072, id="Mistral-v0.3"),
        pytest.param(GPT_2, "float16", (12, 12, 64, "float16"), 36864, id="GPT-2"),
        pytest.param(GPT_2, "float32", (12, 12, 64, "float32"), 73728, id="GPT-2, float32"),
        pytest.param(LLAMA_3_8B, "fp8", (32, 8, 128, "fp8_e4m3"), 65536, id="fp8"),
        pytest.param(LLAMA_3_8B, "fp8_e5m2", (32, 8, 128, "fp8_e5m2"), 65536, id="fp8_e5m2"),
        pytest.param(MULTIMODAL, "auto", (32, 8, 128, "bfloat16"), 131072, id="text_config"),
    ],
)
def test_figures_of_real_models(
    config: dict[str, Any], kv_dtype: str, shape: tuple[Any, ...], bytes_per_token: int
) -> None:
    """Layers, KV heads, head size, dtype and bytes per token of models people run."""
    got = geometry(config, kv_dtype=kv_dtype)
    assert (got.layers, got.kv_heads, got.head_size, got.dtype) == shape
    assert got.bytes_per_token == bytes_per_token
    assert (got.block_size, got.block_bytes) == (16, 16 * bytes_per_token)


@pytest.mark.parametrize(
    "change",
    [
        {"head_dim": None},
        {"torch_dtype": None, "dtype": "bfloat16"},
        {"torch_dtype": "torch.bfloat16"},
        {"sliding_window": 0},
        {"kv_lora_rank": None},
        {"layer_types": ["full_attention"] * 32},
        {"text_config": None},
        {"n_head": 32},
        {"v_head_dim": 128},
        {"quantization_config": {"quant_method": "fp8", "kv_cache_scheme": None}},
    ],
    ids=str,
)
def test_spellings_of_the_same_model(change: dict[str, Any]) -> None:
    """Null, zero and older spellings mean what the engine takes them to mean."""
    assert geometry(LLAMA_3_8B | change) == geometry()


def test_null_kv_heads_mean_one_per_attention_head() -> None:
    """An explicit null is multi-head attention, whatever the model type."""
    assert geometry(QWEN_3_0_6B | {"num_key_value_heads": None}).kv_heads == 16


def test_dtype_of_the_whole_comes_before_that_of_the_part() -> None:
    """A multimodal config's own dtype is what the engine runs the language part in."""
    text = MULTIMODAL["text_config"] | {"torch_dtype": "float16"}
    assert geometry(MULTIMODAL | {"text_config": text}).dtype == "bfloat16"
    part_only = MULTIMODAL | {"text_config": text, "torch_dtype": None}
    assert geometry(part_only).dtype == "float16"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kv_lora_rank": 512, "qk_rope_head_dim": 64}, "latent attention"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"sliding_window": 4096, "use_sliding_window": False}, "sliding_window"),
        ({"model_type": "qwen2", "sliding_window": 9, "use_sliding_window": True}, "windowed"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "linear_attention"),
        ({"attention_chunk_size": 8192}, "chunked"),
        ({"mamba_d_state": 16}, "recurrent"),
        ({"hybrid_override_pattern": "M-M*"}, "recurrent"),
        ({"full_attention_interval": 4}, "recurrent"),
        ({"num_kv_shared_layers": 10}, "share"),
        ({"block_configs": [{}]}, "differ"),
        ({"cross_attention_layers": [3]}, "differ"),
        ({"multi_query": True}, "meaning differs"),
        ({"is_encoder_decoder": True}, "encoder"),
        ({"v_head_dim": 64}, "different sizes"),
        ({"num_attention_heads": None}, "num_attention_heads"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": 4097}, "multiple"),
        ({"num_key_value_heads": 5}, "evenly"),
        ({"num_key_value_heads": [8, 8]}, "num_key_value_heads"),
        ({"num_key_value_heads": True}, "num_key_value_heads"),
        ({"num_hidden_layers": "32"}, "num_hidden_layers"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"n_head": 16}, "contradicts"),
        ({"text_config": [1]}, "text_config"),
        ({"torch_dtype": None}, "KV dtype"),
        ({"torch_dtype": "float32"}, "KV dtype"),
        ({"torch_dtype": "auto"}, "KV dtype"),
        ({"quantization_config": {"kv_cache_scheme": {"num_bits": 8}}}, "quantized KV"),
        (
            {"quantization_config": {"quantization": {"kv_cache_quant_algo": "FP8"}}},
            "quantized KV",
        ),
    ],
    ids=str,
)
def test_models_that_would_be_figured_wrong_are_refused(change: dict[str, Any], words: str) -> None:
    """No figure is better than a wrong one; the message says which key stood in the way."""
    with pytest.raises(ModelError, match=words):
        geometry(LLAMA_3_8B | change)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (QWEN_3_0_6B, "head_dim"),
        (QWEN_2_5_7B, "num_key_value_heads"),
        (MISTRAL_7B_V03, "num_key_value_heads"),
        (MISTRAL_7B_V03, "sliding_window"),
        (LLAMA_3_8B | {"model_type": "brand_new", "head_dim": 128}, "num_key_value_heads"),
        (LLAMA_3_8B | {"model_type": "brand_new"}, "head_dim"),
    ],
)
def test_silence_is_not_guessed(config: dict[str, Any], key: str) -> None:
    """Where the library's default is not the textbook rule, or not known, the key must be there."""
    with pytest.raises(ModelError, match=f"does not state {key}"):
        geometry({k: v for k, v in config.items() if k != key})


def test_an_unknown_type_that_states_everything_is_taken() -> None:
    """A new dense model needs no change here if its config is complete."""
    assert geometry(LLAMA_3_8B | {"model_type": "brand_new", "head_dim": 128}) == geometry()


def test_a_config_without_type_is_read_by_the_textbook() -> None:
    """Without a model type: one KV head per attention head, head size from the hidden size."""
    config = {k: v for k, v in LLAMA_1_7B.items() if k != "model_type"}
    assert geometry(config) == geometry(LLAMA_1_7B)


def test_markers_count_beside_the_text_config_too() -> None:
    """A window written at the top of a multimodal config is not overlooked."""
    with pytest.raises(ModelError, match="sliding_window"):
        geometry(MULTIMODAL | {"sliding_window": 1024})


def test_quantized_cache_named_by_the_caller_is_taken() -> None:
    """A checkpoint's wish for fp8 is no obstacle once the engine's choice is named."""
    config = LLAMA_3_8B | {"quantization_config": {"kv_cache_scheme": {"num_bits": 8}}}
    assert geometry(config, kv_dtype="fp8").bytes_per_token == 65536
    assert geometry(config, kv_dtype="bfloat16").bytes_per_token == 131072


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block_size": 0}, "block_size"),
        ({"tensor_parallel": 0}, "tensor_parallel"),
        ({"tensor_parallel": 3}, "divide"),
        ({"tensor_parallel": 12}, "divide"),
        ({"kv_dtype": "nvfp4"}, "nvfp4"),
        ({"kv_dtype": "fp8_per_token_head"}, "fp8_per_token_head"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(options: dict[str, Any], words: str) -> None:
    """What the engine would refuse, or stores with scales beside it, is an error of settings."""
    with pytest.raises(SettingsError, match=words):
        geometry(**options)


@pytest.mark.parametrize("tensor_parallel", [1, 2, 8, 16, 32])
def test_ranks_do_not_change_the_figure(tensor_parallel: int) -> None:
    """Bytes per token are over all ranks; copies of a head on further ranks are not counted."""
    got = geometry(tensor_parallel=tensor_parallel)
    assert got.tensor_parallel == tensor_parallel
    assert got.bytes_per_token == 131072
    assert differences(got, geometry()) == ()


@pytest.mark.parametrize(
    ("tokens", "expected"), [(0, 0), (1, 1), (15, 1), (16, 1), (17, 2), (32, 2), (4000, 250)]
)
def test_blocks_are_whole(tokens: int, expected: int) -> None:
    """A started block counts whole."""
    assert blocks(geometry(), tokens) == expected
    assert kv_bytes(geometry(), tokens) == expected * 16 * 131072


def test_negative_tokens_are_refused() -> None:
    """There are no negative prompts."""
    for figure in (blocks, kv_bytes):
        with pytest.raises(ValueError, match="negative"):
            figure(geometry(), -1)


geometries = st.builds(
    lambda layers, kv_heads, group, head_size, block_size, kv_dtype: geometry_from_config(
        {
            "num_hidden_layers": layers,
            "num_attention_heads": kv_heads * group,
            "num_key_value_heads": kv_heads,
            "head_dim": head_size,
        },
        block_size=block_size,
        kv_dtype=kv_dtype,
    ),
    st.integers(1, 200),
    st.integers(1, 128),
    st.integers(1, 16),
    st.integers(1, 512),
    st.integers(1, 256),
    st.sampled_from(["bfloat16", "float16", "float32", "fp8", "fp8_e5m2"]),
)
token_counts = st.integers(0, 2_000_000)


@given(geometries, token_counts, token_counts)
def test_kv_bytes_properties(shape: KvGeometry, a: int, b: int) -> None:
    """Bytes are whole blocks, grow with the tokens, hold them, and waste less than a block."""
    low, high = sorted((a, b))
    assert kv_bytes(shape, low) <= kv_bytes(shape, high)
    assert kv_bytes(shape, a) % shape.block_bytes == 0
    assert 0 <= kv_bytes(shape, a) - a * shape.bytes_per_token < shape.block_bytes
    assert kv_bytes(shape, a + b) <= kv_bytes(shape, a) + kv_bytes(shape, b)


@given(geometries, geometries)
def test_differences_are_symmetric_and_empty_only_for_equals(a: KvGeometry, b: KvGeometry) -> None:
    """Two geometries pair exactly if they are equal; both sides see the same reasons."""
    assert differences(a, a) == ()
    assert (differences(a, b) == ()) == (a == b)
    assert len(differences(a, b)) == len(differences(b, a))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"block_size": 32}, ("block size (tokens): 16 against 32",)),
        ({"layout": "NHD"}, ("block layout: HND against NHD",)),
        (
            {"kv_dtype": "fp8"},
            ("KV dtype: bfloat16 against fp8_e4m3", "bytes per token: 131072 against 65536"),
        ),
        ({"kv_dtype": "float16"}, ("KV dtype: bfloat16 against float16",)),
        ({"tensor_parallel": 2}, ()),
    ],
    ids=str,
)
def test_differences_name_both_sides(options: dict[str, Any], expected: tuple[str, ...]) -> None:
    """Each reason says what differs and both values; the degree of parallelism is none."""
    assert differences(geometry(), geometry(**options)) == expected


def test_differences_of_other_models() -> None:
    """Layers, KV heads and head size are compared as well, not just their product."""
    other = geometry(
        LLAMA_3_8B | {"num_hidden_layers": 16, "num_key_value_heads": 32, "head_dim": 64}
    )
    assert differences(geometry(), other) == (
        "layers: 32 against 16",
        "KV heads: 8 against 32",
        "head size: 128 against 64",
    )
