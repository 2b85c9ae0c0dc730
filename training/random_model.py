"""Random Llamas for tests and benchmarks, made in a second from sizes and a seed.

They exist because a test of a handoff needs a model that notices a wrong KV cache: with the
usual initial deviation of 0.02 a tiny model writes the same letter whatever the prompt, and
text from corrupt blocks equals text from sound ones. These are made with 0.1, so that what they
write depends on the whole prompt. They know nothing; for readable text see
:mod:`training.demo`. transformers is not needed, only torch and safetensors.
"""

from __future__ import annotations

import argparse
import json
import math
import string
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

from training.chat_tokenizer import BEGIN, END, PAD, save_tokenizer, token_id, train_bpe

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

BYTE_VOCABULARY = 262
"""One token for each byte, and six special ones: a text of n bytes has n tokens."""

DType = Literal["bfloat16", "float16", "float32"]


class Sizes(TypedDict):
    """The sizes of a model, to be passed on: ``make_random_llama(folder, **BENCHMARK_SIZES)``."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int


BENCHMARK_SIZES: Sizes = {
    "hidden": 768,
    "intermediate": 2752,
    "layers": 12,
    "heads": 12,
    "kv_heads": 4,
    "head_size": 64,
}
"""About 95 million parameters: prefill of a long prompt takes seconds on a processor core."""


def make_random_llama(
    folder: Path,
    *,
    seed: int = 0,
    hidden: int = 256,
    intermediate: int = 704,
    layers: int = 4,
    heads: int = 8,
    kv_heads: int = 4,
    head_size: int = 64,
    vocab: int = BYTE_VOCABULARY,
    max_len: int = 8192,
    init_std: float = 0.1,
    dtype: DType = "bfloat16",
) -> Path:
    """Writes a model with a byte-level tokenizer and a chat template into ``folder``.

    The folder is made if needed, and files of the same names are replaced. The same arguments
    give the same weights; 3.7 million parameters by default. It writes lower-case letters, so
    that text streams a byte at a time, and never the end token: an answer is as long as its
    request allows.

    Measured with the default sizes, 3 seeds and 512 tokens: one changed token of the first 30
    moves the score of a later best token by 0.25 nats in the median, and computing the same
    prompt in other pieces by 0.055 in the 99th percentile (0.09 at most).

    Args:
        folder: where to write; returned.
        seed: of the weights.
        hidden: width of the residual stream.
        intermediate: width of the feed-forward layers.
        layers: number of layers.
        heads: query heads.
        kv_heads: key and value heads; divides ``heads``.
        head_size: of all heads.
        vocab: rows of the embedding; those over 262 belong to no token.
        max_len: tokens of prompt and answer.
        init_std: standard deviation of the matrices at a width of 256; queries, keys and the
            output have less at larger widths, so that all sizes are equally sharp.
        dtype: of the weights on disk.

    Raises:
        ValueError: if the sizes do not fit together.
    """
    if vocab < BYTE_VOCABULARY:
        raise ValueError(f"vocab is {vocab}; the tokenizer needs {BYTE_VOCABULARY}")
    if heads % kv_heads:
        raise ValueError(f"{heads} heads cannot share {kv_heads} KV heads evenly")
    import safetensors.torch
    import torch

    tokenizer = train_bpe([], vocab_size=BYTE_VOCABULARY)
    shapes = _shapes(hidden, intermediate, layers, heads, kv_heads, head_size, vocab)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            tensor = torch.ones(shape)
        else:
            std = init_std * _gain(name, hidden)
            tensor = torch.empty(shape).normal_(0.0, std, generator=generator)
        tensors[name] = tensor
    _write_letters_only(tensors["lm_head.weight"], tokenizer)
    stored = {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    weights = safetensors.torch.save(stored, metadata={"format": "pt"})
    (folder / "model.safetensors").write_bytes(weights)
    ids = {
        "bos_token_id": token_id(tokenizer, BEGIN),
        "eos_token_id": token_id(tokenizer, END),
        "pad_token_id": token_id(tokenizer, PAD),
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_size,
        "vocab_size": vocab,
        "max_position_embeddings": max_len,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "initializer_range": init_std,
        "dtype": dtype,
        **ids,
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", ids)
    save_tokenizer(tokenizer, folder, max_len=max_len)
    return folder


def parameter_count(sizes: Sizes, *, vocab: int = BYTE_VOCABULARY) -> int:
    """Parameters of a model of these sizes."""
    return sum(
        shape[0] * (shape[1] if len(shape) == 2 else 1)
        for shape in _shapes(**sizes, vocab=vocab).values()
    )


def _shapes(
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head_size: int,
    vocab: int,
) -> dict[str, tuple[int, ...]]:
    """Every weight of a Llama by its name in the file, in a fixed order."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for index in range(layers):
        layer = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (heads * head_size, hidden),
            "self_attn.k_proj": (kv_heads * head_size, hidden),
            "self_attn.v_proj": (kv_heads * head_size, hidden),
            "self_attn.o_proj": (hidden, heads * head_size),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (intermediate, hidden),
            "mlp.up_proj": (intermediate, hidden),
            "mlp.down_proj": (hidden, intermediate),
        }
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}


def _gain(name: str, hidden: int) -> float:
    """What a matrix has over the common deviation.

    The products of queries, keys and the output grow with the square root of the width, which is
    taken back. A strong output makes small changes seen in the scores. Weak feed-forward layers
    leave the word to attention: a changed token then shows twice as much, and the noise of
    bfloat16 flips half as many best tokens.
    """
    narrow = math.sqrt(256 / hidden)
    for part, gain in (("q_proj", narrow), ("k_proj", narrow), ("lm_head", 2.0 * narrow)):
        if part in name:
            return gain
    return 0.2 if "down_proj" in name else 1.0


def _write_letters_only(head: torch.Tensor, tokenizer: Tokenizer) -> None:
    """Zeroes the rows of all tokens but lower-case letters; a score of 0 is hardly ever the best.

    Few candidates also leave more room between the best two.
    """
    keep = [token_id(tokenizer, letter) for letter in string.ascii_lowercase]
    letters = head[keep].clone()
    head.zero_()
    head[keep] = letters


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """``python -m training.random_model FOLDER``: a model of ``BENCHMARK_SIZES``, or the small one.

    For programs that must not load torch themselves; they run this as a child process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m training.random_model", description=main.__doc__
    )
    parser.add_argument("folder", type=Path, help="where to write it")
    parser.add_argument("--small", action="store_true", help="3.7 million parameters instead of 95")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default 0)")
    given = parser.parse_args(argv)
    if given.small:
        make_random_llama(given.folder, seed=given.seed)
    else:
        make_random_llama(given.folder, seed=given.seed, **BENCHMARK_SIZES)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
