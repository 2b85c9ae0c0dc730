"""``--workers N``: one router as N processes behind one port.

Each process is a whole router with its part of the limits, and the kernel deals connections out
among them (SO_REUSEPORT); what they share is in Redis. The parent starts them, starts those that
die or hang again, and ends them. It serves no client: what it answers operators is in ``family``.

A process and its parent know each other by what stands in one environment variable: a number, the
parent's address on loopback, and a token that only this family has. The process announces where
its own admin API listens once it serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping

import aiohttp
import msgspec
from yarl import URL

from baton.errors import PeerFault, SettingsError
from baton.process import Backoff, Child
from router.merging import counts_of

VARIABLE = "BATON_ROUTER_PROCESS"
ANNOUNCE_PATH = "/internal/processes"

_START_S = 60.0
"""For all processes to serve for the first time; interpreters that start at once on few cores take
a few seconds."""
_ASK_S = 5.0
_PROBE_S = 5.0
_SILENT_S = 30.0
"""A process whose event loop answers nothing for so long serves nobody; it is killed and started
again. Far above what the longest computation in a router takes."""
_STOP_MARGIN_S = 10.0
"""On top of the drain, for closing down, before a process is killed."""

log = logging.getLogger("baton.router.processes")


class Place(msgspec.Struct, frozen=True):
    """What a process is told of its family: its number, how many there are, the family's token and
    the parent's URL."""

    number: int
    of: int
    token: str
    parent: str


def take_place(env: MutableMapping[str, str]) -> Place | None:
    """This process's place, if it is one of several; taken out of ``env``, so that what it starts
    does not have it.

    Raises:
        SettingsError: the variable was set by somebody else.
    """
    text = env.pop(VARIABLE, None)
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=Place)
    except msgspec.DecodeError as error:
        raise SettingsError(f"{VARIABLE} is set by a router for its own processes only") from error


def check_port(host: str, port: int) -> None:
    """Finds out whether the port is free of everybody, routers with several processes included:
    these would let each other in without a word.

    Raises:
        OSError: it is taken, or the host is no address of this machine.
    """
    for family, kind, proto, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(address)


class Reply(msgspec.Struct, frozen=True):
    """An answer inside the family."""

    status: int
    content_type: str
    body: bytes


async def ask(
    http: aiohttp.ClientSession,
    method: str,
    url: str,
    token: str,
    *,
    body: bytes = b"",
    timeout_s: float = _ASK_S,
) -> Reply | None:
    """Asks a member of the family; None if it does not answer in time."""
    try:
        async with http.request(
            method,
            URL(url, encoded=True),
            data=body,
            headers={"Authorization": f"Bearer {token}"},
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            allow_redirects=False,
        ) as response:
            content_type = response.headers.get("content-type", "application/json")
            return Reply(response.status, content_type, await response.read())
    except (aiohttp.ClientError, TimeoutError, OSError):
        return None


class Parent:
    """The process's side: tells the parent where it is, and asks it what concerns all."""

    def __init__(self, place: Place) -> None:
        self._place = place

    async def announce(self, url: str) -> None:
        """Says where this process's own admin API listens.

        Raises:
            PeerFault: the parent does not take it.
        """
        path = f"{ANNOUNCE_PATH}/{self._place.number}"
        reply = await self._ask("PUT", path, url.encode())
        if reply is None or reply.status != 204:
            raise PeerFault("the parent process does not answer")

    async def fetch(self, path: str) -> Reply:
        """What the whole router answers to a GET of ``path``.

        Raises:
            PeerFault: the parent does not answer.
        """
        reply = await self._ask("GET", path, b"")
        if reply is None:
            raise PeerFault("the parent of this router's processes does not answer")
        return reply

    async def _ask(self, method: str, path: str, body: bytes) -> Reply | None:
        url = self._place.parent + path
        async with aiohttp.ClientSession() as http:
            # Longer than the parent waits for the others: it can still say who was silent.
            return await ask(http, method, url, self._place.token, body=body, timeout_s=2 * _ASK_S)


class Member:
    """One of the processes, over all its runs.

    Attributes:
        number: from 1.
        child: the run that is on, or was last.
        url: of its admin API; None until it serves.
        starts: runs so far.
        page: its metrics as they were read last; empty before that.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.child: Child | None = None
        self.url: str | None = None
        self.starts = 0
        self.page = ""
        self.serves = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Pid of the run that is on, or None."""
        child = self.child
        return child.pid if child is not None and child.returncode is None else None

    @property
    def state(self) -> str:
        """``serving``, ``starting`` or ``down``."""
        if self.pid is None:
            return "down"
        return "starting" if self.url is None else "serving"


