"""Makes the demo model once and keeps it: lock, temporary folder, one rename.

It exists so that two commands that start at the same moment train one model, and so that a
build that was interrupted leaves nothing that could be taken for a model. It refuses to touch
anything but its own folder, lock and leftovers below ``home/models``.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from baton.clock import Clock, SystemClock
from baton.errors import ModelError
from training.chat_tokenizer import save_tokenizer, train_bpe
from training.demo.pages import Page, load_pages
from training.demo.recipe import DemoRecipe, demo_model_path, model_folder

Progress = Callable[[str, float], None]
"""Gets a line of text and the fraction that is done, 0 to 1; never goes back."""

LOCK_PATIENCE_S = 1800.0
"""How long to wait for another process that is making the same model."""

LOCK_POLL_S = 0.5

_TRAIN_FROM, _TRAIN_TO = 0.05, 0.97


def build_demo_model(
    home: Path, *, progress: Progress | None = None, recipe: DemoRecipe | None = None
) -> Path:
    """The folder of the demo model below ``home``, made first if it is not there.

    Takes about a minute on two cores the first time and nothing afterwards. ``recipe`` is for
    tests; every recipe has its own folder.

    Raises:
        ModelError: if the folder cannot be written, or another process that makes the same
            model does not finish within half an hour.
    """
    recipe = recipe or DemoRecipe()
    report = progress or _say_nothing
    found = demo_model_path(home, recipe=recipe)
    if found is not None:
        report("the demo model is ready", 1.0)
        return found
    folder = model_folder(home, recipe)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(folder.parent / f".{folder.name}.lock", report):
            if demo_model_path(home, recipe=recipe) is None:
                _build_alone(folder, recipe, report)
    except OSError as error:
        raise ModelError(
            f"the demo model cannot be written to {folder.parent}: {error}; "
            "check the permissions and the free space, or choose another home folder"
        ) from error
    report("the demo model is ready", 1.0)
    return folder


def _build_alone(folder: Path, recipe: DemoRecipe, report: Progress) -> None:
    """Builds in a folder beside the final one; the lock is held, so leftovers are nobody's."""
    for leftover in folder.parent.glob(f".{folder.name}.making-*"):
        shutil.rmtree(leftover)
    if folder.exists():  # not complete, or there would be nothing to build
        shutil.rmtree(folder)
    making = folder.parent / f".{folder.name}.making-{os.getpid()}"
    making.mkdir()
    try:
        _make(making, recipe, report)
        making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _make(folder: Path, recipe: DemoRecipe, report: Progress) -> None:
    report("reading the pages", 0.0)
    pages = load_pages()
    report("learning the tokens", 0.01)
    tokenizer = train_bpe(_tokenizer_texts(pages), vocab_size=recipe.vocab_size)
    report("loading PyTorch", 0.02)
    from training.demo.fit import fit
    from training.demo.network import save_network

    report("training", _TRAIN_FROM)
    model = fit(
        recipe,
        pages,
        tokenizer,
        lambda text, done: report(
            f"training, {text}", _TRAIN_FROM + (_TRAIN_TO - _TRAIN_FROM) * done
        ),
    )
    report("saving", _TRAIN_TO)
    save_network(model, folder)
    save_tokenizer(tokenizer, folder, max_len=recipe.max_len)


def _tokenizer_texts(pages: tuple[Page, ...]) -> list[str]:
    texts = [page.plain_text(headings=True) for page in pages]
    questions = [q for page in pages for answer in page.answers for q in answer.questions]
    return texts + questions


@contextmanager
def one_at_a_time(
    path: Path,
    report: Progress,
    *,
    clock: Clock | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Holds the lock on ``path`` for one process at a time; it dies with its holder.

    Raises:
        ModelError: after ``LOCK_PATIENCE_S`` seconds of waiting.
    """
    clock = clock or SystemClock()
    deadline_s = clock.monotonic_s() + LOCK_PATIENCE_S
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if clock.monotonic_s() >= deadline_s:
                    raise ModelError(
                        f"another process has been making the demo model for over "
                        f"{LOCK_PATIENCE_S:.0f} s (it holds {path}); end it and try again"
                    ) from None
                report("waiting for another process that makes the demo model", 0.0)
                sleep(LOCK_POLL_S)
        yield


def _say_nothing(_text: str, _done: float) -> None:
    return None
