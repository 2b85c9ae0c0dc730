"""The words of ``baton up``: what to try once it serves, and what went wrong if it does not."""

from __future__ import annotations

import json
import shlex
from typing import Any

from baton.cli.client import CHAT, Proof
from baton.cli.plan import Plan, Wish
from baton.cli.stack import StartFailed
from profiles import SourceKind

_DEMO_QUESTION = "What is a handoff?"
_QUESTION = "Say hello in one sentence."
_ANSWER_TOKENS = 80

_DEMO_CAVEAT = """\
The model is a demo: tiny, made on this machine from a few pages about serving. It shows that every
part works, and answers questions about those pages; it is no measure of what models can do or of
how fast they run. Serve a real one with: baton up --model FOLDER-OR-HUB-ID
"""


def welcome(wish: Wish, plan: Plan, proof: Proof, took_s: float) -> str:
    """What is said when everything is ready; the commands in it work when pasted."""
    profile = plan.profile
    demo = wish.profile.spec.model.kind is SourceKind.DEMO
    classify = profile.spec.classify
    lines = [
        "",
        f"Baton is up after {took_s:.0f} s, at {plan.router.url}/v1",
        "",
        f"  model    {profile.served_name}",
        f"  profile  {profile.name} ({profile.spec.mode}, version {profile.version})",
        f"  workers  {', '.join(process.name for process in plan.workers)}",
        f"  logs     {wish.home / 'logs'}",
    ]
    if plan.admin_url:
        lines.append(f"  admin    {plan.admin_url} (baton pairs, handoffs, drain, explain)")
    if classify is not None:
        lines += [
            "",
            f"Prompts of {classify.threshold_tokens} tokens or more are handed over from prefill "
            "to decode; the header",
            "x-baton-path of an answer says which way it came.",
        ]
    if proof.handed_over:
        lines.append("The first one has come through a handoff already.")
    if proof.note:
        lines += ["", f"Note: {proof.note}."]
    question = _DEMO_QUESTION if demo else _QUESTION
    lines += ["", "Try it, in a shell:", "", curl_line(plan.router.url, profile.served_name, proof,
              question)]  # fmt: skip
    lines += ["", "or in Python (pip install openai):", ""]
    lines += [python_lines(plan.router.url, profile.served_name, proof, question)]
    if demo:
        lines += ["", _DEMO_CAVEAT.rstrip()]
    status = "baton status"
    lines += [
        "",
        f"Look at it with `{status} --home {shlex.quote(str(wish.home))}`. Stop it with Ctrl-C.",
    ]
    return "\n".join(lines)


def _body(model: str, proof: Proof, question: str) -> dict[str, Any]:
    if proof.endpoint == CHAT:
        asked: dict[str, Any] = {"messages": [{"role": "user", "content": question}]}
    else:
        asked = {"prompt": question}
    return {"model": model, **asked, "max_tokens": _ANSWER_TOKENS}


def curl_line(url: str, model: str, proof: Proof, question: str) -> str:
    """One line for a shell."""
    body = shlex.quote(json.dumps(_body(model, proof, question)))
    return f"curl -i {url}{proof.endpoint} -H 'content-type: application/json' -d {body}"


def python_lines(url: str, model: str, proof: Proof, question: str) -> str:
    """A few lines for Python, with the official OpenAI client."""
    chat = proof.endpoint == CHAT
    call = "client.chat.completions.create" if chat else "client.completions.create"
    text = "message.content" if chat else "text"
    fields = ", ".join(f"{k}={v!r}" for k, v in _body(model, proof, question).items())
    return "\n".join(
        [
            "from openai import OpenAI",
            f"client = OpenAI(base_url={f'{url}/v1'!r}, api_key='none')",
            f"answer = {call}({fields})",
            f"print(answer.choices[0].{text})",
        ]
    )


def stopping(plan: Plan) -> str:
    """What is said when somebody asked to stop."""
    return f"stopping the router, then {len(plan.workers)} workers (Ctrl-C again: at once) ..."


def failure(error: StartFailed) -> str:
    """What is said when the start did not succeed: what, the lines that tell why, where more is."""
    lines = [f"baton up: {error.message}."]
    if error.lines:
        lines += ["It said:", *(f"    {line}" for line in error.lines)]
    if error.log is not None:
        lines.append(f"Its whole log: {error.log}")
    return "\n".join(lines)
