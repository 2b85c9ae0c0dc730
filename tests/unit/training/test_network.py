"""What the demo's network and optimizer promise."""

from __future__ import annotations

import random

import pytest
import torch

from training.chat_tokenizer import train_bpe
from training.demo.fit import batches
from training.demo.muon import Muon, orthogonalised
from training.demo.network import new_network
from training.demo.pages import load_pages
from training.demo.recipe import DemoRecipe, Stage
from training.demo.samples import RowMaker
from training.random_model import parameter_count

RECIPE = DemoRecipe(hidden=64, intermediate=32, layers=1, heads=2, kv_heads=1, vocab_size=262)


@pytest.mark.parametrize("shape", [(16, 16), (8, 32), (32, 8)])
def test_orthogonalised(shape: tuple[int, int]) -> None:
    """All directions come out about equally strong, whatever they were."""
    torch.manual_seed(0)
    matrix = torch.randn(shape) * torch.logspace(0, -1, shape[1])
    values = torch.linalg.svdvals(orthogonalised(matrix))
    assert values.min() > 0.4
    assert values.max() < 1.3


def test_muon_descends() -> None:
    """On a bowl it comes close to the bottom; without a gradient it does nothing."""
    torch.manual_seed(0)
    matrix = torch.randn(8, 8, requires_grad=True)
    before = matrix.detach().clone()
    muon = Muon([matrix])
    muon.step(1.0)
    assert torch.equal(matrix, before)
    for step in range(60):
        matrix.grad = matrix.detach().clone()
        muon.step(0.2 * (1 - step / 60))
    assert matrix.norm() < 0.2 * before.norm()
    with pytest.raises(ValueError, match="matrices only"):
        Muon([torch.zeros(3)])


def test_attention_starts_as_a_power_law() -> None:
    """Scores from the biases alone fall with the logarithm of the distance, at the powers that
    the recipe names, up to thousands of tokens."""
    model = new_network(RECIPE, train_bpe([], vocab_size=262))
    attention = model.model.layers[0].self_attn
    positions = torch.arange(4096)[None]
    cos, sin = model.model.rotary_emb(torch.zeros(1, 1, 1), positions)
    half = RECIPE.head_size // 2

    def turned(bias: torch.Tensor) -> torch.Tensor:
        swapped = torch.cat((-bias[half:], bias[:half]))
        return bias * cos[0] + swapped * sin[0]

    key = turned(attention.k_proj.bias.detach())
    for head, power in enumerate(RECIPE.near_powers):
        bias = attention.q_proj.bias.detach()[head * RECIPE.head_size :][: RECIPE.head_size]
        query = turned(bias)[-1]
        scores = (key @ query / RECIPE.head_size**0.5).flip(0)  # by distance
        near, far = scores[8:16].mean(), scores[1024:2048].mean()
        steps = torch.log(torch.tensor(128.0))
        assert float((near - far) / steps) == pytest.approx(power, rel=0.15)
        assert scores.argmax() == 0


def test_batches_are_full_and_counted() -> None:
    """As many as the stage has steps, each of at least its tokens, with little padding."""
    stage = Stage(steps=11, tokens=512, longest_filler=40, turns=1)
    tokenizer = train_bpe(
        [page.plain_text(headings=True) for page in load_pages()], vocab_size=1000
    )
    rng = random.Random(0)
    rows = RowMaker(
        load_pages(), lambda text: tokenizer.encode(text).ids, rng, opening=3, opening_weight=5.0
    )
    made = list(batches(DemoRecipe(), stage, rows, rng))
    assert len(made) == 11
    real = [sum(len(row.ids) for row in batch) for batch in made]
    padded = [len(batch) * max(len(row.ids) for row in batch) for batch in made]
    assert min(real) >= stage.tokens
    assert sum(padded) < 1.4 * sum(real)


def test_the_recipe_is_small() -> None:
    """A few megabytes, so that nobody waits for a copy."""
    recipe = DemoRecipe()
    count = parameter_count(
        {
            "hidden": recipe.hidden,
            "intermediate": recipe.intermediate,
            "layers": recipe.layers,
            "heads": recipe.heads,
            "kv_heads": recipe.kv_heads,
            "head_size": recipe.head_size,
        },
        vocab=recipe.vocab_size,
    )
    assert count < 4e6
