"""What the servers say of a run: their metrics pages, and whether they agree with the client."""

from benchmarks.engine_side.agreement import agreements
from benchmarks.engine_side.changes import Changes, changes, interruptions
from benchmarks.engine_side.pages import KEPT, parse_page
from benchmarks.engine_side.scraper import Scraper, page_of
from benchmarks.engine_side.summary import (
    combined_figures,
    lost_handoffs,
    server_figures,
    stages,
    warm_cache,
)

__all__ = [
    "KEPT",
    "Changes",
    "Scraper",
    "agreements",
    "changes",
    "combined_figures",
    "interruptions",
    "lost_handoffs",
    "page_of",
    "parse_page",
    "server_figures",
    "stages",
    "warm_cache",
]
