"""Counting: the engine's numbers or none, and bounds that always hold."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from baton.errors import ModelError
from router.api import Endpoint, GenerateRequest, parse_request
from router.policy import TokenBounds
from router.tokens import PromptCounter
from tests.unit.router.model_folders import (
    BOS,
    CHATML_LIKE,
    EOS,
    PARTS,
    TEMPLATES,
    train,
    write_folder,
)

TEXTS = [
    "hello",
    "The quick brown fox jumps over the lazy dog.",
    " leading and trailing \n\n",
    f"a {EOS} in the text {BOS}{BOS}",
    "日本語のテキスト 😀\U0001f469\u200d\U0001f467 e\u0301 naïve",
    "\u0301\u0301 lone marks \x00 \u200b",
    "x" * 500,
]
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": text}] for text in TEXTS
] + [
    [
        {"role": "system", "content": " Be kind. "},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?", "tool_calls": [], "refusal": None},
        {"role": "user", "content": [{"type": "text", "text": "one"}]},
    ]
]  # fmt: skip


def chat(messages: list[dict[str, Any]] | None = None, **fields: Any) -> GenerateRequest:
    body = {"model": "m", "messages": messages or [{"role": "user", "content": "hi"}], **fields}
    return parse_request(Endpoint.CHAT, json.dumps(body).encode())


def completion(prompt: Any = "hi", **fields: Any) -> GenerateRequest:
    body = {"model": "m", "prompt": prompt, **fields}
    return parse_request(Endpoint.COMPLETIONS, json.dumps(body).encode())


def transformers_tokenizer(folder: Path) -> Any:
    """What an engine loads from the folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
        return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


@pytest.fixture(scope="module")
def plain() -> Tokenizer:
    return train()


@pytest.fixture(scope="module")
def qwen() -> Tokenizer:
    return train(qwen=True)


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory, plain: Tokenizer) -> PromptCounter:
    return PromptCounter.from_folder(write_folder(tmp_path_factory.mktemp("model"), plain))


@pytest.fixture(scope="module")
def nfc(tmp_path_factory: pytest.TempPathFactory, qwen: Tokenizer) -> PromptCounter:
    folder = tmp_path_factory.mktemp("qwen")
    return PromptCounter.from_folder(write_folder(folder, qwen, tokenizer_class="Qwen2Tokenizer"))


FOLDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "generic": ("plain", {}),
    "qwen": ("qwen", {"tokenizer_class": "Qwen2TokenizerFast", "model": {"model_type": "qwen2"}}),
    "forced qwen": ("qwen", {"model": {"model_type": "qwen2"}}),
    "gpt2": ("plain", {"tokenizer_class": "GPT2Tokenizer", "model": {"model_type": "gpt2"}}),
    "mistral": ("plain", {"tokenizer_class": "LlamaTokenizer", "model": {"model_type": "mistral"}}),
    "more specials": ("plain", {"additional_special_tokens": ["the", "<|new|>"]}),
    "unsplit": ("plain", {"split_special_tokens": True}),
}


