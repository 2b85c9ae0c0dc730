"""Which vLLM flags a profile may pass through."""

from __future__ import annotations

import pytest

from profiles.engine_flags import KV_MEANING, OWNED, refusal

REFUSED = [
    "model",
    "tokenizer",
    "served-model-name",
    "host",
    "port",
    "uds",
    "api-key",
    "kv-transfer-config",
    "block-size",
    "max-model-len",
    "dtype",
    "tensor-parallel-size",
    "max-num-seqs",
    "max-num-batched-tokens",
    "gpu-memory-utilization",
    "enforce-eager",
    "headless",
    "config",
    "root-path",
    "ssl-keyfile",
    "ssl-ca-certs",
    "api-server-count",
    "data-parallel-size",
    "data-parallel-rank",
    "kv-cache-memory-bytes",
    "distributed-executor-backend",
    "pipeline-parallel-size",
    "nnodes",
    "kv-events-config",
    "kv-offloading-size",
    "hf-token",
    "middleware",
]

ALLOWED = [
    "seed",
    "quantization",
    "enable-log-requests",
    "enable-prefix-caching",
    "max-logprobs",
    "tokenizer-mode",
    "kv-cache-dtype",
    "chat-template",
    "compilation-config.cudagraph_mode",
    "async-scheduling",
    "revision",
    "long-prefill-token-threshold",
    "config-format",
    "hf-overrides.rope_theta",
]


@pytest.mark.parametrize("name", REFUSED)
def test_flags_that_baton_owns_are_refused(name: str) -> None:
    """Owned flags are refused, and so are their dotted, negated and shortened forms."""
    said = refusal(name)
    assert said is not None
    assert said.startswith("is set by Baton: ")
    for form in (f"{name}.x", f"no-{name}", name[:-1], name.replace("-", "_") + "_"):
        assert refusal(form) is not None, form


@pytest.mark.parametrize("name", ALLOWED)
def test_other_flags_pass(name: str) -> None:
    """A flag that Baton has no say in is none of its business, known or not."""
    assert refusal(name) is None


def test_a_beginning_of_an_owned_flag_is_explained() -> None:
    """The engine would take the beginning for the flag, so the message says which it is."""
    assert (refusal("served") or "").startswith("is short for served-model-name, which is set by")


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("max_logprobs", "; write max-logprobs"),
        ("--seed", "; write seed"),
        ("Seed", "; write seed"),
        ("--hf_overrides.rope_theta", "; write hf-overrides.rope_theta"),
        ("seed 1", ""),
        ("-", ""),
        ("", ""),
        ("seed=1", ""),
        ("seed\n", ""),
    ],
)
def test_a_flag_has_one_spelling(name: str, better: str) -> None:
    """Other spellings are refused, with the right one where it can be told."""
    base = "must be the long name of a vLLM flag, without dashes in front"
    assert refusal(name) == base + better


def test_flags_about_the_meaning_of_a_kv_cache_may_be_passed() -> None:
    """They are not owned; the rule about them would never apply otherwise."""
    assert all(refusal(flag) is None for flag in KV_MEANING)
    assert not set(KV_MEANING) & set(OWNED)