class NotStarted(Exception):
    """A process ended, or took too long, before all served for the first time.

    Attributes:
        status: for this process's own exit: what the process ended with, where it said something.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Processes:
    """The processes of one router.

    Args:
        count: how many.
        token: the family's.
        argv: the command, the same for all.
        env: their environment; each one's place is added.
        drain_s: what requests in flight are given at the end.
        say: gets each line that a process writes, with its number.
        probe: whether the process at this URL is alive; never raises.
        clock: monotonic seconds.
        make_backoff: pauses between restarts of one process.
    """

    def __init__(
        self,
        count: int,
        *,
        token: str,
        argv: tuple[str, ...],
        env: Mapping[str, str],
        drain_s: float,
        say: Callable[[int, str], None],
        probe: Callable[[str], Awaitable[bool]],
        clock: Callable[[], float] = time.monotonic,
        make_backoff: Callable[[], Backoff] = Backoff,
    ) -> None:
        self.members = tuple(Member(number) for number in range(1, count + 1))
        self.ended = ""
        self.stopping = False
        self._token = token
        self._parent = ""
        self._argv = argv
        self._env = env
        self._drain_s = drain_s
        self._say = say
        self._probe = probe
        self._clock = clock
        self._make_backoff = make_backoff
        self._keepers: list[asyncio.Task[None]] = []
        self._early: asyncio.Future[NotStarted] | None = None

    @property
    def serving(self) -> tuple[Member, ...]:
        """Those that serve now."""
        return tuple(member for member in self.members if member.state == "serving")

    def announced(self, number: int, url: str) -> bool:
        """A process serves; False if there is none of this number."""
        if not 1 <= number <= len(self.members):
            return False
        member = self.members[number - 1]
        member.url = url
        member.serves.set()
        return True

    async def start(self, parent: str) -> None:
        """Starts all, and waits until all serve.

        Args:
            parent: URL at which they can announce themselves.

        Raises:
            NotStarted: one ended first, or it took too long. ``stop`` is still needed.
            OSError: the command cannot be run.
        """
        self._parent = parent
        self._early = early = asyncio.get_running_loop().create_future()
        for member in self.members:
            await self._spawn(member)
            self._keepers.append(asyncio.create_task(self._keep(member), name="keep-process"))
        all_serve = asyncio.gather(*(member.serves.wait() for member in self.members))
        try:
            done, _ = await asyncio.wait(
                {early, all_serve}, timeout=_START_S, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            all_serve.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await all_serve
        if early in done:
            raise early.result()
        if not done:
            raise NotStarted(f"the processes do not serve after {_START_S:g} s", 3)
        early.cancel()

    async def stop(self) -> None:
        """SIGTERM to all; what does not end within the drain is killed. Leaves none behind."""
        self.stopping = True
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        grace_s = self._drain_s + _STOP_MARGIN_S
        running = [member.child for member in self.members if member.child is not None]
        await asyncio.gather(*(child.stop(grace_s=grace_s) for child in running))

    def hurry(self) -> None:
        """Has a ``stop`` that waits for requests end: each process is told a second time."""
        for member in self.members:
            if (pid := member.pid) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)

    async def _spawn(self, member: Member) -> None:
        number = member.number
        place = Place(number, len(self.members), self._token, self._parent)
        member.url = None
        member.serves.clear()
        child = Child(
            f"router-{number}",
            self._argv,
            {**self._env, VARIABLE: msgspec.json.encode(place).decode()},
            on_line=lambda line: self._say(number, line),
        )
        await child.start()
        member.child = child
        member.starts += 1

    async def _keep(self, member: Member) -> None:
        """Notices each end of a process and starts it again; kills one that hangs."""
        backoff = self._make_backoff()
        while True:
            began_s = self._clock()
            assert member.child is not None
            code = await self._until_end(member, member.child)
            member.url = None
            if member.page:
                self.ended = counts_of([self.ended, member.page])
                member.page = ""
            early = self._early
            if early is not None and not early.done():
                what = f"process {member.number} ended during the start (status {code})"
                early.set_result(NotStarted(what, code if code > 0 else 3))
                return
            pause_s = backoff.next_delay_s(self._clock() - began_s)
            log.error(
                "process %d ended (status %d); starting it again in %.1f s",
                member.number,
                code,
                pause_s,
            )
            await asyncio.sleep(pause_s)
            try:
                await self._spawn(member)
            except OSError:
                # The dead run stays in place, and is found ended again.
                log.exception("process %d cannot be started", member.number)

    async def _until_end(self, member: Member, child: Child) -> int:
        """Waits for the end of a run, and brings it about when the process is silent too long."""
        ending = asyncio.create_task(child.wait())
        heard_s = self._clock()
        try:
            while True:
                await asyncio.wait({ending}, timeout=_PROBE_S)
                if ending.done():
                    return ending.result()
                url = member.url
                most_s = _START_S if url is None else _SILENT_S
                if url is not None and await self._probe(url):
                    heard_s = self._clock()
                elif self._clock() - heard_s > most_s:
                    log.error("process %d is silent and is killed", member.number)
                    child.kill_now()
        finally:
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)


def same_command() -> tuple[str, ...]:
    """The command that this process was started with, the interpreter's own options included."""
    return (sys.executable, *sys.orig_argv[1:])
