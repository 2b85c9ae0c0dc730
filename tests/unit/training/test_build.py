"""Building the demo model: the real code with a recipe of seconds."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from baton.clock import VirtualClock
from baton.errors import ModelError
from training.demo import build
from training.demo.__main__ import main, printer
from training.demo.build import build_demo_model, one_at_a_time
from training.demo.recipe import DemoRecipe, Stage, demo_model_path, model_folder

TINY = DemoRecipe(
    vocab_size=300,
    hidden=32,
    intermediate=32,
    layers=1,
    heads=2,
    kv_heads=1,
    head_size=32,
    max_len=256,
    near_powers=(2.0,),
    stages=(Stage(steps=2, tokens=64, longest_filler=8, turns=1), Stage(1, 64, 50, 2)),
    longest_row=64,
    page_tokens=32,
    page_share=0.3,
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the tiny model was made."""
    home = tmp_path_factory.mktemp("home")
    build_demo_model(home, recipe=TINY)
    return home


@pytest.fixture
def makes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Puts a quick maker in place of the training; lists the folders that it filled."""
    made: list[Path] = []

    def make(folder: Path, recipe: DemoRecipe, report: build.Progress) -> None:
        report("training", 0.5)
        (folder / "config.json").write_text("{}")
        made.append(folder)

    monkeypatch.setattr(build, "_make", make)
    return made


def test_the_files_that_an_engine_wants(home: Path) -> None:
    """Under the final name, and nothing beside it but the lock."""
    folder = model_folder(home, TINY)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "bfloat16"
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (2, 1)
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, f".{folder.name}.lock"}


def test_loads_and_answers(home: Path) -> None:
    """transformers reads the folder, the template fits, and a greedy answer comes out."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = demo_model_path(home, recipe=TINY)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer) == 300
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is prefill?"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert tokenizer.decode(prompt["input_ids"][0]) == (
        "<|begin|><|user|>What is prefill?<|end|><|assistant|>"
    )
    answer = model.generate(**prompt, max_new_tokens=3, do_sample=False)
    assert prompt["input_ids"].shape[1] < answer.shape[1] <= prompt["input_ids"].shape[1] + 3


def test_is_made_once(home: Path, makes: list[Path]) -> None:
    """The second call finds it."""
    said: list[tuple[str, float]] = []
    folder = build_demo_model(home, recipe=TINY, progress=lambda *line: said.append(line))
    assert folder == demo_model_path(home, recipe=TINY)
    assert makes == []
    assert said == [("the demo model is ready", 1.0)]


def test_the_same_recipe_makes_the_same_model(home: Path, tmp_path: Path) -> None:
    """Bit for bit, on one machine; and progress only ever rises."""
    said: list[float] = []
    again = build_demo_model(tmp_path, recipe=TINY, progress=lambda _, done: said.append(done))
    first = model_folder(home, TINY)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (again / name).read_bytes() == (first / name).read_bytes()
    assert said == sorted(said)
    assert (said[0], said[-1]) == (0.0, 1.0)
    assert len(said) > TINY.steps


def test_an_interrupted_build_leaves_nothing_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, makes: list[Path]
) -> None:
    """Ctrl-C half-way: no model, no leftovers, and the next call makes it."""
    quick = build._make

    def stop(folder: Path, recipe: DemoRecipe, report: build.Progress) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "_make", stop)
    with pytest.raises(KeyboardInterrupt):
        build_demo_model(tmp_path, recipe=TINY)
    assert demo_model_path(tmp_path, recipe=TINY) is None
    assert [path.name for path in (tmp_path / "models").iterdir() if path.is_dir()] == []
    monkeypatch.setattr(build, "_make", quick)
    assert build_demo_model(tmp_path, recipe=TINY).is_dir()


