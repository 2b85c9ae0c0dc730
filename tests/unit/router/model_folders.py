"""Small model folders for the tests of counting: a byte-level BPE trained on the spot.

No weights and no network. The three templates are written for these tests, each in the manner of a
family that is common in the wild.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

BOS: Final = "<|begin|>"
EOS: Final = "<|end|>"

LLAMA_LIKE: Final = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set system = '' %}
    {%- set rest = messages %}
{%- endif %}
{{- '<|head|>system<|/head|>\\n\\n' + system + '<|end|>' }}
{%- for message in rest %}
    {%- if message['role'] not in ['user', 'assistant'] %}
        {{- raise_exception('only user and assistant may speak') }}
    {%- endif %}
    {{- '<|head|>' + message['role'] + '<|/head|>\\n\\n' + message['content'] | trim + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|head|>assistant<|/head|>\\n\\n' }}
{%- endif %}
"""

CHATML_LIKE: Final = """\
{% for message in messages %}
{% if loop.first and message.role != 'system' %}
{{ '<|turn|>system\\nBe brief.<|end|>\\n' }}
{% endif %}
{{ '<|turn|>' + message.role + '\\n' + message.content + '<|end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|turn|>assistant\\n' }}
{% if thinking is defined and thinking is false %}
{{ '<think>\\n\\n</think>\\n' }}
{% endif %}
{% endif %}
"""

ZEPHYR_LIKE: Final = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""

PARTS: Final = """\
{% for message in messages %}[{{ message.role }}]{% if message.content is string %}
{{ message.content }}{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}
{% endif %}{% endfor %}"""
"""Reads lists of parts as well as strings, and writes a string differently (no line break)."""

TEMPLATES: Final = {"llama": LLAMA_LIKE, "chatml": CHATML_LIKE, "zephyr": ZEPHYR_LIKE}

_CORPUS: Final = (
    "The quick brown fox jumps over the lazy dog, and the dog sleeps in the sun all day long.",
    "A router counts the tokens of a prompt; a long prompt goes to prefill, a short one stays.",
    "def count(text: str) -> int:\n    return len(text.split())\n\n\n# 1234567890",
    "naïve façade, Übermut, 日本語のテキスト, эта строка, 😀😀 and so on and so on",
)
_QWEN_PATTERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train(*, qwen: bool = False) -> Tokenizer:
    """A tokenizer that adds BOS by its post-processor; ``qwen``: NFC, another cut, no BOS."""
    tokenizer = Tokenizer(models.BPE())
    if qwen:
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_QWEN_PATTERN), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    specials = [BOS, EOS, "<|head|>", "<|/head|>", "<|turn|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=specials,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    if not qwen:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 0)]
        )
    return tokenizer


def write_folder(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    template: str | None = CHATML_LIKE,
    model: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """The JSON files of a model's folder; ``settings`` go into ``tokenizer_config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        **({"chat_template": template} if template is not None else {}),
        **settings,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **(model or {})}))
    return folder
