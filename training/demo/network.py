"""The demo model as a network: a small Llama that prefers near tokens from the start.

It exists apart from the training loop because this start is what makes answers at long prompts
possible after a minute of training. It refuses to be anything but a plain Llama with attention
biases, which every engine can load.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from training.chat_tokenizer import BEGIN, END, PAD, token_id
from training.demo.recipe import DemoRecipe

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_KEY_SHARE = 2.0
"""How much of the preference sits in the key biases; the rest is in those of the queries."""


def new_network(recipe: DemoRecipe, tokenizer: Tokenizer) -> LlamaForCausalLM:
    """An untrained model; draws from torch's global random state."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=recipe.hidden,
            intermediate_size=recipe.intermediate,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.kv_heads,
            head_dim=recipe.head_size,
            max_position_embeddings=recipe.max_len,
            rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
            initializer_range=recipe.init_std,
            attention_bias=True,
            tie_word_embeddings=True,
            bos_token_id=token_id(tokenizer, BEGIN),
            eos_token_id=token_id(tokenizer, END),
            pad_token_id=token_id(tokenizer, PAD),
        )
    )
    prefer_near(model, recipe)
    return model


def prefer_near(model: LlamaForCausalLM, recipe: DemoRecipe) -> None:
    """Sets the query and key biases so that attention falls with distance as a power law.

    With equal biases in the first half of each head, rotary embedding turns their product into
    a sum of cosines of the distance over geometrically spaced frequencies, which falls with the
    logarithm of the distance. So the attention weight at distance d starts near ``d ** -power``,
    with one power for each query head of a KV head. Such a preference looks the same at every
    length of context, and a question is found as easily after 3000 tokens as after 30.
    """
    half = recipe.head_size // 2
    unit = half / math.log(recipe.rope_theta) / math.sqrt(recipe.head_size)
    key_bias = math.sqrt(_KEY_SHARE / unit)
    with torch.no_grad():
        for layer in model.model.layers:
            attention = layer.self_attn
            for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
                part.bias.zero_()
            attention.k_proj.bias.view(recipe.kv_heads, recipe.head_size)[:, :half] = key_bias
            queries = attention.q_proj.bias.view(recipe.heads, recipe.head_size)
            for head in range(recipe.heads):
                power = recipe.near_powers[head % len(recipe.near_powers)]
                queries[head, :half] = power / unit / key_bias


def save_network(model: LlamaForCausalLM, folder: Path) -> None:
    """Writes config.json, generation_config.json and model.safetensors (bfloat16).

    The model is greedy unless a request asks for a temperature: it knows its answers by heart,
    and the same question should get the same text on every path.
    """
    model.to(torch.bfloat16)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    del tensors["lm_head.weight"]  # tied to the embedding
    # Written by hand, because save_pretrained draws a progress bar and makes a private file.
    weights = safetensors.torch.save(tensors, metadata={"format": "pt"})
    (folder / "model.safetensors").write_bytes(weights)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = torch.bfloat16
    model.config.save_pretrained(folder)
    generation = {
        "bos_token_id": model.config.bos_token_id,
        "eos_token_id": model.config.eos_token_id,
        "pad_token_id": model.config.pad_token_id,
        "do_sample": False,
        "temperature": 0.0,
    }
    path = folder / "generation_config.json"
    path.write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
