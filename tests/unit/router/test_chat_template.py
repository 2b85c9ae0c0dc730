"""Chat templates: the same text as transformers writes, from whatever file, or a reason why not."""

from __future__ import annotations

import json
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from baton.errors import ModelError
from router import chat_template
from router.chat_template import MAX_TEMPLATE_CHARS, CannotRender, ChatTemplate
from tests.unit.router.model_folders import BOS, CHATML_LIKE, EOS, LLAMA_LIKE, PARTS, TEMPLATES

SPECIALS = {"bos_token": BOS, "eos_token": EOS}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one turn": [{"role": "user", "content": "hello"}],
    "system": [
        {"role": "system", "content": "  Be kind.\n"},
        {"role": "user", "content": "\n hi "},
    ],
    "several turns": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<b> & 'c'"},
        {"role": "user", "content": "日本語 😀 {{ bos_token }}"},
    ],
    "empty": [{"role": "user", "content": ""}],
}
FEATURES = """\
{# what the environment offers beyond plain Jinja #}
{% set ns = namespace(seen=0) %}
{% for message in messages %}
    {% if message.content == 'skip' %}{% continue %}{% endif %}
    {% if message.content == 'stop' %}{% break %}{% endif %}
    {% set ns.seen = ns.seen + 1 %}
    {% generation %}
    {% set inner = 'kept inside' %}
{{ message | tojson }}|{{ message | tojson(indent=2) }}|{{ inner }}
    {% endgeneration %}
[{{ inner }}]
{% endfor %}
{{ ns.seen }} {{ strftime_now('%Y') | length }} {{ messages[0].content[::-1] | upper }}
{%- if tools is none and documents is none %} no tools{% endif %}
{{ missing }}{{ extra | default('none') }}
"""


def reference(source: str, messages: list[dict[str, Any]], **variables: Any) -> str:
    """The text that transformers renders."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        utils = pytest.importorskip("transformers.utils.chat_template_utils")
    (text,), _ = utils.render_jinja_template(
        conversations=[messages], chat_template=source, **{**SPECIALS, **variables}
    )
    return str(text)


@pytest.mark.parametrize("generate", [True, False])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_as_transformers_does(name: str, chat: str, generate: bool) -> None:
    """Three families of templates, with and without the prompt for an answer."""
    template = ChatTemplate(TEMPLATES[name], SPECIALS)
    ours = template.render(CHATS[chat], add_generation_prompt=generate)
    assert ours == reference(TEMPLATES[name], CHATS[chat], add_generation_prompt=generate)
    assert isinstance(ours, str)


def test_offers_what_transformers_offers() -> None:
    """Loop controls, the generation tag, tojson without HTML escapes, namespaces, strftime_now."""
    messages = [
        {"role": "user", "content": "é<&>"},
        {"role": "user", "content": "skip"},
        {"role": "user", "content": "b"},
        {"role": "user", "content": "stop"},
        {"role": "user", "content": "never"},
    ]
    ours = ChatTemplate(FEATURES, SPECIALS).render(messages, variables={"extra": "x"})
    assert ours == reference(FEATURES, messages, add_generation_prompt=True, extra="x")
    assert isinstance(ours, str)
    assert "é<&>" in ours
    assert "2 4 >&<É no tools" in ours


def test_prompts_for_an_answer_by_default() -> None:
    """The engine's default, and not that of transformers."""
    template = ChatTemplate(CHATML_LIKE, SPECIALS)
    chat = CHATS["one turn"]
    assert template.render(chat) == template.render(chat, add_generation_prompt=True)
    assert template.render(chat) != template.render(chat, add_generation_prompt=False)


def test_variables_win_over_special_tokens() -> None:
    """As in apply_chat_template, where template arguments overwrite the map."""
    template = ChatTemplate("{{ bos_token }}{{ eos_token }}", SPECIALS)
    assert template.render([], variables={"bos_token": "X"}) == "X" + EOS


def test_the_clock_is_injected() -> None:
    """Today's date comes from the caller."""
    template = ChatTemplate("{{ strftime_now('%d %b') }}", {}, now=lambda: datetime(2031, 2, 3))
    assert template.render([]) == "03 Feb"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no') }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[9].content }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{% for i in range(10000000) %}x{% endfor %}",
        "{{ messages[0] | tojson(indent='\\ud800') }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_failing_template_is_an_outcome(source: str) -> None:
    """Refusals, type errors, breaking out, huge loops and endless recursion raise nothing."""
    result = ChatTemplate(source, {}).render(CHATS["one turn"])
    assert isinstance(result, CannotRender)
    assert result.reason


