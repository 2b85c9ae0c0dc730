"""A Kubernetes API server over real HTTP, as far as Baton's parts talk to one.

It exists because a real one cannot be had in every test run; ``tests/cluster`` holds it and a real
one to the same suite. It runs nothing: no scheduler, no kubelet, no controller of LeaderWorkerSets.
Of controllers it has two, garbage collection and the emptying of namespaces, which can be switched
off. It has no webhooks, and of schemas it knows what ``schemas`` and ``checks`` say.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from tests.fakes.kubernetes import kinds as tables
from tests.fakes.kubernetes.access import NOBODY, REVIEW_PATH, REVIEWS, Access
from tests.fakes.kubernetes.deleting import Deleting
from tests.fakes.kubernetes.errors import Refused, bad_request, expired, not_allowed
from tests.fakes.kubernetes.faults import Fault, Faults, drop
from tests.fakes.kubernetes.kinds import BUILT_IN, CRD, CUSTOM, NAMESPACE, Kind, Row
from tests.fakes.kubernetes.paths import Target, target_of, verb_of
from tests.fakes.kubernetes.requests import answer, options_of, watch
from tests.fakes.kubernetes.storage import Storage
from tests.fakes.kubernetes.writing import Writing

Json = dict[str, Any]

TOKEN = "fake-token"
NAMESPACES = ("default", "kube-system", "serving")
"""Those there are from the start."""

VERSION = {
    "major": "1",
    "minor": "36",
    "gitVersion": "v1.36.0",
    "platform": "linux/amd64",
}


class FakeKubernetes:
    """One server on a free loopback port, for ``async with``; keeps its objects while it is down.

    Args:
        custom: custom kinds that are installed.

    Attributes:
        kinds: what it serves.
        calls: verb and resource (``plural`` or ``plural/part``) of every request that it has taken,
            in order.
        known_token: any other one is answered with 401.
        server_version: the answer to ``/version``.
        faults: what is to go wrong; ``fail_next`` and its like plan it.
    """

    def __init__(self, *, custom: Sequence[Row] = CUSTOM) -> None:
        self.kinds: dict[Kind, Row] = {row.key: row for row in BUILT_IN}
        self.calls: list[tuple[str, str]] = []
        self.known_token = TOKEN
        self.server_version: Json = dict(VERSION)
        self.faults = Faults()
        self._storage = Storage()
        self._access = Access()
        self._nobody = Access()
        self._nobody.deny("*", "*")
        self._deleting = Deleting(
            self._storage, lambda: list(self.kinds.values()), self._read_definitions
        )
        self._writing = Writing(self._storage, self._deleting, self._read_definitions)
        self._runner: web.AppRunner | None = None
        self._port = 0
        for namespace in NAMESPACES:
            self._ensure_namespace(namespace)
        for row in custom:
            self.install(row)

    async def __aenter__(self) -> FakeKubernetes:
        await self.up()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.down()

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT``."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def watches(self) -> int:
        """How many are on."""
        return len(self._storage.watchers)

    @property
    def version(self) -> int:
        """Of the last change."""
        return self._storage.version

    @property
    def controllers(self) -> bool:
        """Whether owned objects go with their owners, and namespaces with all that is in them."""
        return self._deleting.controllers

    @controllers.setter
    def controllers(self, value: bool) -> None:
        self._deleting.controllers = value

    async def up(self) -> None:
        """Listens, after ``down`` on the same port."""
        app = web.Application(client_max_size=16 * 1024**2)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.01
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def down(self) -> None:
        """Refuses connections, and breaks those there are; may be called again."""
        runner, self._runner = self._runner, None
        if runner is not None:
            assert runner.server is not None
            for connection in runner.server.connections:
                connection.force_close()
            self.drop_watches()
            self.faults.release()
            await runner.cleanup()

    def kubeconfig(self, folder: Path, *, namespace: str = "", token: str = TOKEN) -> Path:
        """Writes a kubeconfig file for it."""
        path = folder / "kubeconfig"
        context = {"cluster": "fake", "user": "fake"}
        if namespace:
            context["namespace"] = namespace
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": "fake", "user": {"token": token}}],
            "contexts": [{"name": "fake", "context": context}],
        }
        path.write_text(json.dumps(config), "utf-8")
        return path

    # What tests do to it, as an operator or an accident would. The namespace of what has none
    # is ""; a kind is named by its plural, or by plural.group where that says too little.

    def get(self, plural: str, namespace: str, name: str) -> Json | None:
        """A copy of an object."""
        return copy.deepcopy(self._storage.find(self._row(plural), namespace, name))

    def all(self, plural: str, namespace: str = "") -> list[Json]:
        """Copies of all of a kind."""
        found = self._storage.select(self._row(plural), namespace)
        return [copy.deepcopy(one) for one in found]

    def put(self, plural: str, namespace: str, name: str, content: Json) -> Json:
        """Creates an object, or puts ``content`` in the place of all but its metadata; of the
        content's metadata, what it states. Nothing is checked, the status is taken, and the
        namespace is made."""
        row = self._row(plural)
        if row.namespaced:
            self._ensure_namespace(namespace)
        return self._writing.put(row, namespace, name, content)

    def delete(self, plural: str, namespace: str, name: str) -> None:
        """Deletes an object, which must be there, as anybody would: its finalizers hold it."""
        self._deleting.delete(self._row(plural), namespace, name, {}, dry=False)

    def set_status(self, plural: str, namespace: str, name: str, status: Json) -> Json:
        """Puts a status in the place of the object's, which must be there, as its controller."""
        found = self.get(plural, namespace, name)
        assert found is not None, f"no {plural} {namespace}/{name}"
        found["status"] = status
        return self._writing.put(self._row(plural), namespace, name, found)

    def install(self, row: Row) -> None:
        """Serves one more kind: by its CustomResourceDefinition, if it is a custom one."""
        if not row.custom:
            self.kinds[row.key] = row
            return
        name = row.resource
        self._writing.put(CRD, "", name, tables.definition_of(row), established=True)
        self._read_definitions()

    def uninstall(self, row: Row) -> None:
        """Takes a kind away, and all objects of it."""
        if row.custom:
            self.delete(CRD.plural, "", row.resource)
        else:
            del self.kinds[row.key]

    def deny(self, verb: str, plural: str, namespace: str = "") -> None:
        """403 for it from now on, everywhere or in a namespace; subresources are ``plural/sub``,
        and ``*`` is any verb or resource."""
        self._access.deny(verb, plural, namespace)

    def allow(self, verb: str, plural: str, namespace: str = "") -> None:
        """Takes a ``deny`` back."""
        self._access.allow(verb, plural, namespace)

    def compact(self) -> None:
        """Forgets the history: no watch can begin at a version before this one, and no list that is
        read by pages goes on."""
        self._storage.compact()

    def drop_watches(self) -> None:
        """Ends all watches, as a load balancer does."""
        self._storage.end_watches()

    def expire_watches(self) -> None:
        """Ends all watches with an ERROR event of 410, as a server does that fell behind."""
        self._storage.end_watches(expired("too old resource version"))

    def bookmark(self) -> None:
        """Tells the current version to all watches that asked for bookmarks."""
        for watcher in self._storage.watchers:
            if watcher.bookmarks:
                watcher.queue.put_nowait(self._storage.bookmark(watcher.row))

    def fail_next(
        self,
        status: int,
        n: int = 1,
        *,
        verb: str = "",
        plural: str = "",
        retry_after_s: int | None = None,
    ) -> None:
        """Answers the next ``n`` requests (for a verb, for a resource) with a failure, undone. It
        can say when to come again; 429 says in a second unless told otherwise."""
        if retry_after_s is None and status == 429:
            retry_after_s = 1
        self.faults.plan(Fault("fail", n, verb, plural, status, retry_after_s))

    def hang_next(self, n: int = 1, *, verb: str = "", plural: str = "") -> None:
        """Leaves the next ``n`` requests without an answer until ``release``, undone till then."""
        self.faults.plan(Fault("hang", n, verb, plural))

    def lose_next(self, n: int = 1, *, verb: str = "", plural: str = "") -> None:
        """Does what the next ``n`` requests want, and breaks their connections instead of an
        answer: nobody who asked knows whether it was done. aiohttp repeats GET, PUT and DELETE once
        by itself where it had the connection from before: ``n=2`` loses that answer too."""
        self.faults.plan(Fault("lose", n, verb, plural))

    def release(self) -> None:
        """Lets requests go on that hang."""
        self.faults.release()

    # Inside.

    def _row(self, plural: str) -> Row:
        return next(row for row in self.kinds.values() if plural in (row.plural, row.resource))

    def _ensure_namespace(self, name: str) -> None:
        if self._storage.find(NAMESPACE, "", name) is None:
            content = {
                "metadata": {"labels": {"kubernetes.io/metadata.name": name}},
                "spec": {"finalizers": ["kubernetes"]},
                "status": {"phase": "Active"},
            }
            self._writing.put(NAMESPACE, "", name, content)

    def _read_definitions(self) -> None:
        """Serves the kinds that are defined, and no others."""
        wanted = [
            row for definition in self._storage.select(CRD) for row in tables.row_of(definition)
        ]
        for key in [key for key, row in self.kinds.items() if row.custom]:
            del self.kinds[key]
        self.kinds.update({row.key: row for row in wanted})

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            access = self._identify(request)
            if request.path.startswith(REVIEW_PATH):
                return await self._review(request, access)
            target = target_of(request.path, self.kinds)
            if target is None:
                return self._about(request.path)
            verb = verb_of(request, target)
            self.calls.append((verb, target.resource))
            lost = await self.faults.before(verb, target.resource)
            _authorise(access, verb, target)
            if verb == "watch":
                return await watch(self._storage, request, target)
            body = await _body(request)
            if self._creates(verb, target, request):
                _authorise(access, "create", target)
            code, found = answer(self._writing, request, verb, target, body)
            if lost:
                return drop(request)
            return web.json_response(found, status=code)
        except Refused as refused:
            again_s = refused.body.get("details", {}).get("retryAfterSeconds")
            headers = {} if again_s is None else {"Retry-After": str(again_s)}
            return web.json_response(refused.body, status=refused.code, headers=headers)

    def _identify(self, request: web.Request) -> Access:
        """What whoever asks may do."""
        match request.headers.get("Authorization", "").removeprefix("Bearer "):
            case self.known_token:
                return self._access
            case token if token == NOBODY:
                return self._nobody
        raise Refused(401, "Unauthorized", "Unauthorized")

    def _creates(self, verb: str, target: Target, request: web.Request) -> bool:
        applied = verb == "patch" and options_of(request).applied
        if not (applied or (verb == "update" and target.row.creates)) or target.part:
            return False
        return self._storage.find(target.row, target.namespace, target.name) is None

    async def _review(self, request: web.Request, access: Access) -> web.StreamResponse:
        plural = request.path.removeprefix(REVIEW_PATH)
        if plural not in REVIEWS:
            return _nowhere()
        self.calls.append(("create", plural))
        lost = await self.faults.before("create", plural)
        body = await _body(request)
        if lost:
            return drop(request)
        return web.json_response(access.review(plural, body or {}, self.kinds.values()), status=201)

    def _about(self, path: str) -> web.StreamResponse:
        """What there is (discovery), and how the server is; anything else is nowhere."""
        rows = list(self.kinds.values())
        parts = path.strip("/").split("/")
        found: Json | None = None
        match parts:
            case ["version"]:
                found = self.server_version
            case ["healthz" | "livez" | "readyz"]:
                return web.Response(text="ok")
            case ["api"]:
                found = {"kind": "APIVersions", "versions": ["v1"]}
            case ["api", version]:
                found = tables.resources("", version, rows)
            case ["apis"]:
                found = tables.groups(rows)
            case ["apis", group]:
                found = tables.group(group, rows)
            case ["apis", group, version]:
                found = tables.resources(group, version, rows)
        return _nowhere() if found is None else web.json_response(found)


def _authorise(access: Access, verb: str, target: Target) -> None:
    if not access.may(verb, target.resource, target.namespace):
        raise not_allowed(target.row, verb, target.resource, target.namespace, target.name)


def _nowhere() -> web.Response:
    """As a server answers where it serves nothing: in plain text. Kinds that are not installed are
    told apart by it from objects that are not there."""
    return web.Response(status=404, text="404 page not found\n")


async def _body(request: web.Request) -> Any:
    raw = await request.read()
    if not raw:
        return None
    if request.content_type.endswith("protobuf"):
        raise Refused(415, "UnsupportedMediaType", "this server takes JSON and YAML alone")
    try:
        return json.loads(raw)
    except ValueError:
        pass
    try:
        return yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise bad_request(f"error converting YAML to JSON: {error}") from error
