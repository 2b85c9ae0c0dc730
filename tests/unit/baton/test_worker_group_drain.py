"""The hook that drains a worker: whom it asks, and what it makes of the answer."""

from __future__ import annotations

import http.client
import socket
from typing import Any

import pytest

from baton.errors import BatonError, SettingsError
from baton.worker.drain import drain, health_address

ENV = {"BATON_CLUSTER_TOKEN": "cluster-token-0123456789"}
GROUP = {"LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "1", "LWS_LEADER_ADDRESS": "leader"}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, ("127.0.0.1", 0)),
        ({"BATON_HEALTH_PORT": "8180"}, ("127.0.0.1", 8180)),
        ({"BATON_HEALTH_PORT": "8180", "BATON_HOST": "0.0.0.0"}, ("127.0.0.1", 8180)),
        ({"BATON_HEALTH_PORT": "8180", "BATON_HOST": "10.0.0.3"}, ("10.0.0.3", 8180)),
        ({"BATON_HEALTH_PORT": "8180", "BATON_HOST": "::"}, ("::1", 8180)),
        (GROUP, ("127.0.0.1", 8180)),
        ({**GROUP, "BATON_HEALTH_PORT": "9"}, ("127.0.0.1", 9)),
    ],
)
def test_whom_it_asks(env: dict[str, str], expected: tuple[str, int]) -> None:
    """The worker with the same environment, over loopback where that reaches it."""
    assert health_address(env) == expected


@pytest.mark.parametrize("said", ["x", "-1", "70000"])
def test_a_port_that_is_none(said: str) -> None:
    """A wrong setting is said to be one."""
    with pytest.raises(SettingsError, match="BATON_HEALTH_PORT"):
        health_address({"BATON_HEALTH_PORT": said})


def test_no_health_server() -> None:
    """Nothing to ask, and no failure: the container's end goes on."""
    assert "no health server" in drain(ENV, 5.0)


def test_nothing_listens() -> None:
    """The worker is gone already, or not there yet."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
    assert "nothing listens" in drain({**ENV, "BATON_HEALTH_PORT": str(number)}, 5.0)


class Answer:
    """A response of the health server."""

    def __init__(self, status: int) -> None:
        self.status = status

    def read(self, most: int) -> bytes:
        return b'{"drained": true}'[:most]


@pytest.mark.parametrize(
    ("answer", "said", "error"),
    [
        (Answer(200), "drained", None),
        (Answer(401), "answered 401", SettingsError),
        (Answer(503), "answered 503", BatonError),
        (TimeoutError(), "did not drain within 5 s", BatonError),
        (http.client.RemoteDisconnected("closed"), "ended while it drained", None),
        (ConnectionResetError(), "ended while it drained", None),
    ],
)
def test_answers(
    answer: Any, said: str, error: type[BatonError] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drained, or gone in the middle, is well; a refusal and a drain without end are not."""
    asked: list[Any] = []

    class Connection:
        def __init__(self, host: str, port: int, timeout: float) -> None:
            asked.append((host, port, timeout))

        def request(self, method: str, path: str, headers: dict[str, str]) -> None:
            asked.append((method, path, headers))

        def getresponse(self) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        def close(self) -> None:
            asked.append("closed")

    monkeypatch.setattr(http.client, "HTTPConnection", Connection)
    env = {**ENV, "BATON_HEALTH_PORT": "8180"}
    if error is None:
        assert said in drain(env, 5.0)
    else:
        with pytest.raises(error, match=said):
            drain(env, 5.0)
    assert asked == [
        ("127.0.0.1", 8180, 5.0),
        ("POST", "/drain", {"Authorization": "Bearer cluster-token-0123456789"}),
        "closed",
    ]
