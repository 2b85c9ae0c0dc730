"""What tests of manifests need of the machine, and what happens where it is missing."""

from __future__ import annotations

import os

import pytest

from tests.manifests import crds


def mark(missing: str | None, *, ci: bool) -> pytest.MarkDecorator:
    """Skips where something is missing.

    Raises:
        pytest.UsageError: the same in CI, which must not pass because it has looked at nothing.
    """
    if missing and ci:
        raise pytest.UsageError(missing)
    return pytest.mark.skipif(missing is not None, reason=missing or "")


needs_crds = mark(crds.missing(), ci=os.environ.get("CI") == "true")
