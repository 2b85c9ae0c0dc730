"""``baton key``: keys that work, are shown once and can be taken away."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from baton.cli.app import app
from router.tenants import KeyRing, hash_key, load_tenants


@pytest.fixture(name="place")
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tenants file that is not there yet, where the command looks by itself."""
    monkeypatch.setenv("BATON_HOME", str(tmp_path))
    monkeypatch.delenv("BATON_TENANTS", raising=False)
    return tmp_path / "tenants.yaml"


def key(*arguments: str) -> Result:
    return CliRunner().invoke(app, ("key", *arguments), prog_name="baton")


@pytest.mark.parametrize("command", [(), ("create",), ("list",), ("revoke",)])
def test_the_commands_explain_themselves(command: tuple[str, ...]) -> None:
    """With an example each."""
    result = key(*command, "--help")
    assert result.exit_code == 0
    assert f"Usage: baton key {' '.join(command)}".strip() in result.stdout
    if command:
        assert f"    baton key {command[0]}" in result.stdout


def test_a_key_works(place: Path) -> None:
    """It is alone on stdout, opens the router, and only its hash is kept, in a private file."""
    result = key("create", "acme")
    assert result.exit_code == 0
    made = result.stdout.strip()
    assert re.fullmatch(r"bt-[A-Za-z0-9_-]{43}", made)
    assert "only time" in result.stderr
    assert made not in result.stderr
    assert made not in place.read_text()
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert KeyRing(load_tenants(place)).find(f"Bearer {made}".encode()).name == "acme"


def test_settings_and_a_second_key(place: Path) -> None:
    """A second key changes what is given and keeps the rest; the first key stays good."""
    first = key("create", "acme", "--rpm", "60", "--models", "llama-*,demo", "--models", "x")
    second = key("create", "acme", "--tpm", "900", "--priority", "-2", "--weight", "0.5")
    third = key("create", "other", "--concurrency", "4", "--json")
    assert first.exit_code == second.exit_code == third.exit_code == 0
    tenants = load_tenants(place)
    acme = tenants["acme"]
    assert (acme.requests_per_minute, acme.tokens_per_minute) == (60, 900)
    assert (acme.priority, acme.weight) == (-2, 0.5)
    assert acme.models == ["llama-*", "demo", "x"]
    assert acme.key_hashes == [hash_key(result.stdout.strip()) for result in (first, second)]
    said = json.loads(third.stdout)
    assert said["tenant"] == "other"
    assert tenants["other"].key_hashes == [hash_key(said["key"])] == [said["hash"]]


def test_taking_a_limit_away(place: Path) -> None:
    """With 0; the others stay."""
    key("create", "acme", "--rpm", "60", "--concurrency", "3")
    assert key("create", "acme", "--rpm", "0").exit_code == 0
    acme = load_tenants(place)["acme"]
    assert (acme.requests_per_minute, acme.concurrency) == (None, 3)


def test_the_list(place: Path) -> None:
    """Tenants with their limits and the start of each hash; never a key."""
    made = key("create", "acme", "--rpm", "60").stdout.strip()
    key("create", "batch", "--priority", "-1")
    lines = [line.split() for line in key("list").stdout.splitlines()]
    assert lines[0][:3] == ["tenant", "priority", "weight"]
    digits = hash_key(made).removeprefix("sha256:")[:12]
    assert lines[1] == ["acme", "0", "1", "60", "-", "-", "all", digits]
    assert lines[2][:2] == ["batch", "-1"]
    data = json.loads(key("list", "--json").stdout)
    assert data["kept_in"] == str(place)
    assert data["tenants"]["acme"]["requests_per_minute"] == 60


def test_revoking_one_key(place: Path) -> None:
    """By the start of its hash, in either form; the tenant's other keys stay."""
    keys = [key("create", "acme").stdout.strip() for _ in range(3)]
    hashes = [hash_key(made) for made in keys]
    assert key("revoke", "--hash", hashes[0][:20]).stdout == "1 key of acme revoked\n"
    digits = hashes[1].removeprefix("sha256:")[:16].upper()
    assert key("revoke", "--hash", digits).exit_code == 0
    assert load_tenants(place)["acme"].key_hashes == [hashes[2]]


def test_revoking_all_keys_of_a_tenant(place: Path) -> None:
    """Its limits stay."""
    for _ in range(2):
        key("create", "acme", "--rpm", "7")
    key("create", "other")
    said = json.loads(key("revoke", "acme", "--json").stdout)
    assert [entry["tenant"] for entry in said["revoked"]] == ["acme", "acme"]
    tenants = load_tenants(place)
    assert tenants["acme"].key_hashes == []
    assert tenants["acme"].requests_per_minute == 7
    assert len(tenants["other"].key_hashes) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", "a b"), "is not a tenant's name"),
        (("create", "a", "--weight", "0"), "weight"),
        (("create", "a", "--models", ""), "models"),
        (("revoke",), "say whose keys"),
        (("revoke", "a", "--hash", "abcdef"), "not both"),
        (("revoke", "nobody"), "no tenant 'nobody'"),
        (("revoke", "--hash", "abc"), "at least 6"),
        (("revoke", "--hash", "000000"), "no key has a hash"),
        (("list", "--file", "/nowhere/tenants.yaml"), "no such file"),
        (("list", "--store", "http://x"), "--store wants"),
        (("list", "--store", "redis://x/1", "--file", "y"), "not in both"),
    ],
)
def test_what_is_wrong(place: Path, arguments: tuple[str, ...], said: str) -> None:
    """One message, status 2, and the file is as it was."""
    key("create", "there")
    before = place.read_bytes()
    result = key(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("baton: ")
    assert said in result.stderr
    assert result.stdout == ""
    assert place.read_bytes() == before


def test_a_file_with_a_mistake(place: Path) -> None:
    """Is not written over."""
    place.write_text("apiVersion: baton/v1\nkind: Tenants\ntenants: {a: {rpm: 3}}\n")
    result = key("create", "b")
    assert result.exit_code == 2
    assert f"{place}:3: tenants.a.rpm: is not a known field" in result.stderr


def test_another_place(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the environment; the option wins."""
    monkeypatch.setenv("BATON_TENANTS", str(tmp_path / "env.yaml"))
    key("create", "a")
    key("create", "b", "--file", str(tmp_path / "option.yaml"))
    assert set(load_tenants(tmp_path / "env.yaml")) == {"a"}
    assert set(load_tenants(tmp_path / "option.yaml")) == {"b"}
    assert not place.exists()


def test_a_redis_that_is_away(place: Path) -> None:
    """Is said without its password."""
    result = key("list", "--store", "redis://:hunter2@127.0.0.1:1/0")
    assert result.exit_code == 2
    assert "redis://127.0.0.1:1/0 cannot be reached" in result.stderr
    assert "hunter2" not in result.stderr
