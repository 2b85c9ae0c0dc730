"""The page on options: each of them has a section, whose lines for a site bring it about."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from deploy.lws.options import OPTIONS
from tests.unit.deploy.option_sites import profile, site

PAGE = Path(__file__).parents[3] / "docs" / "kubernetes" / "options.md"


def sections() -> dict[str, str]:
    """The text of each section about an option, by the option's name."""
    found = re.split(r"^#{2,3} (.+)$", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    pairs = zip(found[1::2], found[2::2], strict=True)
    return {title.strip("`"): text for title, text in pairs if title.startswith("`")}


def test_every_option_has_a_section() -> None:
    """And there is none about an option that does not exist."""
    assert sections().keys() == OPTIONS.keys()


@pytest.mark.parametrize("name", OPTIONS)
def test_the_lines_of_a_section_bring_the_option_about(name: str) -> None:
    """A reader who copies them into a site gets the component."""
    served = profile("multi-node", transfer__transport="rdma")
    (first, *_) = re.findall(r"```yaml\n(.*?)```", sections()[name], flags=re.DOTALL)
    part = OPTIONS[name](served, site(**yaml.safe_load(first)))
    assert part is not None
    assert part.name == name
