"""Calls that are repeated, and refusals that are exceptions."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from baton.clock import VirtualClock
from baton.errors import BatonError, KubernetesUnavailable, OperatorError
from baton.kube import Access, KubeApi
from deploy.lws.client import (
    AlreadyExists,
    BadName,
    BadObject,
    Busy,
    Conflict,
    FieldConflict,
    Forbidden,
    Invalid,
    KindMissing,
    LwsClient,
    NotFound,
    Refused,
    Retries,
    Unauthorized,
)
from deploy.lws.client.calling import pause_s
from deploy.lws.client.errors import Asked, error_of
from tests.fakes.scripted_kube import Answer, ScriptedKube
from tests.fakes.virtual_loop import run_virtual

Json = dict[str, Any]

ASKED = Asked(
    "patch", "leaderworkerset.x-k8s.io", "leaderworkersets/scale", "LeaderWorkerSet", "n", "a"
)
LOST = KubernetesUnavailable("no answer in time")
BUSY: Answer = (429, {})
BROKEN: Answer = (503, {})
MADE = {"metadata": {"name": "a"}, "spec": {"leaderWorkerTemplate": {"workerTemplate": {}}}}


def status(code: int, reason: str, message: str = "said", **details: Any) -> tuple[int, Json]:
    return code, {"kind": "Status", "reason": reason, "message": message, "details": details}


def client_of(*answers: Answer, **options: Any) -> tuple[LwsClient, ScriptedKube]:
    api = ScriptedKube(answers)
    return LwsClient(api, "n", rng=random.Random(1), **options), api


FIELD = {"reason": "FieldValueInvalid", "field": "spec.replicas", "message": "must be >= 0"}
OWNED = {
    "reason": "FieldManagerConflict",
    "field": ".spec.replicas",
    "message": 'conflict with "hpa"',
}
REFUSALS: dict[str, tuple[tuple[int, Json], type[BatonError], str]] = {
    "no object": (status(404, "NotFound", 'x "a" not found', name="a"), NotFound, "not found"),
    "no namespace": (status(404, "NotFound", 'namespaces "n"', name="n"), NotFound, "namespaces"),
    "no kind": ((404, {}), KindMissing, "install its CRD"),
    "no kind, in words": (
        status(404, "NotFound", "the server could not find the requested resource"),
        KindMissing,
        "LeaderWorkerSet of leaderworkerset.x-k8s.io",
    ),
    "taken": (status(409, "AlreadyExists"), AlreadyExists, "apply instead"),
    "changed": (status(409, "Conflict"), Conflict, "read it again"),
    "owned": (status(409, "Conflict", causes=[OWNED]), FieldConflict, "force=True"),
    "no credentials": (status(401, "Unauthorized"), Unauthorized, "credentials"),
    "no Role": (
        status(403, "Forbidden"),
        Forbidden,
        'allow verb patch on resource leaderworkersets/scale of API group "leaderworkerset.x-k8s.io'
        '" by a Role in namespace n',
    ),
    "wrong field": (status(422, "Invalid", causes=[FIELD]), Invalid, "spec.replicas: must be >= 0"),
    "wrong JSON": (status(400, "BadRequest"), Invalid, "said"),
    "something else": (status(405, "MethodNotAllowed"), Refused, "said"),
    "overloaded": (status(429, "TooManyRequests", retryAfterSeconds=7), Busy, "said"),
    "a proxy's words": ((502, {}), Busy, "HTTP 502"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    """Each has a class, says what was asked for, and what to do."""
    (code, answer), kind, words = REFUSALS[case]
    error = error_of(ASKED, code, answer)
    assert type(error) is kind
    assert words in error.message
    assert error.message.startswith("cannot patch leaderworkersets/scale n/a: ")
    assert error.http_status == code
    assert isinstance(error, KubernetesUnavailable if kind is Busy else OperatorError)


def test_what_refusals_carry() -> None:
    """The missing rule, the causes, the pause."""
    forbidden = error_of(ASKED, *REFUSALS["no Role"][0])
    assert isinstance(forbidden, Forbidden)
    assert forbidden.rule == {
        "apiGroups": ["leaderworkerset.x-k8s.io"],
        "resources": ["leaderworkersets/scale"],
        "verbs": ["patch"],
    }
    owned = error_of(ASKED, *REFUSALS["owned"][0])
    assert isinstance(owned, FieldConflict)
    assert [str(cause) for cause in owned.causes] == ['.spec.replicas: conflict with "hpa"']
    busy = error_of(ASKED, *REFUSALS["overloaded"][0])
    assert isinstance(busy, Busy)
    assert busy.retry_after_s == 7


def test_odd_refusals() -> None:
    """Answers of other shapes are refusals all the same."""
    odd: Json = {"message": 7, "details": [], "reason": None}
    assert isinstance(error_of(ASKED, 422, odd), Invalid)
    assert isinstance(error_of(ASKED, 409, {"details": {"causes": ["x"]}}), Conflict)


@pytest.mark.parametrize("answer", [LOST, BUSY, BROKEN, (500, {}), (502, {}), (504, {})])
def test_repeated_calls(answer: Answer) -> None:
    """What may pass and does no harm twice is asked again."""
    client, api = client_of(answer, answer, (200, MADE))

    async def main() -> None:
        assert (await client.leader_worker_sets.get("a")).name == "a"

    run_virtual(main())
    assert len(api.calls) == 3


@pytest.mark.parametrize("answer", [(404, {}), (403, {}), (409, {}), (501, {})])
def test_calls_that_are_not_repeated(answer: Answer) -> None:
    """What will not pass is raised at once."""
    client, api = client_of(answer)

    async def main() -> None:
        with pytest.raises(BatonError):
            await client.leader_worker_sets.get("a")

    run_virtual(main())
    assert len(api.calls) == 1


@pytest.mark.parametrize(("answer", "calls"), [(LOST, 1), (BROKEN, 1), (BUSY, 2)])
def test_create(answer: Answer, calls: int) -> None:
    """Is repeated after 429 alone, which says that nothing was made."""
    client, api = client_of(answer, (201, MADE))

    async def main() -> None:
        if calls == 1:
            with pytest.raises(KubernetesUnavailable):
                await client.leader_worker_sets.create(MADE)
        else:
            await client.leader_worker_sets.create(MADE)

    run_virtual(main())
    assert len(api.calls) == calls


def test_calls_end() -> None:
    """After all tries, in growing pauses, with the last error."""
    client, api = client_of(LOST)

    async def main() -> None:
        with pytest.raises(KubernetesUnavailable) as raised:
            await client.leader_worker_sets.get("a")
        assert raised.value is LOST

    run_virtual(main())
    pauses = [
        after.at_s - before.at_s for before, after in zip(api.calls, api.calls[1:], strict=False)
    ]
    assert len(pauses) == 3
    for number, pause in enumerate(pauses):
        assert 0.125 * 2**number <= pause <= 0.25 * 2**number


def test_retry_after() -> None:
    """Is waited for where it fits into what a call may take, else the error tells it."""
    client, api = client_of(status(429, "", retryAfterSeconds=3), (200, MADE))

    async def main() -> None:
        await client.leader_worker_sets.get("a")

    run_virtual(main())
    assert 3 < api.calls[1].at_s - api.calls[0].at_s < 4
    client, api = client_of(status(429, "", retryAfterSeconds=600), (200, MADE))

    async def refused() -> None:
        with pytest.raises(Busy) as raised:
            await client.leader_worker_sets.get("a")
        assert raised.value.retry_after_s == 600

    run_virtual(refused())
    assert len(api.calls) == 1


def test_pauses_together() -> None:
    """Have an end, also where each alone is short."""
    client, api = client_of(status(429, "", retryAfterSeconds=6))

    async def main() -> None:
        with pytest.raises(Busy):
            await client.leader_worker_sets.get("a")

    run_virtual(main())
    assert len(api.calls) == 3
    assert api.calls[-1].at_s <= Retries().budget_s


def test_scale_from() -> None:
    """What was read is what is changed: a write in between makes it a conflict."""
    scale = {"metadata": {"name": "a", "resourceVersion": "7"}, "spec": {"replicas": 2}}
    client, api = client_of((200, scale), status(409, "Conflict"))

    async def main() -> None:
        with pytest.raises(Conflict):
            await client.leader_worker_sets.scale("a", 1, current=2)

    run_virtual(main())
    assert api.calls[1].path.endswith("/leaderworkersets/a/scale")
    assert api.calls[1].body == {"spec": {"replicas": 1}, "metadata": {"resourceVersion": "7"}}


def test_pauses() -> None:
    """Grow to a limit, and differ between clients."""
    retries = Retries(first_s=1, most_s=8)
    for tried, longest in ((1, 1), (2, 2), (3, 4), (4, 8), (5, 8), (5000, 8)):
        drawn = {pause_s(retries, tried, None, random.Random(seed)) for seed in range(20)}
        assert len(drawn) == 20
        assert longest / 2 <= min(drawn)
        assert max(drawn) <= longest


def test_deletes_of_what_is_not_there() -> None:
    """Are no error, also after an answer that was lost; a kind that is missing is one."""
    client, _ = client_of(LOST, status(404, "NotFound", name="a"))

    async def main() -> None:
        assert not await client.leader_worker_sets.delete("a")

    run_virtual(main())
    client, _ = client_of((404, {}))

    async def missing() -> None:
        with pytest.raises(KindMissing):
            await client.leader_worker_sets.delete("a")

    run_virtual(missing())


def test_delete_options() -> None:
    """Travel in the body: what becomes of the pods, and which object is meant."""
    client, api = client_of((200, {}))

    async def main() -> None:
        await client.leader_worker_sets.delete("a", propagation="Foreground", uid="u", dry_run=True)

    run_virtual(main())
    assert api.calls[0].body is not None
    assert api.calls[0].body["propagationPolicy"] == "Foreground"
    assert api.calls[0].body["preconditions"] == {"uid": "u"}
    assert api.calls[0].query == {"dryRun": "All"}


def test_restarts_of_busy_objects() -> None:
    """Are tried on the new state, and not for ever."""
    changed = status(409, "Conflict")
    clock = VirtualClock(0)
    client, api = client_of((200, MADE), changed, (200, MADE), (200, MADE), clock=clock)

    async def main() -> None:
        await client.leader_worker_sets.restart("a")

    run_virtual(main())
    assert [call.method for call in api.calls] == ["GET", "PATCH", "GET", "PATCH"]
    assert "1970-01-01T00:00:00Z" in json.dumps(api.calls[-1].body)
    client, api = client_of(*((200, MADE), changed) * 3, clock=clock)

    async def refused() -> None:
        with pytest.raises(Conflict):
            await client.leader_worker_sets.restart("a")

    run_virtual(refused())
    assert len(api.calls) == 6


BAD: dict[str, tuple[Json, type[BatonError], str]] = {
    "another kind": ({"kind": "Pod", **MADE}, BadObject, "this is a Pod"),
    "another version": ({"apiVersion": "v1", **MADE}, BadObject, "of v1"),
    "another namespace": ({"metadata": {"name": "a", "namespace": "o"}}, BadObject, "namespace o"),
    "no name": ({"metadata": {"generateName": "a-"}}, BadObject, "no metadata.name"),
    "a long name": ({"metadata": {"name": "a" * 52}}, BadName, "may have 51"),
    "a long name for Kueue": (
        {"metadata": {"name": "a" * 40, "labels": {"kueue.x-k8s.io/queue-name": "q"}}},
        BadName,
        "may have 39",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_objects(case: str) -> None:
    """Are refused before the server sees them."""
    body, kind, words = BAD[case]
    client, api = client_of((200, MADE))

    async def main() -> None:
        for write in (client.leader_worker_sets.create, client.leader_worker_sets.apply):
            with pytest.raises(kind, match=words):
                await write(body)

    run_virtual(main())
    assert not api.calls


@pytest.mark.parametrize("name", ["", "a/scale", "..", "a?b", "A"])
def test_names_in_paths(name: str) -> None:
    """Cannot lead elsewhere."""
    client, api = client_of((200, MADE))

    async def main() -> None:
        with pytest.raises(BadObject):
            await client.leader_worker_sets.delete(name)

    run_virtual(main())
    assert not api.calls


async def test_retry_after_of_a_header(tmp_path: Path) -> None:
    """A server that sheds load says so in a header and plain words, not in a Status object."""
    taken: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        taken.append(request.path)
        return web.Response(status=429, text="try again later", headers={"Retry-After": "90"})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    api = KubeApi(Access(str(kubeconfig(tmp_path, runner.addresses[0][1])), "n"))
    try:
        with pytest.raises(Busy) as raised:
            await LwsClient(api, "n").leader_worker_sets.get("a")
        assert raised.value.retry_after_s == 90
        told = [event async for event in api.watch("/apis/x", (), watch_s=1)]
        assert told == [("ERROR", {"code": 429, "details": {"retryAfterSeconds": 90}})]
    finally:
        await api.close()
        await runner.cleanup()
    assert taken[0] == "/apis/leaderworkerset.x-k8s.io/v1/namespaces/n/leaderworkersets/a"


def kubeconfig(folder: Path, port: int) -> Path:
    path = folder / "config"
    cluster = {"server": f"http://127.0.0.1:{port}"}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "c", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
    }
    path.write_text(json.dumps(config), "utf-8")
    return path
