"""Bounds of a chat's length from its messages alone, without rendering the template.

A rendering costs as much as all else that a router does to know a prompt's length, and most chats
are far on one side of the threshold. So a template is tried out once: where it writes each user's
text as it is, the users' texts are a lower bound; and what it writes around messages, doubled, goes
on top of all texts for an upper one. It is for plain chats only, of text and of the common roles.

It refuses templates that do not pass, and says nothing of any other chat: those are rendered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from router.chat_template import ChatTemplate

_MARKS: Final = ("Sphinx of black quartz", "judge my vow", "pack my box", "with five dozen jugs")
_SLACK_BYTES: Final = 64
_PLAIN_KEYS: Final = {"role", "content"}
_ROLES: Final = frozenset({"user", "assistant", "system"})


@dataclass(frozen=True, slots=True)
class PlainChats:
    """What was found out about one template.

    Attributes:
        first_bytes: what it writes around a single message.
        more_bytes: what it writes around each further one, at most.
        prints_system: whether a system's text is written as it is.
    """

    first_bytes: int
    more_bytes: int
    prints_system: bool

    @classmethod
    def of(cls, template: ChatTemplate) -> PlainChats | None:
        """Tries a template out; None if it does not write users' texts as they are."""
        first, second, third, system = _MARKS
        one = _around(template, [("user", first)], {first})
        three = _around(
            template, [("user", first), ("assistant", second), ("user", third)], {first, third}
        )
        if one is None or three is None:
            return None
        led = _around(template, [("system", system), ("user", first)], {system, first})
        more = math.ceil(max(0, three - one) / 2)
        return cls(one, max(more, (led or one) - one), led is not None)

    def text_bytes(self, body: Mapping[str, Any]) -> tuple[int, int] | None:
        """Bounds of the rendering's length in bytes; None where the chat is not a plain one.

        Args:
            body: of a chat that nothing but its messages shapes; messages are objects with roles.
        """
        lower = total = 0
        messages = body["messages"]
        for message in messages:
            content, role = message.get("content"), message["role"]
            if type(content) is not str or role not in _ROLES or message.keys() != _PLAIN_KEYS:
                return None
            total += _size(content)
            if role == "user" or (role == "system" and self.prints_system):
                lower += _size(content.strip())
        around = self.first_bytes + self.more_bytes * len(messages)
        return lower, total + 2 * around + _SLACK_BYTES


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _around(
    template: ChatTemplate, turns: Sequence[tuple[str, str]], printed: set[str]
) -> int | None:
    """Bytes around the texts; None if the template refuses, or one of ``printed`` is missing."""
    text = template.render([{"role": role, "content": content} for role, content in turns])
    if not isinstance(text, str) or any(text.count(mark) != 1 for mark in printed):
        return None
    return max(0, _size(text) - sum(len(content) for _, content in turns))
