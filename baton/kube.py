"""The Kubernetes API as plain JSON over the official client's connection.

The client (package ``kubernetes``, its asyncio half) finds the cluster and proves who we are, by a
pod's service account or a kubeconfig, plug-ins and renewed tokens included. Its generated classes
and its ``Watch`` are left alone: they hide the HTTP status that a watch begins with, and reading
objects into classes fails on fields that are newer than the client.

An HTTP status is an answer here and no exception; what raises is that there was no answer.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

from baton.errors import KubernetesUnavailable, SettingsError

Json = dict[str, Any]
Query = Sequence[tuple[str, str]]

IN_CLUSTER = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""Names a pod's own namespace."""

OPEN = "OPEN"
"""The first event of a watch, made here: the server has taken it."""

CALL_S = 5.0
"""For one call, from connecting to its last byte."""

_MAX_ANSWER = 8 * 1024 * 1024
"""Bytes; an object has 1.5 MiB at most, which JSON can make three times as long."""

_CHUNK = 64 * 1024
_GRACE_S = 10.0

_log = logging.getLogger(__name__)


def rfc3339(wall_s: float) -> str:
    """A time as Kubernetes writes it, to the second."""
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True)
class Access:
    """How to get at a cluster.

    Attributes:
        kubeconfig: file, or several with ``:`` between them; empty for a pod's service account.
        namespace: where nothing else is said.
    """

    kubeconfig: str
    namespace: str


def find_access(environ: Mapping[str, str] = os.environ, home: Path | None = None) -> Access:
    """``KUBECONFIG``, or else the pod's service account, or else ``~/.kube/config``.

    Raises:
        SettingsError: there is none of them, or the package ``kubernetes`` is not installed.
    """
    config = _module("config")
    kubeconfig = environ.get("KUBECONFIG", "")
    if not kubeconfig and environ.get("KUBERNETES_SERVICE_HOST"):
        try:
            return Access("", IN_CLUSTER.read_text("utf-8").strip() or "default")
        except OSError as error:
            raise SettingsError(
                f"this pod has no service account to read Kubernetes with ({IN_CLUSTER}: "
                f"{error.strerror or error}); do not set automountServiceAccountToken: false"
            ) from error
    if not kubeconfig:
        usual = (home or Path.home()) / ".kube" / "config"
        if not usual.is_file():
            raise SettingsError(
                "no Kubernetes cluster is known: this is no pod, KUBECONFIG is not set, and "
                f"{usual} is not there"
            )
        kubeconfig = str(usual)
    try:
        _, context = config.list_kube_config_contexts(kubeconfig)
        return Access(kubeconfig, str(context["context"].get("namespace") or "default"))
    except Exception as error:
        # The loader's own, YAML's, and whatever a file of another shape makes of its code.
        raise SettingsError(f"the kubeconfig {kubeconfig} cannot be used: {error}") from error


def _module(name: str) -> Any:
    """A part of the client. By name: half a second to import, wanted by few, and without types
    that would be worth the checker's time."""
    try:
        return importlib.import_module(f"kubernetes.aio.{name}")
    except ImportError as error:
        raise SettingsError(
            "the package kubernetes is not installed: install Baton with its extra, "
            "baton-serving[kubernetes]"
        ) from error


