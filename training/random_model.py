"""A random Llama for tests: small, quick to make, and with an output that depends on its prompt.

Weights drawn with the usual standard deviation of 0.02 make a tiny model say the same whatever it
is asked, so that a comparison of texts passes on a corrupt KV cache. With 0.1 one early token of
a long prompt moves the first logprobs far beyond numerical noise.

One token is one byte, so a test can make prompts of an exact length. Nothing is trained here.
"""

from __future__ import annotations

from pathlib import Path

from training.chat_tokenizer import BEGIN, END, PAD, save_tokenizer, token_id, train_bpe

BYTE_VOCABULARY = 262
"""256 bytes and the six special tokens."""


def make_random_llama(
    folder: Path,
    *,
    seed: int = 0,
    hidden: int = 256,
    intermediate: int = 512,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    head_size: int = 64,
    max_len: int = 8192,
    init_std: float = 0.1,
    dtype: str = "bfloat16",
) -> Path:
    """Writes a model and its tokenizer into ``folder``, which is made; returns it.

    The defaults give about 3 million parameters in a second. About 95 million, for timing
    engines: ``hidden=768, intermediate=2048, layers=12, heads=12, kv_heads=4``. The same
    arguments give the same weights.

    Args:
        seed: of the weights.
        hidden, intermediate, layers, heads, kv_heads, head_size: sizes of the network.
        max_len: longest prompt plus answer, in tokens.
        init_std: standard deviation of the weights.
        dtype: of the weights, by its name in torch.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_bpe([], vocab_size=BYTE_VOCABULARY)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_size,
        max_position_embeddings=max_len,
        initializer_range=init_std,
        bos_token_id=token_id(tokenizer, BEGIN),
        eos_token_id=token_id(tokenizer, END),
        pad_token_id=token_id(tokenizer, PAD),
        tie_word_embeddings=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    save_tokenizer(tokenizer, folder, max_len=max_len)
    return folder
