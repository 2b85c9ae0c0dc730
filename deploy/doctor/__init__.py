"""``baton doctor``: what of a machine or a cluster keeps Baton from serving, and what to do.

Every check looks at one thing and says what it saw; facts come through two seams (``Machine``, and
the Kubernetes API), and judgement over them is tested against recorded machines and a fake cluster.
Nothing here mends anything.
"""

from __future__ import annotations

from deploy.doctor.cluster import Cluster, NoRouter
from deploy.doctor.cluster_checks import GROUND_CHECKS
from deploy.doctor.engine_checks import ENGINE_CHECKS, PAIR_CHECKS
from deploy.doctor.examination import examine_cluster
from deploy.doctor.findings import Check, Finding, Level, chosen, examine, worst
from deploy.doctor.host_checks import HOST_CHECKS
from deploy.doctor.machine import Machine, ThisMachine
from deploy.doctor.node_checks import NODE_CHECKS
from deploy.doctor.object_checks import OBJECT_CHECKS
from deploy.doctor.patient import Patient
from deploy.doctor.router_checks import ROUTER_CHECKS

MACHINE_CHECKS: tuple[Check[Patient], ...] = (*ENGINE_CHECKS, *HOST_CHECKS, *PAIR_CHECKS)
CLUSTER_CHECKS: tuple[Check[Cluster], ...] = (
    *GROUND_CHECKS,
    *NODE_CHECKS,
    *OBJECT_CHECKS,
    *ROUTER_CHECKS,
)

__all__ = [
    "CLUSTER_CHECKS",
    "MACHINE_CHECKS",
    "Check",
    "Cluster",
    "Finding",
    "Level",
    "Machine",
    "NoRouter",
    "Patient",
    "ThisMachine",
    "chosen",
    "examine",
    "examine_cluster",
    "worst",
]
