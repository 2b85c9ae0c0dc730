"""Switching profiles in a running router: what is agreed with other routers is followed, and moved
on where this router owns the switch.

The moves themselves are pure and live in ``profiles.switching``; where profiles come from is
``profiles.sources``'s business.
"""

from __future__ import annotations

from router.switching.conductor import Conductor

__all__ = ["Conductor"]
