"""Trains the demo model: plain PyTorch, one process, a fixed number of steps.

It refuses to look at the clock: how long a step takes is the machine's business, and the same
recipe makes the same steps everywhere.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from training.demo.muon import Muon
from training.demo.network import new_network
from training.demo.pages import Page
from training.demo.recipe import DemoRecipe, Stage
from training.demo.samples import Row, RowMaker

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

Report = Callable[[str, float], None]
"""Gets a line of text and the fraction that is done, 0 to 1."""

_WARMUP_STEPS = 20
_POOL_STEPS = 8
_MAX_THREADS = 8
"""More do not help a model of this size."""


def fit(
    recipe: DemoRecipe, pages: Sequence[Page], tokenizer: Tokenizer, report: Report
) -> LlamaForCausalLM:
    """Trains a model from nothing; ``report`` is called after every step."""
    rng = random.Random(recipe.seed)  # noqa: S311 - draws training rows, no secrets
    rows = RowMaker(
        pages,
        lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids),
        rng,
        opening=recipe.opening,
        opening_weight=recipe.opening_weight,
    )
    with _own_torch_state(recipe.seed):
        model = new_network(recipe, tokenizer)
        model.train()
        matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
        others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
        muon, adam = Muon(matrices), torch.optim.Adam(others, betas=(0.9, 0.98))
        plan = (batch for stage in recipe.stages for batch in batches(recipe, stage, rows, rng))
        for step, batch in enumerate(plan):
            rate = _schedule(step, recipe.steps)
            loss = _loss(model, *_padded(batch))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            muon.step(recipe.matrix_learning_rate * rate)
            adam.param_groups[0]["lr"] = recipe.learning_rate * rate
            adam.step()
            model.zero_grad()
            done = step + 1
            report(f"step {done} of {recipe.steps}, loss {loss.item():.2f}", done / recipe.steps)
        model.eval()
    return model


def batches(
    recipe: DemoRecipe, stage: Stage, rows: RowMaker, rng: random.Random
) -> Iterator[list[Row]]:
    """The batches of a stage, each of at least ``stage.tokens`` tokens.

    Rows are drawn for several steps at a time and batched by length, because padding them to
    the longest of a mixed batch would double the work.
    """
    steps = 0
    while steps < stage.steps:
        pool: list[Row] = []
        while sum(len(row.ids) for row in pool) < stage.tokens * _POOL_STEPS:
            pool.append(_draw(recipe, stage, rows, rng))
        pool.sort(key=lambda row: len(row.ids))
        made: list[list[Row]] = [[]]
        for row in pool:
            made[-1].append(row)
            if sum(len(each.ids) for each in made[-1]) >= stage.tokens:
                made.append([])
        if len(made) > 1:  # what is left over goes with the longest ones
            made[-2].extend(made.pop())
        rng.shuffle(made)
        yield from made[: stage.steps - steps]
        steps += len(made)


def _draw(recipe: DemoRecipe, stage: Stage, rows: RowMaker, rng: random.Random) -> Row:
    if rng.random() < recipe.page_share:
        return rows.page(recipe.page_tokens)
    return rows.chat(
        turns=stage.turns, longest_filler=stage.longest_filler, longest_row=recipe.longest_row
    )


def _padded(batch: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and weights, both [rows, longest row]; shorter rows are padded at their end."""
    longest = max(len(row.ids) for row in batch)
    ids = [row.ids + [0] * (longest - len(row.ids)) for row in batch]
    weights = [row.weights + [0.0] * (longest - len(row.ids)) for row in batch]
    return torch.tensor(ids), torch.tensor(weights)


def _loss(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean cross-entropy; logits are made only where a weight is not zero."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    wanted = weights[:, 1:] > 0
    logits = model.lm_head(hidden[:, :-1][wanted])
    each = torch.nn.functional.cross_entropy(logits, ids[:, 1:][wanted], reduction="none")
    share = weights[:, 1:][wanted]
    return (each * share).sum() / share.sum().clamp(min=1.0)


def _schedule(step: int, steps: int) -> float:
    """Share of the learning rates: a short rise, then a straight fall to a hundredth."""
    rise = min(1.0, (step + 1) / _WARMUP_STEPS)
    return rise * (0.01 + 0.99 * (1 - step / steps))


@contextmanager
def _own_torch_state(seed: int) -> Iterator[None]:
    """Seeds torch and uses the cores at hand, and puts both back afterwards."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(min(_MAX_THREADS, _usable_cores()))
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
