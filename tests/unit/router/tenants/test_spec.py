"""Tenants as they are written: every mistake told with its line, and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from baton.errors import SettingsError
from router.tenants import load_tenants, parse_tenants
from router.tenants.spec import TenantSpec, parse_tenant, plain, tenant_of

HASH = "sha256:" + "ab" * 32

HEAD = "apiVersion: baton/v1\nkind: Tenants\ntenants:\n"


def problems(text: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        parse_tenants(text, source="t.yaml")
    return caught.value.message.splitlines()


def test_a_whole_file() -> None:
    """Every field; what is not given has its default."""
    tenants = parse_tenants(
        HEAD
        + "  acme:\n    priority: 5\n    weight: 2.5\n    requests_per_minute: 60\n"
        + "    tokens_per_minute: 1000\n    concurrency: 3\n    models: ['llama-*']\n"
        + f"    key_hashes: [{HASH}]\n  free: {{}}\n",
        source="t.yaml",
    )
    assert tenants["acme"] == TenantSpec(
        priority=5,
        weight=2.5,
        requests_per_minute=60,
        tokens_per_minute=1000,
        concurrency=3,
        models=["llama-*"],
        key_hashes=[HASH],
    )
    assert tenants["free"] == TenantSpec()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a: {wieght: 2}\n", "t.yaml:4: tenants.a.wieght: is not a known field; did you mean"),
        ("  a: {weight: 0}\n", "t.yaml:4: tenants.a.weight: must be at least 0.01 (got 0)"),
        ("  a: {concurrency: 0}\n", "t.yaml:4: tenants.a.concurrency: must be at least 1"),
        ("  a: {priority: 101}\n", "t.yaml:4: tenants.a.priority: must be at most 100"),
        ("  a: {key_hashes: [bt-x]}\n", "t.yaml:4: tenants.a.key_hashes[0]: must be sha256: and"),
        ("  'b b': {}\n", 't.yaml:4: tenants."b b": must be 1 to 63 letters'),
        ("  a: {models: ['x y']}\n", "t.yaml:4: tenants.a.models[0]: must be a model's name"),
        (
            f"  a:\n    key_hashes: [{HASH}]\n  b:\n    key_hashes: [{HASH}]\n",
            "t.yaml:6: tenants.b: has a key that is a's already (sha256:abababab...)",
        ),
    ],
)
def test_mistakes(text: str, expected: str) -> None:
    """File, line, field, and a plain sentence."""
    (line,) = problems(HEAD + text)
    assert line.startswith(expected)


def test_all_mistakes_at_once() -> None:
    """Not one at a time."""
    assert len(problems("apiVersion: baton/v2\nkind: Tenant\ntenants: {a: {rpm: 1}}\n")) == 3


def test_no_such_file(tmp_path: Path) -> None:
    """Is said."""
    with pytest.raises(SettingsError, match="no such file"):
        load_tenants(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("globs", "allowed", "refused"),
    [
        (None, ["anything", ""], []),
        ([], [], ["anything", ""]),
        (["llama-*", "demo"], ["llama-3", "llama-", "demo"], ["demo2", "xllama-3", "Demo"]),
        (["a.b"], ["a.b"], ["axb"]),
        (["org/m?"], ["org/m1"], ["org/m", "org/m12"]),
    ],
)
def test_models(globs: list[str] | None, allowed: list[str], refused: list[str]) -> None:
    """Patterns match whole names, by case."""
    tenant = tenant_of("t", TenantSpec(models=globs))
    assert all(tenant.allows(model) for model in allowed)
    assert not any(tenant.allows(model) for model in refused)


def test_json_of_one_tenant() -> None:
    """Reads back as it was; a mistake is one line."""
    spec = TenantSpec(priority=-1, models=["x"], key_hashes=[HASH])
    assert plain(spec) == {"priority": -1, "models": ["x"], "key_hashes": [HASH]}
    assert parse_tenant("a", b'{"priority": -1}', source="here") == TenantSpec(priority=-1)
    for name, text in (("a", b"{"), ("a", b'{"x": 1}'), ("a", b'{"weight": "2"}'), ("/", b"{}")):
        with pytest.raises(SettingsError, match=r"^here: ") as caught:
            parse_tenant(name, text, source="here")
        assert "\n" not in caught.value.message