def test_leftovers_of_a_killed_build_are_cleaned(tmp_path: Path, makes: list[Path]) -> None:
    """Half-made folders, and a final folder that lost its config; those of others stay."""
    folder = model_folder(tmp_path, TINY)
    killed = folder.parent / f".{folder.name}.making-1"
    other = folder.parent / ".demo-other.making-1"
    for path in (killed, folder, other):
        path.mkdir(parents=True)
        (path / "model.safetensors").write_text("half")
    assert build_demo_model(tmp_path, recipe=TINY) == folder
    assert not killed.exists()
    assert other.exists()
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_two_builds_at_once_make_one_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, makes: list[Path]
) -> None:
    """The second waits for the lock, and then finds what the first has made."""
    started, go = threading.Event(), threading.Event()
    quick = build._make

    def slow(folder: Path, recipe: DemoRecipe, report: build.Progress) -> None:
        started.set()
        assert go.wait(20)
        quick(folder, recipe, report)

    monkeypatch.setattr(build, "_make", slow)
    monkeypatch.setattr(build, "LOCK_POLL_S", 0.001)
    found: list[Path] = []
    first = threading.Thread(target=lambda: found.append(build_demo_model(tmp_path, recipe=TINY)))
    first.start()
    assert started.wait(20)

    def release(text: str, _done: float) -> None:
        if text.startswith("waiting"):
            go.set()

    found.append(build_demo_model(tmp_path, recipe=TINY, progress=release))
    first.join(20)
    assert found == [model_folder(tmp_path, TINY)] * 2
    assert len(makes) == 1


def test_waiting_for_the_lock_is_bounded(tmp_path: Path) -> None:
    """A builder that hangs is named instead of waited for."""
    path, clock = tmp_path / "lock", VirtualClock()
    said: list[str] = []
    with path.open("a") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(ModelError, match="another process"):
            with one_at_a_time(
                path, lambda text, _: said.append(text), clock=clock, sleep=clock.advance
            ):
                raise AssertionError("held by another")
    assert len(said) == build.LOCK_PATIENCE_S / build.LOCK_POLL_S
    with one_at_a_time(path, lambda text, _: said.append(text), clock=clock, sleep=clock.advance):
        assert len(said) == build.LOCK_PATIENCE_S / build.LOCK_POLL_S


def test_the_lock_dies_with_its_holder(tmp_path: Path) -> None:
    """A killed builder keeps nobody waiting."""
    path = tmp_path / "lock"
    program = (
        f"import fcntl, os; f = open({str(path)!r}, 'a'); fcntl.flock(f, fcntl.LOCK_EX);"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == -9
    with one_at_a_time(path, lambda *_: pytest.fail("waited")):
        pass


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    """The message says what to do."""
    (tmp_path / "models").write_text("a file where the folder should be")
    with pytest.raises(ModelError, match="choose another home"):
        build_demo_model(tmp_path, recipe=TINY)


class TestCommand:
    """``python -m training.demo``."""

    def test_prints_the_folder(
        self, tmp_path: Path, makes: list[Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The folder alone on stdout, what it does on stderr."""
        assert main(["--home", str(tmp_path)]) == 0
        said = capsys.readouterr()
        assert said.out == f"{model_folder(tmp_path, DemoRecipe())}\n"
        assert " 50%  training\n" in said.err

    def test_says_what_is_wrong(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Without a traceback."""
        (tmp_path / "models").write_text("")
        assert main(["--home", str(tmp_path)]) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("error: the demo model cannot be written")

    def test_prints_a_line_every_two_seconds(self) -> None:
        """New work at once, its steps at most every two seconds."""
        clock, lines = VirtualClock(), list[str]()
        show = printer(clock, lines.append)
        show("saving", 0.1)
        for step in range(9):
            show(f"training, step {step}", 0.5)
            clock.advance(0.5)
        assert lines == [
            " 10%  saving\n",
            " 50%  training, step 0\n",
            " 50%  training, step 4\n",
            " 50%  training, step 8\n",
        ]