class TestCount:
    @pytest.mark.parametrize("kind", FOLDERS)
    @pytest.mark.parametrize("family", TEMPLATES)
    def test_counts_as_transformers_does(
        self, tmp_path: Path, plain: Tokenizer, qwen: Tokenizer, family: str, kind: str
    ) -> None:
        """Over templates, tokenizer classes, and texts that end in special tokens or emoji."""
        tokenizer, options = FOLDERS[kind]
        base = qwen if tokenizer == "qwen" else plain
        folder = write_folder(tmp_path, base, template=TEMPLATES[family], **options)
        counter, reference = PromptCounter.from_folder(folder), transformers_tokenizer(folder)
        assert counter.text_doubt is None
        assert counter.chat_doubt is None
        for text in TEXTS:
            for specials in (True, False):
                expected = len(reference(text, add_special_tokens=specials)["input_ids"])
                assert counter.count(completion(text, add_special_tokens=specials)) == expected
            assert counter.count(completion(text)) == len(reference(text)["input_ids"])
        for messages in CHATS:
            flat = [
                {**m, "content": m["content"] if isinstance(m["content"], str) else "one"}
                for m in messages
            ]
            expected = len(
                reference.apply_chat_template(flat, add_generation_prompt=True, return_dict=False)
            )
            assert counter.count(chat(messages)) == expected

    def test_options_of_a_chat(self, tmp_path: Path, plain: Tokenizer) -> None:
        """Special tokens on top, no prompt for an answer, and plain template variables."""
        folder = write_folder(tmp_path, plain)
        counter, reference = PromptCounter.from_folder(folder), transformers_tokenizer(folder)
        messages = [{"role": "user", "content": "hi"}]

        def expected(**options: Any) -> int:
            arguments = {"add_generation_prompt": True, "return_dict": False, **options}
            return len(reference.apply_chat_template(messages, **arguments))

        assert counter.count(chat(messages, add_special_tokens=True)) == expected() + 1
        assert counter.count(
            chat(messages, add_generation_prompt=False)
        ) == expected(add_generation_prompt=False)  # fmt: skip
        thinking = chat(messages, chat_template_kwargs={"thinking": False, "other": 1})
        assert counter.count(thinking) == expected(thinking=False) != expected()
        unset = chat(messages, chat_template_kwargs={"thinking": None, "bos_token": "auto"})
        assert counter.count(unset) == expected()
        assert counter.count(chat(messages, tool_choice="none")) == expected()

    def test_parts_are_joined_by_line_breaks(self, counter: PromptCounter) -> None:
        """For a template that reads strings the engine joins the parts that are not empty."""
        parts = [{"type": "text", "text": text} for text in ("one", "", "two")]
        joined = counter.count(chat([{"role": "user", "content": "one\ntwo"}]))
        assert counter.count(chat([{"role": "user", "content": parts}])) == joined

    def test_a_template_that_reads_both(self, tmp_path: Path, plain: Tokenizer) -> None:
        """Exact where strings and parts come out the same, None where they do not."""
        same = PARTS.replace("\n", "")
        counter = PromptCounter.from_folder(write_folder(tmp_path, plain, template=same))
        reference = transformers_tokenizer(tmp_path)
        messages = [{"role": "user", "content": "hi"}]
        expected = len(reference.apply_chat_template(messages, return_dict=False))
        assert counter.count(chat(messages)) == expected
        two = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        assert counter.count(chat([{"role": "user", "content": two}])) is None
        differs = same.replace("{{ part.text }}", "<{{ part.text }}>")
        counter = PromptCounter.from_folder(write_folder(tmp_path, plain, template=differs))
        assert counter.count(chat(messages)) is None

    def test_token_ids(self, counter: PromptCounter) -> None:
        """Their number, nothing added; one list in a list is one prompt."""
        assert counter.count(completion([5, 6, 7])) == 3
        assert counter.count(completion([[5, 6, 7]])) == 3
        assert counter.bounds(completion([5, 6, 7])) == TokenBounds(3, 3)
        assert counter.count(completion(["hello"])) == counter.count(completion("hello"))

    @pytest.mark.parametrize(
        "fields",
        [
            {"truncate_prompt_tokens": 5},
            {"prompt_embeds": "AAAA"},
            {"suffix": "x"},
            {"prompt": ["a", "b"]},
            {"prompt": [[1], [2]]},
            {"add_special_tokens": "yes"},
        ],
    )
    def test_completions_it_cannot_know(
        self, counter: PromptCounter, fields: dict[str, Any]
    ) -> None:
        """None from every method: an engine has to be asked."""
        request = completion(**fields)
        assert counter.count(request) is None
        assert counter.bounds(request) is None
        assert counter.classify(request, 10) is None

    @pytest.mark.parametrize(
        "fields",
        [
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            {"tool_choice": "auto"},
            {"documents": []},
            {"chat_template": "{{ messages }}"},
            {"continue_final_message": True, "add_generation_prompt": False},
            {"reasoning_effort": "low"},
            {"truncate_prompt_tokens": 5},
            {"mm_processor_kwargs": {}},
            {"add_generation_prompt": "yes"},
            {"chat_template_kwargs": {"tokenize": True}},
            {"chat_template_kwargs": {"thinking": []}},
            {"chat_template_kwargs": []},
        ],
    )
    def test_chats_it_cannot_know(self, counter: PromptCounter, fields: dict[str, Any]) -> None:
        """What shapes the prompt in ways that only the engine knows."""
        assert counter.count(chat(**fields)) is None
        assert counter.bounds(chat(**fields)) is None

    @pytest.mark.parametrize(
        "message",
        [
            {"role": "tool", "content": "x", "tool_call_id": "1"},
            {"role": "developer", "content": "x"},
            {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]},
            {"role": "assistant", "content": "x", "reasoning": ""},
            {"role": "user", "content": "x", "name": 1},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            {"role": "user", "content": [{"type": "text", "text": None}]},
            {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}]},
            {"role": "user", "content": ["a"]},
            {"role": "system", "content": "x-anthropic-billing-header: 1\nBe kind."},
        ],
    )
    def test_messages_it_cannot_know(self, counter: PromptCounter, message: dict[str, Any]) -> None:
        """Roles, parts and fields that the engine rewrites before the template sees them."""
        assert counter.count(chat([message])) is None

    def test_a_template_that_refuses(self, tmp_path: Path, plain: Tokenizer) -> None:
        """What the engine would refuse has no count; the text of completions still has."""
        folder = write_folder(tmp_path, plain, template="{{ raise_exception('no') }}")
        counter = PromptCounter.from_folder(folder)
        assert counter.count(chat()) is None
        assert counter.count(completion()) is not None


