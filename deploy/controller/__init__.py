"""The controller: brings the pools of a cluster to what the active profile says, without a break.

One level-triggered loop over a handful of objects. Each pass looks at everything (``observe``),
decides what to do next (``plan``, pure) and does it (``act``), so that a controller that was killed
goes on from what it finds. New pools come first, then the routers switch, then old pools drain,
then they go. It sends no request anywhere and moves no switch on: that is the routers' business.
"""

from __future__ import annotations

from deploy.controller.loop import Controller
from deploy.controller.picture import Picture
from deploy.controller.plan import Plan, plan
from deploy.controller.settings import ControllerSettings

__all__ = ["Controller", "ControllerSettings", "Picture", "Plan", "plan"]
