"""The report as one page: no network, no script, a file that opens the same in ten years.

A person reads the verdict first, then sees the charts, then can check whether to believe them.
All text of a result goes through the template's escaping; only the charts, which `svg` wrote and
escaped itself, pass as they are.
"""

from __future__ import annotations

import json
from functools import cache

import jinja2
from markupsafe import Markup

from benchmarks.comparison import CompareResult
from benchmarks.report import evidence, verdict_rows, words
from benchmarks.report.charts import Group, chart_groups
from benchmarks.report.palette import arm_dashes, arm_variable, css_variables


def render_html(result: CompareResult) -> str:
    """The whole page; equal results give equal text."""
    word, meaning = words.badge(result)
    return _template().render(
        result=result,
        badge=word,
        badge_meaning=meaning,
        subtitle=words.subtitle(result),
        alarm=words.alarm(result),
        notes=words.notes(result),
        verdicts=verdict_rows.arm_verdicts(result),
        economy=verdict_rows.economy_groups(result),
        groups=[_shown(group) for group in chart_groups(result)],
        legend=[_swatch(place) for place in range(len(result.arms))],
        worst=evidence.worst_rows(result),
        blocks=evidence.block_rows(result),
        agreements=evidence.agreement_rows(result),
        servers=evidence.server_table(result),
        facts=evidence.fact_rows(result),
        arm_rows=evidence.arm_rows(result),
        slos=evidence.slo_rows(result),
        differences=evidence.difference_rows(result),
        environment=evidence.environment_rows(result),
        figures=verdict_rows.figure_groups(result),
        definitions=words.definitions(result),
        spec=json.dumps(result.workload, indent=2, ensure_ascii=False, default=str),
        created=words.when(result.created_wall_s),
        took=words.took(result.took_s),
        light=Markup(css_variables("light")),  # noqa: S704 - our own constants
        dark=Markup(css_variables("dark")),  # noqa: S704 - our own constants
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("benchmarks.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _shown(group: Group) -> dict[str, object]:
    return {
        "title": group.title,
        "lead": group.lead,
        "folded": group.folded,
        "charts": [
            {
                "title": chart.title,
                "note": chart.note,
                "arms": chart.arms,
                "stages": chart.stages,
                "svg": Markup(chart.svg),  # noqa: S704 - written and escaped by svg.to_svg
            }
            for chart in group.charts
        ],
    }


def _swatch(place: int) -> dict[str, str]:
    dashes = " ".join(f"{length * 1.8:g}" for length in arm_dashes(place))
    return {"variable": arm_variable(place), "dashes": dashes}