class TestDoubts:
    @pytest.mark.parametrize(
        "options",
        [
            {"tokenizer_class": "LlamaTokenizer"},
            {"tokenizer_class": "Qwen2Tokenizer"},
            {"model": {"model_type": "qwen2"}},
            {"model": {"model_type": "qwen3_5"}},
            {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True},
            {"tokenizer_class": None, "model": {"model_type": "gpt2"}},
            {"auto_map": {"AutoTokenizer": ["a.B", None]}},
            {"model": {"architectures": ["DeepseekV32ForCausalLM"]}},
        ],
    )
    def test_tokenizers_that_do_not_follow_the_file(
        self, tmp_path: Path, plain: Tokenizer, options: dict[str, Any]
    ) -> None:
        """Only token ids are counted, and the reason can be logged."""
        counter = PromptCounter.from_folder(write_folder(tmp_path, plain, **options))
        assert counter.text_doubt
        assert counter.chat_doubt == counter.text_doubt
        assert counter.count(completion()) is None
        assert counter.bounds(completion()) is None
        assert counter.count(chat()) is None
        assert counter.count(completion([1, 2])) == 2

    def test_mistral_format(self, tmp_path: Path, plain: Tokenizer) -> None:
        """A folder that the engine reads with Mistral's own tokenizer."""
        folder = write_folder(tmp_path, plain, model={"model_type": "mistral"})
        (folder / "tekken.json").write_text("{}")
        assert PromptCounter.from_folder(folder).text_doubt is None
        (folder / "consolidated.safetensors").write_text("")
        assert PromptCounter.from_folder(folder).text_doubt

    @pytest.mark.parametrize(
        "options", [{"template": None}, {"model": {"architectures": ["GptOssForCausalLM"]}}]
    )
    def test_no_template(self, tmp_path: Path, plain: Tokenizer, options: dict[str, Any]) -> None:
        """Without a template of the folder's own chats are not counted, completions are."""
        counter = PromptCounter.from_folder(write_folder(tmp_path, plain, **options))
        assert counter.text_doubt is None
        assert counter.chat_doubt
        assert counter.count(chat()) is None
        assert counter.count(completion()) is not None

    @pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"model": {"type": "new"}}'])
    def test_unusable_folders(self, tmp_path: Path, text: str | None) -> None:
        """No tokenizer.json, or one that the library does not read, is the operator's to mend."""
        if text is not None:
            (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(ModelError):
            PromptCounter.from_folder(tmp_path)


SHORT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"
HANGUL = ["\u1112\u1161\u11ab", "\ud55c"]  # one syllable, decomposed and composed
TRICKY = [EOS, BOS, "e\u0301", "\u0301", FAMILY, "日本", *HANGUL, "the ", "  ", "\n"]
PIECES = st.lists(st.sampled_from(TRICKY) | SHORT, max_size=12).map("".join)


class TestBounds:
    @settings(max_examples=300, deadline=None)
    @given(text=PIECES.filter(bool), specials=st.booleans())
    def test_hold_for_any_text(self, counter: PromptCounter, text: str, specials: bool) -> None:
        """Emoji, CJK, lone marks, special tokens: lower <= count <= upper."""
        request = completion(text, add_special_tokens=specials)
        bounds, count = counter.bounds(request), counter.count(request)
        assert bounds is not None
        assert bounds.upper is not None
        assert count is not None
        assert bounds.lower <= count <= bounds.upper

    @settings(max_examples=200, deadline=None)
    @given(text=PIECES)
    def test_hold_for_any_chat(self, counter: PromptCounter, text: str) -> None:
        """The text of the whole rendering is bounded, not that of the messages."""
        request = chat([{"role": "user", "content": text}])
        bounds, count = counter.bounds(request), counter.count(request)
        assert bounds is not None
        assert bounds.upper is not None
        assert count is not None
        assert bounds.lower <= count <= bounds.upper

    @settings(max_examples=200, deadline=None)
    @given(text=PIECES.filter(bool))
    def test_hold_behind_nfc(self, nfc: PromptCounter, text: str) -> None:
        """Where they exist at all: text that NFC would change has none, but still a count."""
        request = completion(text)
        bounds, count = nfc.bounds(request), nfc.count(request)
        assert count is not None
        if bounds is not None:
            assert bounds.upper is not None
            assert bounds.lower <= count <= bounds.upper

    def test_nfc(self, nfc: PromptCounter) -> None:
        """Composed text is bounded, decomposed text is not."""
        assert nfc.bounds(completion("naïve 日本")) is not None
        assert nfc.bounds(completion("nai\u0308ve")) is None

    def test_values(self, counter: PromptCounter) -> None:
        """One token per byte at most; BOS counts on both sides."""
        bounds = counter.bounds(completion("日本"))
        assert bounds is not None
        assert bounds.upper == 7
        assert bounds.lower == 2
        bare = counter.bounds(completion("日本", add_special_tokens=False))
        assert bare == TokenBounds(1, 6)

    @pytest.mark.parametrize(
        "change",
        [
            "prefix space",
            "lowercase",
            "blanks removed",
            "split removed",
            "no bytes",
            "missing byte",
            "swallows blanks",
        ],
    )
    def test_none_where_bytes_are_lost_or_added(
        self, tmp_path: Path, plain: Tokenizer, change: str
    ) -> None:
        """Such tokenizers are counted, never bounded."""
        tokenizer = Tokenizer.from_str(plain.to_str())
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        options: dict[str, Any] = {}
        if change == "prefix space":
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        elif change == "lowercase":
            tokenizer.normalizer = normalizers.Lowercase()
        elif change == "blanks removed":
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Whitespace(), byte_level]
            )
        elif change == "split removed":
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Split(" ", "removed"), byte_level]
            )
        elif change == "no bytes":
            tokenizer.pre_tokenizer = pre_tokenizers.Digits()
        elif change == "missing byte":
            tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
            tokenizer.pre_tokenizer = byte_level
        elif change == "swallows blanks":
            content = {"content": "<|wide|>", "lstrip": True, "special": True}
            options["added_tokens_decoder"] = {"900": content}
        counter = PromptCounter.from_folder(write_folder(tmp_path, tokenizer, **options))
        assert counter.bounds(completion("a b")) is None
        assert counter.count(completion("a b")) is not None

    def test_truncation_and_padding_of_the_file_do_not_count(
        self, tmp_path: Path, plain: Tokenizer
    ) -> None:
        """A tokenizer saved with them would count neither long nor short prompts right."""
        tokenizer = Tokenizer.from_str(plain.to_str())
        tokenizer.enable_truncation(4)
        tokenizer.enable_padding(length=4)
        counter = PromptCounter.from_folder(write_folder(tmp_path, tokenizer))
        assert counter.count(completion("z")) == 2
        assert counter.count(completion("zqzqzqzq")) == 9