def test_what_it_writes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rendering is stopped where it passes the limit, not after it."""
    monkeypatch.setattr(chat_template, "MAX_RENDERED_CHARS", 10)
    template = ChatTemplate("{% for i in range(90000) %}{{ i }}{% endfor %}", {})
    assert isinstance(template.render([]), CannotRender)
    assert ChatTemplate("0123456789", {}).render([]) == "0123456789"


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ x | nofilter }}", "x" * MAX_TEMPLATE_CHARS + "x"]
)
def test_refuses_what_is_no_template(source: str) -> None:
    """Syntax errors, unknown filters and oversized files are for the operator."""
    with pytest.raises(ModelError):
        ChatTemplate(source, {})


@pytest.mark.parametrize(
    ("source", "may"),
    [
        (LLAMA_LIKE, False),
        (CHATML_LIKE, False),
        (PARTS, True),
        ("{% for m in messages %}{% for c in m['content'] %}{{ c }}{% endfor %}{% endfor %}", True),
        ("{% for m in messages %}{% set content = m.content %}{% for c in content | list %}{{ c }}"
         "{% endfor %}{% endfor %}", True),
        ("{% macro f(x) %}{% for c in x %}{{ c }}{% endfor %}{% endmacro %}", True),
        ("{% for t in tools or [] %}{{ t }}{% endfor %}", False),
    ],
)  # fmt: skip
def test_knows_templates_that_may_read_parts(source: str, may: bool) -> None:
    """Only a template without any loop over content is sure to be given strings."""
    assert ChatTemplate(source, {}).may_read_parts is may


def write(folder: Path, config: Any = None, **files: Any) -> Path:
    if config is not None:
        files["tokenizer_config.json"] = config
    for name, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def rendered(folder: Path) -> str | CannotRender:
    return ChatTemplate.from_folder(folder).render([])


class TestFromFolder:
    def test_a_jinja_file_wins(self, tmp_path: Path) -> None:
        """Over the template in tokenizer_config.json."""
        write(tmp_path, {"chat_template": "config"}, **{"chat_template.jinja": "file é"})
        assert rendered(tmp_path) == "file é"

    def test_the_default_of_several(self, tmp_path: Path) -> None:
        """A list of named templates: the one named default is for chats without tools."""
        named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
        assert rendered(write(tmp_path, {"chat_template": named})) == "d"

    def test_a_json_file(self, tmp_path: Path) -> None:
        """The processors' file counts where nothing contradicts it."""
        write(tmp_path, {}, **{"chat_template.json": {"chat_template": "p"}})
        assert rendered(tmp_path) == "p"
        write(tmp_path, {"chat_template": "p"})
        assert rendered(tmp_path) == "p"

    @pytest.mark.parametrize(
        "files",
        [
            {},
            {"tokenizer_config.json": {"chat_template": [{"name": "rag", "template": "x"}]}},
            {"tokenizer_config.json": "{"},
            {"tokenizer_config.json": []},
            {"tokenizer_config.json": {"chat_template": "{% if %}"}},
            {
                "tokenizer_config.json": {"chat_template": "a"},
                "chat_template.json": {"chat_template": "b"},
            },
            {"tokenizer_config.json": {"chat_template": "{{ eos_token }}", "tokenizer_class": "X"}},
            {"chat_template.jinja": "x" * (MAX_TEMPLATE_CHARS + 1)},
        ],
    )
    def test_refuses_what_it_cannot_be_sure_of(self, tmp_path: Path, files: Any) -> None:
        """No template, two that differ, broken files, tokens that a class may have by default."""
        with pytest.raises(ModelError):
            ChatTemplate.from_folder(write(tmp_path, **files))

    @pytest.mark.parametrize(
        ("files", "text"),
        [
            ({"tokenizer_config.json": {"bos_token": "<s>"}}, "<s>||"),
            ({"tokenizer_config.json": {"bos_token": {"content": "<s>"}}}, "<s>||"),
            ({"tokenizer_config.json": {"bos_token": None, "image_token": "<i>"}}, "||<i>"),
            ({"tokenizer_config.json": {"extra_special_tokens": {"image_token": "<i>"}}}, "||<i>"),
            (
                {
                    "tokenizer_config.json": {"eos_token": "</s>"},
                    "special_tokens_map.json": {"eos_token": {"content": "<end>"}},
                },
                "|<end>|",
            ),
            (
                {
                    "tokenizer_config.json": {"eos_token": "</s>", "added_tokens_decoder": {}},
                    "special_tokens_map.json": {"eos_token": "<end>"},
                },
                "|</s>|",
            ),
        ],
    )
    def test_special_tokens(self, tmp_path: Path, files: Any, text: str) -> None:
        """Strings, objects, named extras, and the older file where it still counts."""
        source = "{{ bos_token }}|{{ eos_token }}|{{ image_token }}"
        write(tmp_path, **files, **{"chat_template.jinja": source})
        assert rendered(tmp_path) == text
