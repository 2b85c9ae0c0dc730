"""What the demo model is made of: one frozen recipe, its digest and where the result is kept.

It exists so that "is the demo model there?" can be answered without importing torch. The digest
covers every constant, the pages and the format of this package, so that a changed recipe can
never be served from an old cache.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from training.chat_tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS
from training.demo.pages import page_sources

FORMAT = 2
"""Raise it when the code that makes the model changes what comes out of the same recipe."""


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
    """A part of the training: ``steps`` steps of about ``tokens`` tokens each.

    A chat has up to ``turns`` questions, and up to ``longest_filler`` tokens of other text stand
    before a question.
    """

    steps: int
    tokens: int
    longest_filler: int
    turns: int


@dataclasses.dataclass(frozen=True, slots=True)
class DemoRecipe:
    """Sizes of the model and of its training; lengths in tokens.

    A head size of 64 is one that every attention kernel supports, and two KV heads allow two
    tensor-parallel ranks. ``near_powers`` are the strengths with which the query heads of a KV
    head prefer near tokens at the start (see :func:`training.demo.network.prefer_near`). The
    first ``opening`` tokens of an answer count ``opening_weight`` times, because they decide
    which answer it will be. Most of the time goes into short chats: the preference for near
    tokens carries what is learned there over to long prompts, and the last stages confirm it.
    """

    vocab_size: int = 2048
    hidden: int = 256
    intermediate: int = 512
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 64
    max_len: int = 8192
    rope_theta: float = 10_000.0
    init_std: float = 0.02
    near_powers: tuple[float, ...] = (2.5, 1.0)
    stages: tuple[Stage, ...] = (
        Stage(steps=190, tokens=1024, longest_filler=40, turns=1),
        Stage(steps=60, tokens=1024, longest_filler=200, turns=2),
        Stage(steps=16, tokens=2048, longest_filler=1500, turns=3),
    )
    longest_row: int = 2048
    page_share: float = 0.06
    page_tokens: int = 256
    opening: int = 3
    opening_weight: float = 5.0
    learning_rate: float = 3e-3
    matrix_learning_rate: float = 0.02
    seed: int = 1

    @property
    def steps(self) -> int:
        """Over all stages."""
        return sum(stage.steps for stage in self.stages)

    def digest(self) -> str:
        """16 hex digits over the recipe, the pages and the chat format."""
        hasher = hashlib.sha256()
        facts = {
            "format": FORMAT,
            "recipe": dataclasses.asdict(self),
            "special_tokens": SPECIAL_TOKENS,
            "chat_template": CHAT_TEMPLATE,
            "pages": list(page_sources()),
        }
        hasher.update(json.dumps(facts, sort_keys=True).encode())
        return hasher.hexdigest()[:16]


def model_folder(home: Path, recipe: DemoRecipe) -> Path:
    """Where the model of this recipe is kept below ``home``; it need not exist yet."""
    return home / "models" / f"demo-{recipe.digest()}"


def demo_model_path(home: Path, *, recipe: DemoRecipe | None = None) -> Path | None:
    """The folder of the cached demo model, or None if it has still to be made.

    Imports neither torch nor transformers. A folder appears under its final name only when it is
    complete, so its being there is proof enough.
    """
    folder = model_folder(home, recipe or DemoRecipe())
    return folder if (folder / "config.json").is_file() else None
