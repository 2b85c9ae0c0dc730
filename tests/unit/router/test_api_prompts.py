"""What is known of a prompt without a tokenizer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.api import (
    Endpoint,
    GenerateRequest,
    as_chat,
    count_question,
    greedy,
    parse_request,
    prompt_bytes_of,
    session_of,
)


def request(endpoint: Endpoint, **fields: Any) -> GenerateRequest:
    return parse_request(endpoint, json.dumps({"model": "m", **fields}).encode())


def chat(*texts: str, **fields: Any) -> GenerateRequest:
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)
    ]
    return request(Endpoint.CHAT, messages=messages, **fields)


def message(*texts: str, **fields: Any) -> GenerateRequest:
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)
    ]
    return request(Endpoint.MESSAGES, messages=messages, **{"max_tokens": 8, **fields})


def shared(a: bytes, b: bytes) -> int:
    """Bytes that both begin with."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(map(len, (a, b)))
    )


plain = st.text(st.characters(exclude_categories=["Cs"]))
texts = st.lists(plain, min_size=1, max_size=4)


class TestPromptBytes:
    @given(texts, texts)
    def test_a_longer_chat_shares_all_of_a_shorter_one(
        self, old: list[str], new: list[str]
    ) -> None:
        """The next turn of a conversation begins with the bytes of the last, but for the bracket
        that closes the list."""
        for make in (chat, message):
            before = prompt_bytes_of(make(*old))
            after = prompt_bytes_of(make(*old, *new))
            assert shared(before, after) >= len(before) - 1

    @given(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
        st.text(st.characters(exclude_categories=["Cs"])),
    )
    def test_a_longer_text_shares_all_of_a_shorter_one(self, old: str, new: str) -> None:
        """A completion's prompt ends where its bytes end."""
        before = prompt_bytes_of(request(Endpoint.COMPLETIONS, prompt=old))
        assert prompt_bytes_of(request(Endpoint.COMPLETIONS, prompt=old + new)).startswith(before)
        before = prompt_bytes_of(request(Endpoint.RESPONSES, input=old))
        assert prompt_bytes_of(request(Endpoint.RESPONSES, input=old + new)).startswith(before)

    @pytest.mark.parametrize(
        "change",
        [
            {"model": "m2"},
            {"cache_salt": "s"},
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            {"chat_template_kwargs": {"enable_thinking": False}},
            {"reasoning_effort": "low"},
        ],
    )
    def test_what_comes_first_parts_first(self, change: dict[str, Any]) -> None:
        """Model, salt, tools and template options part two prompts before any of their text."""
        one, other = chat("same text"), chat("same text", **change)
        where = prompt_bytes_of(one).index(b"same text")
        assert shared(prompt_bytes_of(one), prompt_bytes_of(other)) < where

    def test_what_does_not_shape_the_prompt_changes_nothing(self) -> None:
        """Sampling, the order of keys, and tools that are not offered."""
        plain = prompt_bytes_of(chat("x"))
        assert prompt_bytes_of(chat("x", temperature=0.1, stream=True, user="u")) == plain
        tools = [{"type": "function", "function": {"name": "f"}}]
        assert prompt_bytes_of(chat("x", tools=tools, tool_choice="none")) == plain
        turned = request(Endpoint.CHAT, messages=[{"content": "x", "role": "user"}])
        assert prompt_bytes_of(turned) == plain

    def test_token_ids(self) -> None:
        """Ids share what they begin with."""
        one = prompt_bytes_of(request(Endpoint.COMPLETIONS, prompt=[1, 2, 3]))
        other = prompt_bytes_of(request(Endpoint.COMPLETIONS, prompt=[1, 2, 4]))
        assert one != other
        assert shared(one, other) == len(one) - 2


@pytest.mark.parametrize(
    ("made", "session"),
    [
        (chat("x"), None),
        (chat("x", user="u"), "u"),
        (chat("x", user="u", prompt_cache_key="k"), "k"),
        (chat("x", session_id="s", prompt_cache_key="k"), "s"),
        (chat("x", safety_identifier="i"), "i"),
        (chat("x", user=1, safety_identifier=""), None),
        (message("x", metadata={"user_id": "a"}), "a"),
        (message("x", metadata={"user_id": 1}), None),
        (message("x", metadata="u"), None),
        (chat("x", metadata={"user_id": "a"}), None),
    ],
)
def test_session(made: GenerateRequest, session: str | None) -> None:
    """The narrowest thing that the client says its requests have in common."""
    assert session_of(made) == session


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"temperature": 0}, True),
        ({"temperature": 0.0, "top_p": 0.5, "seed": 3}, True),
        ({}, False),
        ({"temperature": 0.1}, False),
        ({"temperature": False}, False),
        ({"temperature": "0"}, False),
        ({"temperature": 0, "n": 2}, False),
        ({"temperature": 0, "use_beam_search": True}, False),
    ],
)
def test_greedy(fields: dict[str, Any], expected: bool) -> None:
    """Only what says so itself is greedy."""
    assert greedy(chat("x", **fields)) is expected


