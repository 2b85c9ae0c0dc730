"""The demo that people see first: ``baton up`` without any option, and its model's answers."""

from __future__ import annotations

import os
import re
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import openai
import psutil
import pytest

from baton.settings import HOME_VARIABLE
from tests.e2e.test_up import Up, short_folder
from training.demo.pages import load_pages

# On a clean checkout the model is trained first: about a minute, and more on slow machines.
pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

QUESTIONS = ["What is prefill?", "What is the KV cache?", "What is a handoff?", "What is TTFT?"]


def words(text: str) -> list[str]:
    """Lower-case words."""
    return re.findall(r"[a-z]+", text.lower())


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Without options, as in the README. The model is kept where ``make up`` keeps it."""
    home = os.environ.get(HOME_VARIABLE)
    with short_folder() as folder:
        up = Up(folder, Path(home) if home else tmp_path_factory.mktemp("home"))
        try:
            up.start(timeout_s=700)
            yield up
        finally:
            up.process.send_signal(signal.SIGINT)
            assert up.process.wait(timeout=60) == 0
            up.kill_all()


@pytest.mark.parametrize("padding", [0, 300, 1200], ids=["short", "long", "very long"])
def test_answers_are_recognisable_text(demo: Up, padding: int) -> None:
    """To short and long prompts: real words of the demo's own pages, not a loop, and an end."""
    vocabulary = {word for page in load_pages() for word in words(page.plain_text(headings=True))}
    filler = " ".join(page.introduction for page in load_pages() * 3)
    api = openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0)
    for question in QUESTIONS:
        text = f"{filler[: padding * 4]}\n\n{question}" if padding else question
        raw = api.chat.completions.with_raw_response.create(
            model="demo",
            messages=[{"role": "user", "content": text}],
            max_tokens=150,
            temperature=0,
            # What decode has cached is not handed over, and the filler is always the same.
            extra_body={"cache_salt": uuid.uuid4().hex},
        )
        answer = raw.parse()
        expected = "disaggregated" if padding else "local"
        assert raw.headers["x-baton-path"] == expected
        said = words(answer.choices[0].message.content or "")
        assert len(said) >= 5, said
        known = sum(word in vocabulary for word in said)
        assert known / len(said) >= 0.9, said
        assert len(set(said)) / len(said) > 0.4, said
        assert answer.choices[0].finish_reason == "stop"


def test_everything_fits_in_five_gigabytes(demo: Up) -> None:
    """All processes together; memory that they share counts once (proportional set size)."""
    total = 0
    for pid in demo.pids:
        if psutil.pid_exists(pid):
            total += psutil.Process(pid).memory_full_info().pss
    assert 1e9 < total < 5e9
