"""The images' install steps, run once for all tests here."""

from __future__ import annotations

import pytest

from tests.packaging.images import Built, build


@pytest.fixture(scope="session")
def router_image(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The router's, but for the compiler, whose three minutes ``make compiled`` takes already."""
    return build("router", tmp_path_factory.mktemp("router"), env={"BATON_COMPILED": "0"})