class TestAsChat:
    def test_a_chat_is_one(self) -> None:
        """Nothing to do."""
        made = chat("x")
        assert as_chat(made) is made
        assert as_chat(request(Endpoint.COMPLETIONS, prompt="x")) is None

    def test_a_response(self) -> None:
        """Instructions are the system's message, a string is the user's."""
        found = as_chat(
            request(
                Endpoint.RESPONSES,
                input="hi",
                instructions="be brief",
                tools=[{"type": "function", "name": "f", "parameters": {}}],
                chat_template_kwargs={"a": 1},
            )
        )
        assert found is not None
        assert found.endpoint is Endpoint.CHAT
        assert found.body == {
            "model": "m",
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "hi"},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
            "chat_template_kwargs": {"a": 1},
            "add_special_tokens": True,
        }

    def test_items(self) -> None:
        """Messages among the items, with their parts as a chat's."""
        found = as_chat(
            request(
                Endpoint.RESPONSES,
                input=[
                    {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                    {
                        "type": "message",
                        "role": "assistant",
                        "content": [{"type": "output_text", "text": "b"}],
                    },
                    {"role": "user", "content": "c"},
                ],
            )
        )
        assert found is not None
        assert found.body["messages"] == [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ]

    def test_calls(self) -> None:
        """What an assistant said and called is one message; outputs are the tool's."""
        call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
        found = as_chat(
            request(
                Endpoint.RESPONSES,
                input=[
                    {"role": "user", "content": "a"},
                    {**call, "status": "completed"},
                    {**call, "call_id": "d"},
                    {"type": "function_call_output", "call_id": "c", "output": "1"},
                    {"role": "assistant", "content": "b"},
                    call,
                ],
            )
        )
        assert found is not None
        calls = [
            {"id": i, "type": "function", "function": {"name": "f", "arguments": "{}"}}
            for i in ("c", "d")
        ]
        assert found.body["messages"] == [
            {"role": "user", "content": "a"},
            {"role": "assistant", "tool_calls": calls},
            {"role": "tool", "content": "1", "tool_call_id": "c"},
            {"role": "assistant", "content": "b", "tool_calls": calls[:1]},
        ]

    def test_the_request_stays(self) -> None:
        """Nothing that is merged is merged in the client's own body."""
        items = [
            {"role": "assistant", "content": "b"},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        ]
        made = request(Endpoint.RESPONSES, input=items)
        as_chat(made)
        assert made.body["input"] == items

    def test_a_message(self) -> None:
        """System text first; one text is a string, several are parts."""
        found = as_chat(
            request(
                Endpoint.MESSAGES,
                max_tokens=3,
                system=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                messages=[
                    {"role": "user", "content": [{"type": "text", "text": "c"}]},
                    {"role": "assistant", "content": "d"},
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "e"}, {"type": "text", "text": "f"}],
                    },
                ],
            )
        )
        assert found is not None
        assert found.max_new_tokens == 3
        assert found.body["messages"] == [
            {"role": "system", "content": "ab"},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "d"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "e"}, {"type": "text", "text": "f"}],
            },
        ]

    @pytest.mark.parametrize(
        "made",
        [
            request(Endpoint.RESPONSES, input="x", reasoning={"effort": "low"}),
            request(Endpoint.RESPONSES, input=[{"type": "reasoning", "summary": []}]),
            request(
                Endpoint.RESPONSES,
                input=[{"role": "assistant", "content": "x", "status": "in_progress"}],
            ),
            request(Endpoint.RESPONSES, input="x", tools=[{"type": "custom", "name": "c"}]),
            request(Endpoint.RESPONSES, input=[{"type": "function_call", "name": "f"}]),
            request(Endpoint.RESPONSES, input=[{"type": "function_call_output", "output": []}]),
            request(
                Endpoint.RESPONSES,
                input=[{"role": "assistant", "content": [{"type": "refusal", "refusal": "x"}]}],
            ),
            message("x", thinking={"type": "disabled"}),
            message("x", output_config={"effort": "low"}),
            message("x", tools=[{"name": "f", "input_schema": {}}]),
            message("x", system=[{"type": "text", "text": "x-anthropic-billing-header: 1"}]),
            request(Endpoint.MESSAGES, max_tokens=1, messages=[{"role": "system", "content": "x"}]),
        ],
    )
    def test_what_is_not_certain(self, made: GenerateRequest) -> None:
        """Whatever the engine turns into a chat in a way of its own is not counted as one."""
        assert as_chat(made) is None


class TestCountQuestion:
    def test_chats_and_completions(self) -> None:
        """The body as it is, but for what only a stream has."""
        question = count_question(chat("x", stream=True, stream_options={"include_usage": True}))
        assert question is not None
        assert (question.path, question.field) == ("/tokenize", "count")
        assert json.loads(question.body) == chat("x").body

    def test_messages(self) -> None:
        """Anthropic's own endpoint, with the fields that it knows."""
        question = count_question(message("x", system="s", stop_sequences=["a"], stream=True))
        assert question is not None
        assert (question.path, question.field) == ("/v1/messages/count_tokens", "input_tokens")
        assert json.loads(question.body) == {
            "model": "m",
            "system": "s",
            "messages": [{"role": "user", "content": "x"}],
        }

    def test_responses(self) -> None:
        """The chat of the same prompt, or nobody can tell."""
        question = count_question(request(Endpoint.RESPONSES, input="hi"))
        assert question is not None
        assert json.loads(question.body) == {
            "model": "m",
            "messages": [{"role": "user", "content": "hi"}],
            # As the engine does, unlike for chats.
            "add_special_tokens": True,
        }
        assert count_question(request(Endpoint.RESPONSES, input="x", reasoning={})) is None