class KubeApi:
    """A connection that is made when it is first used.

    Args:
        access: where to.
        call_s: for one call.

    Raises:
        SettingsError: the package ``kubernetes`` is not installed.
    """

    def __init__(self, access: Access, *, call_s: float = CALL_S) -> None:
        self._access = access
        self._call_s = call_s
        self._client_of = _module("client")
        self._config = _module("config")
        self._client: Any = None

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Query = (),
        body: Json | None = None,
        content_type: str = "application/json",
    ) -> tuple[int, Json]:
        """The status and the object that came with it; ``{}`` where none did. A pause that the
        server asks for by ``Retry-After`` stands in ``details.retryAfterSeconds``, as it does in
        a ``Status`` object.

        Raises:
            KubernetesUnavailable: no answer in time, or none that is JSON of a sane size.
        """
        for last in (False, True):
            status, answer = await self._call(method, path, query, body, content_type)
            if status != 401 or last:
                break
            # A token may have run out; a new connection reads a new one.
            await self.close()
        return status, answer

    async def _call(
        self, method: str, path: str, query: Query, body: Json | None, content_type: str
    ) -> tuple[int, Json]:
        timeout = aiohttp.ClientTimeout(total=self._call_s)
        response: aiohttp.ClientResponse | None = None
        try:
            response = await self._send(method, path, query, body, content_type, timeout)
            raw = bytearray()
            async for chunk in response.content.iter_chunked(_CHUNK):
                raw += chunk
                if len(raw) > _MAX_ANSWER:
                    raise ValueError(f"an answer is larger than {_MAX_ANSWER} bytes")
            answer = _object(bytes(raw), response.status)
            return response.status, _with_pause(answer, response.headers.get("Retry-After", ""))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise self._unreachable(error) from error
        finally:
            if response is not None:
                response.release()

    async def watch(
        self, path: str, query: Query, *, watch_s: float
    ) -> AsyncGenerator[tuple[str, Json]]:
        """Events of a watch, type and object, until it ends or breaks. ``OPEN`` comes first; where
        the server refuses it, a single ``ERROR`` with its status object does.

        Args:
            path, query: of the list that is watched.
            watch_s: after which the server should end it; it is given up soon after.

        Raises:
            KubernetesUnavailable: it could not be begun.
        """
        query = [*query, ("watch", "true"), ("timeoutSeconds", str(max(1, round(watch_s))))]
        timeout = aiohttp.ClientTimeout(
            total=None, connect=self._call_s, sock_read=watch_s + _GRACE_S
        )
        try:
            async with asyncio.timeout(2 * self._call_s):
                response = await self._send("GET", path, query, None, "application/json", timeout)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise self._unreachable(error) from error
        try:
            if response.status != 200:
                raw = await response.content.read(_CHUNK)
                answer = _with_pause(
                    _object(raw, response.status), response.headers.get("Retry-After", "")
                )
                yield "ERROR", {"code": response.status, **answer}
                return
            yield OPEN, {}
            while line := await response.content.readline():
                event = json.loads(line)
                yield str(event["type"]), event["object"]
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            # As when it ends by itself: whoever watches begins anew, and hears more then.
            _log.debug("a watch broke: %s", error)
        except (ValueError, KeyError, TypeError) as error:
            raise self._unreachable(error) from error
        finally:
            response.close()

    async def close(self) -> None:
        """Closes the connections; the next call opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _send(
        self,
        method: str,
        path: str,
        query: Query,
        body: Json | None,
        content_type: str,
        timeout: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        client = await self._connected()
        headers = {"Accept": "application/json", "Content-Type": content_type}
        request = await client.param_serialize(
            method,
            path,
            query_params=list(query),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        answer = await client.call_api(*request, _request_timeout=timeout)
        response: aiohttp.ClientResponse = answer.response
        return response

    async def _connected(self) -> Any:
        """The client; credentials are read anew for each one."""
        if self._client is None:
            settings = self._client_of.Configuration()
            try:
                async with asyncio.timeout(2 * self._call_s):
                    if self._access.kubeconfig:
                        await self._config.load_kube_config(
                            self._access.kubeconfig,
                            client_configuration=settings,
                            persist_config=False,
                        )
                    else:
                        self._config.load_incluster_config(client_configuration=settings)
                client = self._client_of.ApiClient(settings)
            except TimeoutError as error:
                raise KubernetesUnavailable("the kubeconfig's plug-in does not answer") from error
            except Exception as error:
                # Files that are gone, certificates that are none, plug-ins that fail.
                raise KubernetesUnavailable(
                    f"no credentials for Kubernetes: {type(error).__name__}: {error}"
                ) from error
            if self._client is None:
                self._client = client
            else:
                # Somebody else was faster.
                await client.close()
        return self._client

    def _unreachable(self, error: Exception) -> KubernetesUnavailable:
        reason = str(error) or type(error).__name__
        if isinstance(error, TimeoutError):
            reason = "no answer in time"
        return KubernetesUnavailable(f"the Kubernetes API cannot be reached: {reason}")


def _object(raw: bytes, status: int) -> Json:
    """The JSON object in an answer.

    Raises:
        ValueError: a good answer without one.
    """
    try:
        found = json.loads(raw)
    except ValueError:
        found = None
    if isinstance(found, dict):
        return found
    if status < 300:
        raise ValueError("an answer is not a JSON object")
    # Proxies in between answer in their own words.
    return {}


def _with_pause(answer: Json, retry_after: str) -> Json:
    """With the header's seconds, where the object says none. Its other form, a date, Kubernetes
    does not send."""
    details = answer.get("details") or {}
    if not retry_after.isdecimal() or not isinstance(details, dict):
        return answer
    return {**answer, "details": {"retryAfterSeconds": int(retry_after), **details}}
