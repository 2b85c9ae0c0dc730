"""A Kubernetes API server over real HTTP; it lives in ``tests.fakes.kubernetes``."""

from tests.fakes.kubernetes import (
    CUSTOM,
    LWS,
    NAMESPACES,
    NOBODY,
    TOKEN,
    FakeKubernetes,
    Row,
    custom,
)

__all__ = ["CUSTOM", "LWS", "NAMESPACES", "NOBODY", "TOKEN", "FakeKubernetes", "Row", "custom"]
