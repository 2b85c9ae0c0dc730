"""``docs/metrics.md``, written from the table of metrics so that both say the same.

``python -m router.observe.docs > docs/metrics.md`` writes it; a test compares.
"""

from __future__ import annotations

import sys

from router.observe import families as f
from router.observe.hot import OTHER, Family, Kind, Merge

_HEAD = f"""# Metrics

What a router exposes at `/metrics`, in Prometheus's text format or, for an `Accept` that asks for
it, in OpenMetrics. Written from the code by `python -m router.observe.docs`; a test compares.

- Base units: seconds, bytes, tokens. Histograms come as `_bucket`, `_count` and `_sum`.
- `path` is `disaggregated` or `local`, empty where a request was turned away before a path was
  chosen; `reason` as in the `x-baton-reason` header.
- Series are bounded. Labels marked \\* take their values from outside the code (tenants, workers);
  past the bound further values are counted under `{OTHER}`, and
  `baton_label_overflow_total` says so.
- A router of several processes answers with one page: numbers are summed, or the largest is taken
  where the table says *max*.
- The Python client adds `process_*`, `python_info` and `python_gc_*`.

`deploy/observability` holds a Grafana dashboard and Prometheus alerts made from these.
"""


def page() -> str:
    """The whole page, Markdown."""
    lines = [_HEAD, "| metric | kind | labels | meaning |", "|---|---|---|---|"]
    lines += [_row(family) for family in f.ALL]
    lines += ["", "## Buckets", "", "| histogram | upper bounds |", "|---|---|"]
    lines += [
        f"| `{family.name}` | {', '.join(f'{bound:.10g}' for bound in family.buckets)} |"
        for family in f.ALL
        if family.kind is Kind.HISTOGRAM
    ]
    return "\n".join(lines) + "\n"


def _row(family: Family) -> str:
    labels = ", ".join(
        f"`{label}`" + ("\\*" if label in family.open_labels else "") for label in family.labels
    )
    kind = family.kind.value + (", max" if family.merge is Merge.MAX else "")
    return f"| `{family.name}` | {kind} | {labels} | {family.help} |"


if __name__ == "__main__":
    sys.stdout.write(page())
