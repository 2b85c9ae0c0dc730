"""Random models that notice a wrong KV cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.random_model import BENCHMARK_SIZES, Sizes, make_random_llama, parameter_count

Loaded = tuple[Any, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the default sizes."""
    return make_random_llama(tmp_path_factory.mktemp("random") / "deep" / "llama")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Loaded:
    """Its tokenizer and its weights."""
    return AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)


def scores(model: Any, prompts: list[list[int]]) -> torch.Tensor:
    """Logprobs of the first token, [prompts, vocabulary]."""
    with torch.no_grad():
        logits = model(torch.tensor(prompts)).logits[:, -1].float()
    return torch.log_softmax(logits, -1)


def prompt_of_300(tokenizer: Any) -> list[int]:
    """Plain English of 300 tokens, begin token included."""
    text = "The router picks a worker and the worker reads the prompt from its start. " * 5
    ids: list[int] = tokenizer(text[:299]).input_ids
    assert len(ids) == 300
    return ids


def test_every_weight_has_its_place(loaded: Loaded, folder: Path) -> None:
    """transformers loads the file without a weight missing, left over or of another shape."""
    _, model = loaded
    _, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert model.dtype == torch.bfloat16
    sizes: Sizes = {
        "hidden": 256,
        "intermediate": 704,
        "layers": 4,
        "heads": 8,
        "kv_heads": 4,
        "head_size": 64,
    }
    assert sum(weight.numel() for weight in model.parameters()) == parameter_count(sizes)
    assert 2e6 < parameter_count(sizes) < 5e6


def test_an_early_token_is_noticed(loaded: Loaded) -> None:
    """Each one changed early in 300 tokens moves the best scores by more than 0.15 nats."""
    tokenizer, model = loaded
    plain = prompt_of_300(tokenizer)
    prompts = [plain]
    for position in (1, 2, 5, 9, 14, 20, 30):
        changed = list(plain)
        changed[position] = tokenizer.convert_tokens_to_ids("Q")
        prompts.append(changed)
    found = scores(model, prompts)
    best = found[0].topk(5).indices
    moved = (found[1:, best] - found[0, best]).abs().max(dim=1).values
    assert moved.min() > 0.15, moved


def test_a_wrong_block_is_noticed(loaded: Loaded) -> None:
    """So does a block of 32 tokens of another prompt, and two blocks in the wrong order."""
    tokenizer, model = loaded
    plain = prompt_of_300(tokenizer)
    other = tokenizer("0123456789" * 4).input_ids[1:33]
    swapped = plain[:65] + plain[97:129] + plain[65:97] + plain[129:]
    found = scores(model, [plain, plain[:65] + other + plain[97:], swapped])
    best = found[0].topk(5).indices
    assert (found[1:, best] - found[0, best]).abs().max(dim=1).values.min() > 0.15


def test_pieces_of_a_prompt_give_the_same_scores(loaded: Loaded) -> None:
    """What another batching changes stays far below what a wrong cache does."""
    tokenizer, model = loaded
    plain = prompt_of_300(tokenizer)
    whole = scores(model, [plain])[0]
    best = whole.topk(5).indices
    for cut in (64, 299):
        with torch.no_grad():
            past = model(torch.tensor([plain[:cut]]), use_cache=True).past_key_values
            rest = model(torch.tensor([plain[cut:]]), past_key_values=past).logits[0, -1]
        pieces = torch.log_softmax(rest.float(), -1)
        assert (pieces[best] - whole[best]).abs().max() < 0.1


def test_writes_letters_to_the_limit(loaded: Loaded) -> None:
    """One lower-case letter for each token, and never an early end."""
    tokenizer, model = loaded
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    answer = model.generate(**chat, max_new_tokens=24, do_sample=False)
    text = tokenizer.decode(answer[0, chat["input_ids"].shape[1] :])
    assert len(text) == 24
    assert text.isalpha()
    assert text.islower()
    assert len(set(text)) > 4


def test_a_seed_repeats_the_weights(folder: Path, tmp_path: Path) -> None:
    """And another seed gives others, which differ in nothing else."""
    weights = "model.safetensors"
    again = make_random_llama(tmp_path / "again")
    other = make_random_llama(tmp_path / "other", seed=1)
    assert (again / weights).read_bytes() == (folder / weights).read_bytes()
    assert (other / weights).read_bytes() != (folder / weights).read_bytes()
    assert (other / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_other_sizes(tmp_path: Path) -> None:
    """All are written to the config, rows without a token included."""
    small = make_random_llama(
        tmp_path / "m",
        hidden=64,
        intermediate=32,
        layers=1,
        heads=2,
        kv_heads=1,
        head_size=32,
        vocab=300,
        max_len=512,
        dtype="float32",
    )
    config = json.loads((small / "config.json").read_text())
    assert (config["vocab_size"], config["max_position_embeddings"]) == (300, 512)
    model = AutoModelForCausalLM.from_pretrained(small)
    assert model.dtype == torch.float32
    assert model.lm_head.weight.shape == (300, 64)


@pytest.mark.parametrize("sizes", [{"vocab": 261}, {"heads": 8, "kv_heads": 3}])
def test_sizes_that_do_not_fit(sizes: dict[str, int], tmp_path: Path) -> None:
    """Nothing is written."""
    with pytest.raises(ValueError, match=r"needs 262|cannot share"):
        make_random_llama(tmp_path / "m", **sizes)  # type: ignore[arg-type]
    assert not (tmp_path / "m").exists()


def test_the_benchmark_sizes() -> None:
    """About 95 million parameters."""
    assert 93e6 < parameter_count(BENCHMARK_SIZES) < 97e6
