"""``baton profile`` against an admin API over HTTP: what is asked, what is shown, how it ends.

The API here answers as told, so that every state and error can be had; one test asks a real router,
so that the two mean the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from typer.testing import CliRunner, Result

from baton.cli import profile_follow
from baton.cli.app import app
from baton.cli.runfile import RunNote, write_note
from baton.types import RouterId, Tally
from profiles import resolve_profile
from profiles.switching import Phase, Ref, Report, Shadow, Switch
from tests.fakes.waiting import until
from tests.integration.router_cluster import ADMIN_KEY, cluster

TOKEN = "an-admin-token-of-good-length"
SWITCH = "/admin/switch"
OLD, NEW = Ref("disaggregated", "aaaa"), Ref("standard", "bbbb")
TALLIES = {"aaaa": Tally(90, 9, 0, 9, 4.5), "bbbb": Tally(10, 0, 1, 5, 1.0)}


@dataclass
class FakeAdmin:
    """An admin API that answers as told and notes what it was asked."""

    url: str = ""
    answers: dict[str, Any] = field(default_factory=dict)
    """By method and path: an object, a pair of status and object, or a list of those that are given
    one by one, the last for ever."""
    seen: list[tuple[str, Any]] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return web.json_response({"error": {"message": "no token"}}, status=401)
        key = f"{request.method} {request.path}"
        body = await request.read()
        self.queries.append(request.query_string)
        self.seen.append((key, json.loads(body) if body else None))
        answer = self.answers.get(key)
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if answer is None:
            answer = error(404, f"There is no {request.path} here.")
        status, told = answer if isinstance(answer, tuple) else (200, answer)
        return web.json_response(told, status=status)

    def asked(self, key: str) -> int:
        """How often."""
        return sum(seen == key for seen, _ in self.seen)


@contextlib.asynccontextmanager
async def fake_admin(**answers: Any) -> AsyncIterator[FakeAdmin]:
    """A running one."""
    fake = FakeAdmin(answers=answers)
    server = web.Application()
    server.router.add_route("*", "/{rest:.*}", fake.answer)
    runner = web.AppRunner(server)
    await runner.setup()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fake.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        await web.SockSite(runner, listener).start()
        try:
            yield fake
        finally:
            await runner.cleanup()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with an admin token, nothing in the environment that wins over it, and no pauses."""
    for name in ("BATON_ADMIN_TOKEN", "BATON_ADMIN_TOKEN_FILE", "BATON_ADMIN_URL", "BATON_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(profile_follow, "POLL_S", 0)
    token = tmp_path / "admin-token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    return tmp_path


async def run(fake: FakeAdmin | None, home: Path, *arguments: str) -> Result:
    """One command, in a thread, since what answers it lives in this loop."""
    argv = ["profile", *arguments]
    if fake is not None:
        argv += ["--admin", fake.url, "--home", str(home)]
    return await asyncio.to_thread(lambda: CliRunner().invoke(app, argv, prog_name="baton"))


def error(status: int, message: str) -> tuple[int, dict[str, Any]]:
    """An error as the API says it."""
    return status, {"error": {"message": message, "type": "invalid_request_error"}}


def on(phase: Phase = Phase.PREPARE, *, number: int = 7, **more: Any) -> dict[str, Any]:
    """The answer while a switch is on."""
    rest: dict[str, Any] = {"by": "operator", "owner": RouterId("r-1"), **more}
    switch = Switch(number=number, old=OLD, new=NEW, phase=phase, **rest)
    return answer(switch=plain(switch))


def ended(outcome: Phase = Phase.COMMITTED, *, number: int = 7, **more: Any) -> dict[str, Any]:
    """How a switch ended."""
    rest: dict[str, Any] = {"by": "operator", "reason": "as good as before", "at_s": 1.8e9, **more}
    report = Report(number=number, old=OLD, new=NEW, outcome=outcome, **rest)
    told: dict[str, Any] = plain(report)
    return told


def plain(value: object) -> Any:
    """As it comes out of JSON."""
    return json.loads(msgspec.json.encode(value))


def answer(**more: Any) -> dict[str, Any]:
    """What ``GET /admin/switch`` says."""
    router = {"id": "r-1", "node": "n-1", "profile": OLD.name, "profile_version": OLD.version}
    return {
        "active": {"name": OLD.name, "version": OLD.version},
        "previous": None,
        "switch": None,
        "last": None,
        "source": None,
        "routers": [{**router, "seen": 9, "self": True}],
        "revision": 9,
        "store": "memory",
        "store_lost": False,
        **more,
    }


def squeezed(text: str) -> list[str]:
    """Lines without the padding of tables."""
    return [" ".join(line.split()) for line in text.splitlines()]


ALL_PHASES = [
    on(beat=1, waiting_for=("pool standard has no ready worker",)),
    on(Phase.SHADOW, beat=2, phase_number=1, took_s={"prepare": 2.0}),
    on(Phase.CANARY, beat=3, phase_number=2, took_s={"prepare": 2.0, "shadow": 0.1},
       shadow=Shadow(requests=50, changed={"disaggregated -> local": 5}), tallies=TALLIES),
    answer(last=ended(tallies=TALLIES, took_s={"prepare": 2.0, "canary": 30.0})),
]  # fmt: skip


async def test_a_switch_is_followed_to_its_end(home: Path) -> None:
    """A line per phase on stderr, the end with its figures on stdout, status 0; what was said is
    sent, and nothing else."""
    first = (202, {**on(), "number": 7})
    async with fake_admin(**{f"POST {SWITCH}": first, f"GET {SWITCH}": ALL_PHASES[:]}) as fake:
        result = await run(fake, home, "switch", "standard", "--canary", "10%", "--hold", "30s")
        assert fake.seen[0] == (
            f"POST {SWITCH}",
            {"profile": "standard", "canary_share": 0.1, "hold_s": 30},
        )
    assert result.exit_code == 0, result.stderr
    told = squeezed(result.stderr)
    assert [line.split(":")[0] for line in told] == [
        "switch 7", "prepare", "waiting", "prepare", "shadow", "shadow", "canary",
    ]  # fmt: skip
    assert "of the last 50 requests 5 would take another path" in result.stderr
    assert squeezed(result.stdout) == [
        "switch 7 committed after 32 s: disaggregated (aaaa) -> standard (bbbb)",
        "as good as before",
        "",
        "side profile requests errors rate SLO missed rate mean TTFT",
        "old disaggregated 90 9 10 % 0 0 % 0.50 s",
        "new standard 10 0 0 % 1 10 % 0.20 s",
    ]


@pytest.mark.parametrize(
    ("outcome", "status", "says"),
    [
        (Phase.ROLLED_BACK, 3, "switch 7 rolled back"),
        (Phase.REFUSED, 2, "switch 7 refused"),
    ],
)
async def test_a_switch_that_fails(home: Path, outcome: Phase, status: int, says: str) -> None:
    """By its status, with the reason, also as JSON."""
    last = ended(outcome, reason="too many errors: 9 of 20")
    answers = {
        f"POST {SWITCH}": (202, {**on(), "number": 7}),
        f"GET {SWITCH}": answer(last=last),
    }
    async with fake_admin(**answers) as fake:
        shown = await run(fake, home, "switch", "standard")
        as_json = await run(fake, home, "switch", "standard", "--json")
    assert (shown.exit_code, as_json.exit_code) == (status, status)
    assert shown.stdout.startswith(says)
    assert "too many errors: 9 of 20" in shown.stdout
    assert json.loads(as_json.stdout) == last
    assert "prepare: waits" in as_json.stderr


async def test_a_switch_is_begun_and_left(home: Path) -> None:
    """With --no-wait nobody asks again."""
    begun = {**on(), "number": 7}
    async with fake_admin(**{f"POST {SWITCH}": (202, begun)}) as fake:
        shown = await run(fake, home, "switch", "standard", "--no-wait")
        as_json = await run(fake, home, "switch", "standard", "--no-wait", "--json")
        assert fake.asked(f"GET {SWITCH}") == 0
    assert shown.exit_code == 0
    assert shown.stdout == "switch 7 is on: disaggregated (aaaa) -> standard (bbbb)\n"
    assert json.loads(as_json.stdout) == begun


async def test_a_file_is_sent_as_text(home: Path) -> None:
    """After it was checked here: a wrong one is told with its lines, and nobody is asked."""
    good, bad = home / "mine.yaml", home / "bad.yaml"
    text = (await run(None, home, "show", "standard")).stdout
    good.write_text(text)
    bad.write_text(text.replace("mode: standard", "mode: fast\n  colour: red"))
    done = {**answer(last=ended()), "number": 7}
    async with fake_admin(**{f"POST {SWITCH}": (202, done)}) as fake:
        refused = await run(fake, home, "switch", str(bad))
        assert fake.seen == []
        result = await run(fake, home, "switch", str(good), "--skip", "shadow")
        assert fake.seen[0][1] == {"text": text, "origin": str(good), "skip": ["shadow"]}
    assert result.exit_code == 0
    assert refused.exit_code == 2
    assert f"{bad}:" in refused.stderr
    assert "colour" in refused.stderr


@pytest.mark.parametrize(
    ("refusal", "lines"),
    [
        (error(409, "Switch 6 is on."), ["Switch 6 is on."]),
        (error(400, "a.yaml:3: wrong\na.yaml:4: worse"), ["a.yaml:3: wrong", "a.yaml:4: worse"]),
        (error(404, "No profile is called 'nope'."), ["No profile is called 'nope'."]),
    ],
)
async def test_a_switch_that_is_refused(home: Path, refusal: Any, lines: list[str]) -> None:
    """In the router's own words, all problems, status 2."""
    async with fake_admin(**{f"POST {SWITCH}": refusal}) as fake:
        result = await run(fake, home, "switch", "nope")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.removeprefix("baton: ").splitlines() == lines


@pytest.mark.parametrize(
    "flags",
    [("--hold", "60"), ("--canary", "10"), ("--skip", "nap"), ("--skip", "canary", "--hold", "1s")],
)
async def test_flags_that_are_wrong(home: Path, flags: tuple[str, ...]) -> None:
    """One line, status 2, and nobody is asked."""
    async with fake_admin() as fake:
        result = await run(fake, home, "switch", "standard", *flags)
        assert fake.seen == []
    assert result.exit_code == 2
    assert result.stderr.startswith("baton: --")
    assert result.stderr.count("\n") == 1


async def test_a_check(home: Path) -> None:
    """Says whether it would fit, by the status too; nothing is begun."""
    change = {"path": "spec.mode", "old": "disaggregated", "new": "standard"}
    fits = {"fits": True, "problems": [], "notes": ["one worker flips"], "changes": [change],
            "shadow": {"requests": 9}}  # fmt: skip
    unfit = {"fits": False, "problems": ["pool standard has no worker"], "notes": [], "changes": []}
    async with fake_admin(**{f"POST {SWITCH}": [fits, fits, unfit]}) as fake:
        shown = await run(fake, home, "switch", "standard", "--check")
        as_json = await run(fake, home, "switch", "standard", "--check", "--json")
        refused = await run(fake, home, "switch", "standard", "--check")
        assert {body["check_only"] for _, body in fake.seen} == {True}
    assert (shown.exit_code, as_json.exit_code, refused.exit_code) == (0, 0, 2)
    assert squeezed(shown.stdout)[-1] == 'spec.mode "disaggregated" "standard"'
    assert json.loads(as_json.stdout) == fits
    assert "pool standard has no worker" in refused.stdout


async def test_a_router_that_is_away_for_a_while(home: Path) -> None:
    """Is asked again, and both are told once."""
    busy = error(503, "The store is away.")
    answers = {
        f"POST {SWITCH}": (202, {**on(), "number": 7}),
        f"GET {SWITCH}": [busy, busy, on(beat=1), answer(last=ended())],
    }
    async with fake_admin(**answers) as fake:
        result = await run(fake, home, "switch", "standard")
    assert result.exit_code == 0
    assert result.stderr.count("no answer (The store is away.); asking again for 30 s") == 1
    assert result.stderr.count("it answers again") == 1


async def test_a_router_that_stays_away(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Status 1 in the end; the switch may go on without it, and that is said."""
    monkeypatch.setattr(profile_follow, "AWAY_S", 0)
    answers = {
        f"POST {SWITCH}": (202, {**on(), "number": 7}),
        f"GET {SWITCH}": error(503, "The store is away."),
    }
    async with fake_admin(**answers) as fake:
        result = await run(fake, home, "switch", "standard")
    assert result.exit_code == 1
    assert f"no admin API at {fake.url}: The store is away. Switch 7 may go on." in result.stderr


async def test_another_switch_came_after(home: Path) -> None:
    """Between two questions: the end of ours is found in the history."""
    answers = {
        f"POST {SWITCH}": (202, {**on(), "number": 7}),
        f"GET {SWITCH}": on(number=8),
        "GET /admin/history": {"history": [ended(), ended(Phase.REFUSED, number=8)]},
    }
    async with fake_admin(**answers) as fake:
        result = await run(fake, home, "switch", "standard")
    assert result.exit_code == 0
    assert result.stdout.startswith("switch 7 committed")


async def test_a_switch_is_forgotten(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a router that was restarted: how it ended cannot be known, status 3."""
    monkeypatch.setattr(profile_follow, "FORGOTTEN_S", 0)
    answers = {
        f"POST {SWITCH}": (202, {**on(), "number": 7}),
        f"GET {SWITCH}": answer(),
        "GET /admin/history": {"history": []},
    }
    async with fake_admin(**answers) as fake:
        result = await run(fake, home, "switch", "standard")
    assert result.exit_code == 3
    assert "knows nothing of switch 7 any more" in result.stderr


async def test_rollback_of_a_switch_that_is_on(home: Path) -> None:
    """Rolled back is what was wanted: status 0. That it was committed first is not: 3."""
    for outcome, status in ((Phase.ROLLED_BACK, 0), (Phase.COMMITTED, 3)):
        answers = {
            "POST /admin/rollback": (202, on(Phase.CANARY)),
            f"GET {SWITCH}": [on(Phase.CANARY), answer(last=ended(outcome))],
        }
        async with fake_admin(**answers) as fake:
            result = await run(fake, home, "rollback")
        assert result.exit_code == status, result.stderr
        assert "number=7" in fake.queries


async def test_rollback_to_the_profile_before(home: Path) -> None:
    """Is a switch of its own, which is wanted committed; with --no-wait it is only begun."""
    answers = {
        "POST /admin/rollback": (202, on(number=8)),
        f"GET {SWITCH}": [answer(last=ended()), answer(last=ended(number=8))],
    }
    async with fake_admin(**answers) as fake:
        result = await run(fake, home, "rollback", "--json")
        begun = await run(fake, home, "rollback", "--no-wait")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["number"] == 8
    assert begun.stdout.startswith("switch 8 is on")


async def test_nothing_to_go_back_to(home: Path) -> None:
    """Status 2, in the router's words."""
    answers = {
        f"GET {SWITCH}": answer(),
        "POST /admin/rollback": error(409, "There is nothing to go back to."),
    }
    async with fake_admin(**answers) as fake:
        result = await run(fake, home, "rollback")
    assert (result.exit_code, result.stderr) == (2, "baton: There is nothing to go back to.\n")


async def test_skip(home: Path) -> None:
    """Names the phase that it has seen, and says where the switch is now."""
    answers = {
        f"GET {SWITCH}": on(Phase.SHADOW),
        f"POST {SWITCH}/skip": (202, on(Phase.CANARY)),
    }
    async with fake_admin(**answers) as fake:
        result = await run(fake, home, "skip")
        as_json = await run(fake, home, "skip", "--json")
    assert result.exit_code == 0
    assert "phase=shadow" in fake.queries
    assert result.stdout.startswith("switch 7 goes on; canary: 10 % of the requests")
    assert json.loads(as_json.stdout) == on(Phase.CANARY)


async def test_status(home: Path) -> None:
    """Status 0 when all is well, 3 when the source has problems; JSON as it came."""
    source = {"where": "folder /etc/profiles", "active": "disaggregated", "digest": "d",
              "problems": ["a.yaml:3: spec.mode: wrong"]}  # fmt: skip
    back = {**ended(), "old": ended()["new"], "new": ended()["old"]}
    answers = {
        f"GET {SWITCH}": [answer(last=back), answer(source=source), answer(source=source)],
        "GET /admin/history": {"history": [back]},
    }
    async with fake_admin(**answers) as fake:
        good = await run(fake, home, "status")
        bad = await run(fake, home, "status")
        as_json = await run(fake, home, "status", "--json")
    assert (good.exit_code, bad.exit_code, as_json.exit_code) == (0, 3, 3)
    assert "active disaggregated (aaaa), since switch 7 (" in squeezed(good.stdout)[0]
    assert "problem a.yaml:3: spec.mode: wrong" in squeezed(bad.stdout)
    assert json.loads(as_json.stdout) == answer(source=source)


async def test_history(home: Path) -> None:
    """Newest first for people, as it came for programs."""
    past = {"history": [ended(), ended(Phase.ROLLED_BACK, number=8)]}
    async with fake_admin(**{"GET /admin/history": [past, past, {"history": []}]}) as fake:
        shown = await run(fake, home, "history")
        as_json = await run(fake, home, "history", "--json")
        none = await run(fake, home, "history")
    assert [line.split()[0] for line in shown.stdout.splitlines()] == ["switch", "8", "7"]
    assert json.loads(as_json.stdout) == past
    assert none.stdout == "no switches yet\n"


async def test_profiles_that_a_router_knows(home: Path) -> None:
    """Listed and shown as it knows them; one that it does not know is status 2."""
    profile = resolve_profile("standard")
    document = {**profile.model_dump(mode="json", by_alias=True), "spec": profile.canonical_spec()}
    served = {"name": "odd name", "version": profile.version, "document": document}
    row = {"name": "standard", "version": profile.version, "mode": "standard",
           "description": "Whole.", "from": "source", "active": True}  # fmt: skip
    source = {"where": "folder /p", "active": "standard", "digest": "d", "problems": []}
    listing = {"source": source, "profiles": [row]}
    answers = {
        "GET /admin/profiles": listing,
        "GET /admin/profiles/odd name": served,
        "GET /admin/profiles/nope": error(404, "No profile is called 'nope'."),
    }
    async with fake_admin(**answers) as fake:
        shown = await run(fake, home, "list", "--served")
        as_json = await run(fake, home, "list", "--served", "--json")
        document_shown = await run(fake, home, "show", "odd name", "--served")
        document_json = await run(fake, home, "show", "odd name", "--served", "--json")
        none = await run(fake, home, "show", "nope", "--served")
    assert f"standard active standard {profile.version} source Whole." in squeezed(shown.stdout)
    assert json.loads(as_json.stdout) == listing
    assert document_shown.stdout == (await run(None, home, "show", "standard")).stdout
    assert json.loads(document_json.stdout) == served
    assert (none.exit_code, none.stderr) == (2, "baton: No profile is called 'nope'.\n")


async def test_differences(home: Path) -> None:
    """Status as of diff(1): 0 the same, 1 different, 2 trouble, a router that is away too."""
    text = (await run(None, home, "show", "standard")).stdout
    mine = home / "mine.yaml"
    mine.write_text(text.replace("prepare_s: 60.0", "prepare_s: 90.0"))
    same = await run(None, home, "diff", "standard", "standard")
    shown = await run(None, home, "diff", "standard", str(mine))
    as_json = await run(None, home, "diff", "standard", str(mine), "--json")
    assert (same.exit_code, shown.exit_code, as_json.exit_code) == (0, 1, 1)
    assert same.stdout.startswith("they decide the same: version ")
    assert squeezed(shown.stdout)[-1] == "spec.switch.prepare_s 60.0 90.0"
    (change,) = json.loads(as_json.stdout)["changes"]
    assert (change["path"], change["old"], change["new"]) == ("spec.switch.prepare_s", 60, 90)
    assert (await run(None, home, "diff", "standard", "nope")).exit_code == 2

    served = {"document": json.loads((await run(None, home, "show", "standard", "--json")).stdout)}
    renamed = mine.read_text().replace("name: standard", "name: mine", 1).replace("90.0", "60.0")
    mine.write_text(renamed)
    async with fake_admin(**{"GET /admin/profiles/standard": served["document"]}) as fake:
        result = await run(fake, home, "diff", "--served", "standard", str(mine))
        missing = await run(fake, home, "diff", "--served", "standard", "gone")
    assert result.exit_code == 0, result.stderr
    assert 'metadata.name "standard" "mine"' in squeezed(result.stdout)
    assert "they decide the same" in result.stdout
    assert missing.exit_code == 2
    away = await run(fake, home, "diff", "--served", "standard", "standard")
    assert away.exit_code == 2
    assert "nothing listens there" in away.stderr


async def test_json_of_what_needs_no_router(home: Path) -> None:
    """Lists, profiles, checks of files."""
    rows = json.loads((await run(None, home, "list", "--json")).stdout)["profiles"]
    version = resolve_profile("standard").version
    assert ("standard", version) in {(row["name"], row["version"]) for row in rows}
    shown = json.loads((await run(None, home, "show", "standard", "--json")).stdout)
    assert (shown["name"], shown["document"]["kind"]) == ("standard", "ServingProfile")
    good, bad = home / "good.yaml", home / "bad.yaml"
    good.write_text((await run(None, home, "show", "standard")).stdout)
    bad.write_text("kind: nothing\n")
    checked = await run(None, home, "validate", str(good), str(bad), "--json")
    first, second = json.loads(checked.stdout)["files"]
    assert checked.exit_code == 2
    assert (first["ok"], first["version"], first["problems"]) == (True, version, [])
    assert second["ok"] is False
    assert all(problem.startswith(str(bad)) for problem in second["problems"])


ASKING = [
    ("switch", "standard"), ("status",), ("status", "--watch"), ("history",), ("rollback",),
    ("skip",), ("list", "--served"), ("show", "standard", "--served"),
]  # fmt: skip


@pytest.mark.parametrize("command", ASKING, ids=" ".join)
async def test_nobody_there(
    home: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing listens, something else does, the token is refused: status 1 and what to do; no token
    here: status 2."""
    monkeypatch.setattr(profile_follow, "AWAY_S", 0)
    async with fake_admin() as fake:
        other = await run(fake, home, *command)
        (home / "admin-token").write_text("another-token-of-good-length")
        refused = await run(fake, home, *command)
    away = await run(fake, home, *command)
    (home / "admin-token").unlink()
    without = await run(fake, home, *command)
    assert [r.exit_code for r in (other, refused, away, without)] == [1, 1, 1, 2]
    assert "is it an admin API?" in other.stderr
    assert "it refuses our admin token. Use the router's own token" in refused.stderr
    assert "nothing listens there" in away.stderr
    assert "there is no admin token" in without.stderr


async def test_an_answer_of_another_shape(home: Path) -> None:
    """Is not shown in part."""
    async with fake_admin(**{f"GET {SWITCH}": {"active": 3}}) as fake:
        result = await run(fake, home, "status")
    assert result.exit_code == 1
    assert "its answer is not understood" in result.stderr


async def test_the_router_of_baton_up_is_found(home: Path) -> None:
    """By its note."""
    async with fake_admin(**{"GET /admin/history": {"history": []}}) as fake:
        note = ("http://127.0.0.1:1", 1, 2, "cpu-demo", "v", "demo", 1.0, "ready", (), fake.url)
        write_note(home, RunNote(*note))
        argv = ["profile", "history", "--home", str(home)]
        result = await asyncio.to_thread(lambda: CliRunner().invoke(app, argv))
    assert result.exit_code == 0


async def test_a_real_router(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Understands what is sent, and is understood: there and back again."""
    monkeypatch.setenv("BATON_ADMIN_TOKEN", ADMIN_KEY)
    monkeypatch.setattr(profile_follow, "POLL_S", 0.02)
    async with cluster() as c:
        assert c.server.admin is not None
        real = FakeAdmin(url=c.server.admin.url)
        active = json.loads((await run(real, home, "status", "--json")).stdout)["active"]["name"]
        assert f"{active} active" in "\n".join(
            squeezed((await run(real, home, "list", "--served")).stdout)
        )
        mine = home / "mine.yaml"
        served = (await run(real, home, "show", active, "--served")).stdout
        mine.write_text(
            served.replace(f"name: {active}", "name: mine", 1).replace("hold_s: ", "hold_s: 1")
        )
        different = await run(real, home, "diff", "--served", active, str(mine))
        assert different.exit_code == 1, different.stderr
        assert "spec.switch.hold_s" in different.stdout
        checked = await run(real, home, "switch", str(mine), "--check")
        assert checked.exit_code == 0, checked.stderr
        assert "spec.switch.hold_s" in checked.stdout
        unknown = await run(real, home, "switch", "nope")
        assert (unknown.exit_code, "'nope'" in unknown.stderr) == (2, True)
        assert (await run(real, home, "skip")).exit_code == 2
        assert (await run(real, home, "rollback")).exit_code == 2
        there = await run(real, home, "switch", str(mine), "--canary", "50%", "--hold", "0s",
                          "--limit", "1s")  # fmt: skip
        assert there.exit_code == 0, there.stderr
        assert "canary: 50 % of the requests" in there.stderr
        again = await run(real, home, "switch", str(mine))
        assert (again.exit_code, "is active already" in again.stderr) == (2, True)
        assert squeezed((await run(real, home, "status")).stdout)[0].startswith("active mine (")
        back = await run(real, home, "rollback", "--json")
        assert (back.exit_code, json.loads(back.stdout)["outcome"]) == (0, "committed")
        history = squeezed((await run(real, home, "history")).stdout)
        # A long reason goes on in the next line.
        assert [line[0] for line in history if line[0].isdigit()] == ["2", "1"]


@pytest.mark.parametrize(
    "command",
    ["list", "show", "validate", "diff", "switch", "status", "history", "rollback", "skip"],
)
async def test_help(home: Path, command: str) -> None:
    """Every command shows an example."""
    result = await run(None, home, command, "--help")
    assert result.exit_code == 0
    assert f"    baton profile {command}" in result.stdout


@dataclass
class Command:
    """A command in a process of its own, which can be interrupted."""

    process: asyncio.subprocess.Process

    async def interrupted(self, once: Callable[[], bool]) -> tuple[int, str, str]:
        """Presses Ctrl-C as soon as something is so; its status, stdout and stderr."""
        try:
            await until(once, timeout_s=60)
            async with asyncio.timeout(60):
                self.process.send_signal(signal.SIGINT)
                out, err = await self.process.communicate()
        finally:
            if self.process.returncode is None:
                self.process.kill()
                await self.process.wait()
        assert self.process.returncode is not None
        return self.process.returncode, out.decode(), (err or b"").decode()


async def start(fake: FakeAdmin, home: Path, *arguments: str, stderr: int | None = None) -> Command:
    """One that runs until it is interrupted."""
    argv = ("-m", "baton.cli", "profile", *arguments, "--admin", fake.url, "--home", str(home))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, *argv, stdout=pipe, stderr=pipe if stderr is None else stderr,
        env={**os.environ, "COLUMNS": "120", "TERM": "xterm"},
    )  # fmt: skip
    return Command(process)


async def test_ctrl_c_leaves_the_switch_running(home: Path) -> None:
    """And says so, and how to take it back; nothing is sent."""
    answers = {f"POST {SWITCH}": (202, {**on(), "number": 7}), f"GET {SWITCH}": on()}
    async with fake_admin(**answers) as fake:
        command = await start(fake, home, "switch", "standard")
        status, out, err = await command.interrupted(lambda: fake.asked(f"GET {SWITCH}") >= 1)
        assert [key for key, _ in fake.seen if key.startswith("POST")] == [f"POST {SWITCH}"]
    assert (status, out) == (130, "")
    assert "baton: switch 7 goes on without this command" in err
    assert "`baton profile rollback` takes it back" in err
    assert "Traceback" not in err


async def test_a_terminal_gets_a_live_view(home: Path) -> None:
    """Phase, both sides and routers stand in it."""
    canary = on(Phase.CANARY, tallies=TALLIES)
    answers = {f"POST {SWITCH}": (202, {**canary, "number": 7}), f"GET {SWITCH}": canary}
    ours, theirs = os.openpty()
    try:
        async with fake_admin(**answers) as fake:
            command = await start(fake, home, "switch", "standard", stderr=theirs)
            status, _, _ = await command.interrupted(lambda: fake.asked(f"GET {SWITCH}") >= 2)
        shown = (await asyncio.to_thread(os.read, ours, 65_536)).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert status == 130
    assert "canary: 10 % of the requests" in shown
    assert "1 of 1 have taken it" in shown


@pytest.mark.parametrize("as_json", [False, True])
async def test_status_is_watched_until_ctrl_c(home: Path, as_json: bool) -> None:
    """Each change is told once, not each question; what was seen last is the status."""
    other = {**answer()["routers"][0], "id": "r-2", "profile_version": "bbbb"}
    split = answer(routers=[*answer()["routers"], other])
    answers = {
        f"GET {SWITCH}": [on(beat=1), on(beat=2), split],
        "GET /admin/history": {"history": []},
    }
    async with fake_admin(**answers) as fake:
        command = await start(fake, home, "status", "--watch", *(("--json",) if as_json else ()))
        status, out, err = await command.interrupted(lambda: fake.asked(f"GET {SWITCH}") >= 4)
    assert status == 3, err
    if as_json:
        first, second = map(json.loads, out.splitlines())
        assert first["switch"]["number"] == 7
        assert [router["id"] for router in second["routers"]] == ["r-1", "r-2"]
    else:
        assert out.count("active") == 2
        assert out.count("the routers do not all serve the same profile") == 1
