"""A client for LeaderWorkerSet and DisaggregatedSet, the kinds of LWS.

It exists because there is none in Python. It uses the official package's connection
(:class:`baton.kube.KubeApi`), nothing else of Baton but its errors and its clock, and works for any
LeaderWorkerSet. It makes no objects up: what is written are the caller's dictionaries.
"""

from __future__ import annotations

from deploy.lws.client.calling import Retries
from deploy.lws.client.collection import Collection, Labels
from deploy.lws.client.errors import (
    AlreadyExists,
    BadName,
    BadObject,
    Busy,
    Cause,
    Conflict,
    FieldConflict,
    Forbidden,
    Invalid,
    KindMissing,
    NotFound,
    NotInTime,
    Refused,
    Unauthorized,
)
from deploy.lws.client.names import (
    KUEUE_LIMIT,
    LWS_LIMIT,
    QUEUE_LABEL,
    check_name,
    check_set_name,
    fit_name,
    name_limit,
)
from deploy.lws.client.objects import (
    DISAGGREGATED_SETS,
    GROUP_LABEL,
    LEADER_WORKER_SETS,
    NAME_LABEL,
    ROLE_LABEL,
    ROLE_SCALERS,
    SET_LABEL,
    WORKER_LABEL,
    Condition,
    DisaggregatedSet,
    DisaggregatedStatus,
    LeaderWorkerSet,
    Meta,
    Resource,
    Role,
    RoleScaler,
    RoleStatus,
    Scale,
    SetStatus,
    condition,
)
from deploy.lws.client.rolling import Rolling, Scalable
from deploy.lws.client.rollout import RESTARTED, Groups, Rollout, rollout_of, rollout_of_roles
from deploy.lws.client.sets import (
    DisaggregatedSets,
    LeaderWorkerSets,
    LwsClient,
    RoleScalers,
    scaler_name,
)
from deploy.lws.client.waits import Until, exists, gone, has_condition
from deploy.lws.client.watching import Change, ChangeType

__all__ = [
    "DISAGGREGATED_SETS",
    "GROUP_LABEL",
    "KUEUE_LIMIT",
    "LEADER_WORKER_SETS",
    "LWS_LIMIT",
    "NAME_LABEL",
    "QUEUE_LABEL",
    "RESTARTED",
    "ROLE_LABEL",
    "ROLE_SCALERS",
    "SET_LABEL",
    "WORKER_LABEL",
    "AlreadyExists",
    "BadName",
    "BadObject",
    "Busy",
    "Cause",
    "Change",
    "ChangeType",
    "Collection",
    "Condition",
    "Conflict",
    "DisaggregatedSet",
    "DisaggregatedSets",
    "DisaggregatedStatus",
    "FieldConflict",
    "Forbidden",
    "Groups",
    "Invalid",
    "KindMissing",
    "Labels",
    "LeaderWorkerSet",
    "LeaderWorkerSets",
    "LwsClient",
    "Meta",
    "NotFound",
    "NotInTime",
    "Refused",
    "Resource",
    "Retries",
    "Role",
    "RoleScaler",
    "RoleScalers",
    "RoleStatus",
    "Rolling",
    "Rollout",
    "Scalable",
    "Scale",
    "SetStatus",
    "Unauthorized",
    "Until",
    "check_name",
    "check_set_name",
    "condition",
    "exists",
    "fit_name",
    "gone",
    "has_condition",
    "name_limit",
    "rollout_of",
    "rollout_of_roles",
    "scaler_name",
]
