"""The page: what stands on it, and that it is whole, safe and self-contained."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import msgspec
import pytest

from benchmarks.comparison import CompareResult
from benchmarks.records import Problem
from benchmarks.report import render_html
from benchmarks.report.palette import ALL
from tests.unit.benchmarks.report import sample

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Checks that tags close in order, and collects ids, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.headings: list[int] = []
        self.bare_cells = 0
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            self.attributes.append((tag, name, value or ""))
            if name == "id":
                self.ids.append(value or "")
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "th" and "scope" not in dict(attrs):
            self.bare_cells += 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.mark.parametrize("name", ["two_html", "three_html"])
def test_the_page_is_whole(name: str, request: pytest.FixtureRequest) -> None:
    """Tags balance, ids are unique, every reference inside the page has its target."""
    text: str = request.getfixturevalue(name)
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    targets = re.findall(r"url\(#([^)]+)\)", text)
    for _, attribute, value in page.attributes:
        if attribute in ("href", "xlink:href"):
            targets.append(value.removeprefix("#"))
        if attribute == "aria-labelledby":
            targets += value.split()
    assert targets
    assert set(targets) <= set(page.ids)


def test_the_page_asks_nothing_of_a_network(three_html: str) -> None:
    """No script, no external address but the name of SVG itself; a moderate size."""
    page = Page(three_html)
    assert not {tag for tag, _, _ in page.attributes} & {"script", "link", "img", "iframe"}
    assert "<script" not in three_html
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", three_html))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    assert "@import" not in three_html
    assert len(three_html.encode()) < 600_000


def test_a_person_reads_the_verdict_first(two: CompareResult, two_html: str) -> None:
    """Headline, badge, then values, change, interval and outcome in words."""
    text = Page(two_html).text
    assert text.index("REAL") < text.index(two.headline[0], 60) < text.index("Verdict")
    assert text.index("Verdict") < text.index("How latencies spread")
    row = text[text.index("TTFT p50 lower is better") :][:160]
    assert "292 ms" in row
    assert "89.2 ms" in row
    assert "3.3x lower" in row
    assert "2.9x to 3.7x lower" in row
    assert "better" in row
    assert "unknown: too few" in text
    assert "700 requests; a p99 takes 1000" in text
    assert "Goodput per accelerator" in text
    assert "$9.10" in text


def test_an_unknown_outcome_is_not_drawn_as_a_change(two_html: str) -> None:
    """No mark on the axis and no bold figure where nothing can be said."""
    rows = re.findall(r"<tr role=\"row\"><th scope=\"row\".*?</tr>", two_html, re.DOTALL)
    unknown = [row for row in rows if "unknown: too few" in row]
    known = [row for row in rows if "unknown: too few" not in row]
    assert unknown
    assert known
    assert not any("<svg" in row for row in unknown)
    assert all("<svg" in row for row in known)


def test_several_levels_are_seen_at_a_glance(three_html: str) -> None:
    """A table of outcomes by load comes first, with the verdict over all loads in one cell."""
    text = Page(three_html).text
    assert text.index("disaggregated against standard, by load") < text.index("values")
    assert "0.5x load 1x load 2x load" in text
    assert 'colspan="3"' in three_html
    assert "all requests: Highest rate within the SLO" in text
    for title in ("TTFT p99, short", "ITL p99, long", "Goodput (requests/s), all requests"):
        assert title in text
    assert "SLO 500 ms" in text


def test_validity_and_provenance_are_shown(two: CompareResult, two_html: str) -> None:
    """Blocks with their reasons, agreement, the command, differences, hashes and versions."""
    text = Page(two_html).text
    for part in (
        "3 % of the prompt tokens came from a warm cache",
        "another block of its pair is invalid",
        "the server starts its clock after admission",
        two.command,
        "classify.threshold_tokens",
        "9f2c" * 16,
        str(two.commit),
        "Schedule lag p99 from when a request was due",
        "8.0 GiB",
        "Inter-token latency:",
    ):
        assert part in text
    assert text.count("00000004") == 1


def test_the_page_can_be_read_without_eyes_or_colour(three_html: str) -> None:
    """Headings without gaps, scopes on header cells, names for drawings, symbols for outcomes."""
    page = Page(three_html)
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(page.headings, page.headings[1:], strict=False))
    assert page.bare_cells == 0
    drawings = re.findall(r"<svg[^>]*>(?:<title)?", three_html)
    assert all("<title" in d or 'aria-hidden="true"' in d for d in drawings)
    assert three_html.count('role="img"') == three_html.count("<desc ")


def test_names_cannot_become_markup() -> None:
    """Hostile names of arms, classes and problems are shown as text, in charts too."""
    evil = "<script>alert(1)</script>"
    result = sample.build(arms=2, levels=[1.0], names=("$\\frac{", evil), classes=(evil, "a&b"))
    result.headline = [f"{evil} wins"]
    result.command = "baton bench compare '\"><img src=x onerror=alert(1)>'"
    result.problems = [Problem(code="errors", text=evil, fatal=True)]
    text = render_html(result)
    page = Page(text)
    assert "<script" not in text
    assert "<img" not in text
    assert page.open == []
    assert page.text.count(evil) > 5


def test_what_is_fatal_stands_above_the_verdict(two: CompareResult) -> None:
    """A comparison that cannot be trusted says so before it says anything else."""
    broken = msgspec.structs.replace(
        two, series=[], problems=[Problem(code="client_lagged", text="The client lagged.")]
    )
    text = Page(render_html(broken)).text
    assert text.index("Do not rely on this comparison. The client lagged.") < text.index("Verdict")
    cut = msgspec.structs.replace(two, series=[], problems=[], complete=False)
    assert "This comparison was interrupted." in Page(render_html(cut)).text
    whole = msgspec.structs.replace(two, series=[], problems=[])
    assert "Nothing was found that speaks against it." in Page(render_html(whole)).text


def test_an_empty_comparison_still_makes_a_page() -> None:
    """Nothing measured: no verdict, no charts, no error."""
    empty = CompareResult(id="x", created_wall_s=0.0, took_s=0.0, command="", badge="simulated")
    page = Page(render_html(empty))
    assert page.open == []
    assert "SIMULATED" in page.text
    assert "There is no verdict" in page.text


def test_equal_results_give_equal_pages(two: CompareResult, two_html: str) -> None:
    """No date, no random id: a page can be compared with another one."""
    assert render_html(two) == two_html


def test_text_has_contrast_in_both_themes() -> None:
    """AA: 4.5 to 1 for text on its paper, 3 to 1 for lines; light and dark."""
    sheet = {row[1]: (row[2], row[3]) for row in ALL}
    for theme in (0, 1):
        paper = sheet["paper"][theme]
        for name, colours in sheet.items():
            least = 4.5 if name in TEXT else 3.0
            if name not in ("paper", "grid", "stage-1", "stage-3"):
                assert _contrast(colours[theme], paper) >= least, (name, theme)


TEXT = ("ink", "muted", "slo", "better", "worse", "tie", "unknown")


def _contrast(first: str, second: str) -> float:
    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (
            p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((light(first), light(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)
