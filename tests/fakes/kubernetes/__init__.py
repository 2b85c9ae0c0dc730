"""A Kubernetes API server for tests: see ``server``."""

from tests.fakes.kubernetes.access import NOBODY
from tests.fakes.kubernetes.kinds import CUSTOM, LWS, Row, custom
from tests.fakes.kubernetes.server import NAMESPACES, TOKEN, FakeKubernetes

__all__ = ["CUSTOM", "LWS", "NAMESPACES", "NOBODY", "TOKEN", "FakeKubernetes", "Row", "custom"]