class NoTokenizer:
    """Stands for a tokenizer that must not be asked."""

    def num_special_tokens_to_add(self, pair: bool) -> int:
        return 1

    def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> Any:
        raise AssertionError("tokenized")


class TestClassify:
    @pytest.fixture
    def lazy(self) -> PromptCounter:
        tokenizer: Any = NoTokenizer()
        return PromptCounter(
            tokenizer,
            longest_token_bytes=10,
            needs_nfc=False,
            template=None,
            text_doubt=None,
            chat_doubt="none",
        )

    @pytest.mark.parametrize(("size", "threshold"), [(50, 52), (50, 6), (50, 1000), (50, 1)])
    def test_clear_cases_are_not_tokenized(
        self, lazy: PromptCounter, size: int, threshold: int
    ) -> None:
        """Wholly below the threshold, or wholly not below it: the bytes say so."""
        assert lazy.classify(completion("x" * size), threshold) == TokenBounds(6, 51)

    @pytest.mark.parametrize("threshold", [7, 30, 51])
    def test_between_the_bounds_it_tokenizes(self, lazy: PromptCounter, threshold: int) -> None:
        """The tokenizer is asked exactly where the bounds leave it open."""
        with pytest.raises(AssertionError, match="tokenized"):
            lazy.classify(completion("x" * 50), threshold)

    def test_the_answer_is_then_exact(self, counter: PromptCounter) -> None:
        """And equal to the count."""
        request = completion("The quick brown fox " * 10)
        count = counter.count(request)
        assert count is not None
        assert counter.classify(request, count) == TokenBounds(count, count)

    def test_token_ids_are_exact_at_once(self, lazy: PromptCounter) -> None:
        """Whatever the threshold."""
        assert lazy.classify(completion([1, 2, 3]), 3) == TokenBounds(3, 3)


