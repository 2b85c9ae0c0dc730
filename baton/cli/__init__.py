"""The ``baton`` command: the top of the house, which may call every package.

It starts fast and works in a router-only install, because each command imports what it needs when
it runs, and nothing here ever imports torch, vLLM or transformers: those belong to child processes.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Runs the command line; the console script ``baton``."""
    from baton.cli.app import app

    app(prog_name="baton")
