"""``KubeApi`` for tests that say what each call is answered, and what each watch tells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from typing import Any

from baton.errors import KubernetesUnavailable
from baton.kube import OPEN, Query

Json = dict[str, Any]
Answer = tuple[int, Json] | KubernetesUnavailable


@dataclass(frozen=True)
class Call:
    """One call as it came."""

    method: str
    path: str
    query: dict[str, str]
    body: Json | None
    content_type: str
    at_s: float


class ScriptedKube:
    """Answers in order; the last answer and the last watch stand for all that follow.

    Args:
        answers: to calls: status and object, or what is raised.
        watches: to watches: what is told after ``OPEN``, type and object; or what is raised.
    """

    def __init__(
        self,
        answers: Iterable[Answer] = (),
        watches: Iterable[list[tuple[str, Json]] | KubernetesUnavailable] = (),
    ) -> None:
        self.calls: list[Call] = []
        self.watched: list[Call] = []
        self._answers = list(answers)
        self._watches = list(watches)

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Query = (),
        body: Json | None = None,
        content_type: str = "application/json",
    ) -> tuple[int, Json]:
        """See ``KubeApi``."""
        now_s = asyncio.get_running_loop().time()
        self.calls.append(Call(method, path, dict(query), body, content_type, now_s))
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, KubernetesUnavailable):
            raise answer
        return answer

    async def watch(
        self, path: str, query: Query, *, watch_s: float
    ) -> AsyncGenerator[tuple[str, Json]]:
        """See ``KubeApi``. A watch whose events are all told stays open for its time."""
        now_s = asyncio.get_running_loop().time()
        self.watched.append(Call("WATCH", path, dict(query), None, "", now_s))
        script = self._watches.pop(0) if len(self._watches) > 1 else self._watches[0]
        if isinstance(script, KubernetesUnavailable):
            raise script
        if script[:1] and script[0][0] == "REFUSED":
            yield "ERROR", script[0][1]
            return
        yield OPEN, {}
        for event in script:
            if event[0] == "BREAK":
                return
            yield event
        await asyncio.sleep(watch_s)