@pytest.mark.parametrize(
    ("bounds", "text", "exact"),
    [
        (TokenBounds(7, 7), "7", True),
        (TokenBounds(0, 120), "<=120", False),
        (TokenBounds(1, 120), "<=120", False),
        (TokenBounds(45, 120), "45-120", False),
        (TokenBounds(45, None), ">=45", False),
    ],
)
def test_bounds_in_a_header(bounds: TokenBounds, text: str, exact: bool) -> None:
    """Short, and telling a number from a range."""
    assert str(bounds) == text
    assert bounds.exact is exact


@pytest.mark.parametrize(
    ("bounds", "threshold", "decides"),
    [
        (TokenBounds(5, 9), 10, True),
        (TokenBounds(5, 10), 10, False),
        (TokenBounds(10, 99), 10, True),
        (TokenBounds(9, None), 10, False),
        (TokenBounds(10, None), 10, True),
    ],
)
def test_bounds_decide(bounds: TokenBounds, threshold: int, decides: bool) -> None:
    """Below the threshold, or not below it."""
    assert bounds.decides(threshold) is decides


def test_the_post_processor_decides_on_specials(tmp_path: Path, plain: Tokenizer) -> None:
    """Two added tokens are two, and add_bos_token in the settings changes nothing."""
    tokenizer = Tokenizer.from_str(plain.to_str())
    ids = tokenizer.get_vocab()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, ids[BOS]), (EOS, ids[EOS])]
    )
    folder = write_folder(tmp_path, tokenizer, template=CHATML_LIKE, add_bos_token=False)
    counter = PromptCounter.from_folder(folder)
    assert counter.count(completion("z")) == 3
    assert len(transformers_tokenizer(folder)("z")["input_ids"]) == 3
