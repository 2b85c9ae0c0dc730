"""Where a worker's engine publishes its KV events, by profile and address."""

from __future__ import annotations

from pathlib import Path

import pytest

from baton.errors import SettingsError
from baton.types import WorkerId
from baton.worker import WorkerOptions
from profiles import ServingProfile, load_profile
from profiles.worker_plan import kv_events_url
from tests.unit.profiles.texts import DISAGGREGATED

RUN_DIR = Path("/tmp/run-1")


def profile(folder: Path, prefix: str | None) -> ServingProfile:
    routing = "" if prefix is None else f"  routing:\n    prefix: {prefix}\n"
    file = folder / "profile.yaml"
    file.write_text(DISAGGREGATED + routing)
    return load_profile(file)


def options(host: str, advertise_url: str = "http://10.0.0.3:8100") -> WorkerOptions:
    return WorkerOptions(
        profile="test",
        model=None,
        served_name=None,
        host=host,
        port=8100,
        advertise_url=advertise_url,
        side_channel_port=5600,
        registry="http://127.0.0.1:8000",
        token="cluster-token-0123456789",
        home=Path("/nowhere"),
        worker_id=WorkerId("w-1"),
        node="node-1",
        cpu_threads=1,
        kv_events_port=5710,
    )


@pytest.mark.parametrize("prefix", [None, "'off'", "approximate"])
def test_nothing_is_published_unless_asked(tmp_path: Path, prefix: str | None) -> None:
    """Events hold the token ids of prompts: only a profile that needs them turns them on."""
    assert kv_events_url(profile(tmp_path, prefix), options("10.0.0.3"), RUN_DIR) == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_on_loopback_a_private_socket(tmp_path: Path, host: str) -> None:
    """What only this machine needs, only this user can reach."""
    exact = profile(tmp_path, "exact")
    assert kv_events_url(exact, options(host), RUN_DIR) == "ipc:///tmp/run-1/kv-events"


@pytest.mark.parametrize("host", ["10.0.0.3", "0.0.0.0"])
def test_elsewhere_the_address_of_handshakes(tmp_path: Path, host: str) -> None:
    """A concrete address, or behind a wildcard the one that is advertised."""
    exact = profile(tmp_path, "exact")
    assert kv_events_url(exact, options(host), RUN_DIR) == "tcp://10.0.0.3:5710"


def test_a_worker_has_to_know_its_address(tmp_path: Path) -> None:
    """A wildcard advertised would reach nobody."""
    with pytest.raises(SettingsError, match="--advertise-url"):
        kv_events_url(profile(tmp_path, "exact"), options("0.0.0.0", "http://0.0.0.0:1"), RUN_DIR)
