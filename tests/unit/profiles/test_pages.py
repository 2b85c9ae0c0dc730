"""The pages about built-in profiles: one for each, and nothing in them that is not there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from profiles import builtin_names, profile_schema
from router.observe.families import BY_NAME

FOLDER = Path(__file__).parents[3] / "docs" / "profiles"
NAMES = (
    "adaptive",
    "cpu-demo",
    "disaggregated",
    "long-context",
    "low-latency",
    "multi-node",
    "standard",
)
PAGES = (*NAMES, "README")

FIELD = re.compile(r"\bspec\.[a-z_.]*[a-z_]")
METRIC = re.compile(r"\bbaton_[a-z_]+")
LINK = re.compile(r"\]\(([^)]+)\)")


def page(name: str) -> str:
    return (FOLDER / f"{name}.md").read_text("utf-8")


def has_field(path: str) -> bool:
    """Whether the JSON Schema has a field at a dotted path."""
    schema = profile_schema()
    section: dict[str, Any] = schema
    for part in path.split("."):
        options = [section, *section.get("anyOf", ())]
        names = [str(option.get("$ref", "")).rpartition("/")[2] for option in options]
        found = [schema["$defs"][name] for name in names if name] or [section]
        properties = found[0].get("properties", {})
        if part not in properties:
            return False
        section = properties[part]
    return True


def test_every_built_in_profile_has_its_page() -> None:
    """Those for measurements on two cores share the index's paragraph."""
    assert {path.stem for path in FOLDER.glob("*.md")} == set(PAGES)
    rest = set(builtin_names()) - set(NAMES)
    assert rest == {"cpu-disaggregated", "cpu-standard", "cpu-standard-chunk512"}
    for name in rest:
        assert f"`{name}`" in page("README")
    for name in NAMES:
        assert f"[{name}]({name}.md)" in page("README")


@pytest.mark.parametrize("name", PAGES)
def test_fields_that_a_page_names_exist(name: str) -> None:
    """Each ``spec.x.y`` is a field of the schema."""
    fields = set(FIELD.findall(page(name)))
    assert fields
    assert not [field for field in fields if not has_field(field)]


def test_a_field_that_is_not_there_would_be_found() -> None:
    """The check above sees a wrong section, a wrong field, and a field below a plain one."""
    assert has_field("spec.pools.decode.max_num_seqs")
    assert has_field("spec.classify.decider")
    assert not has_field("spec.pool.decode")
    assert not has_field("spec.classify.deciders")
    assert not has_field("spec.classify.decider.x")


@pytest.mark.parametrize("name", PAGES)
def test_metrics_that_a_page_names_exist(name: str) -> None:
    """Each ``baton_...`` is a metric of the router."""
    metrics = set(METRIC.findall(page(name)))
    assert metrics
    assert not [metric for metric in metrics if metric not in BY_NAME]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    """Pages link to each other and to the rest of the documentation."""
    for target in LINK.findall(page(name)):
        assert (FOLDER / target).exists(), target


@pytest.mark.parametrize("name", NAMES)
def test_a_page_answers_the_same_questions_on_one_screen(name: str) -> None:
    """When, when not, what it assumes, what to adapt, how to tell, what a switch means."""
    text = page(name)
    for heading in ("Choose it", "Not", "Assumes", "Right", "Wrong", "Switching"):
        assert f"**{heading}" in text, heading
    assert "| adapt first | why |" in text
    assert len(text.splitlines()) <= 50
    assert max(map(len, text.splitlines())) <= 130
