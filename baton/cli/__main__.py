"""``python -m baton.cli``: the same as the ``baton`` command, without the console script."""

from __future__ import annotations

from baton.cli import main

if __name__ == "__main__":
    main()
