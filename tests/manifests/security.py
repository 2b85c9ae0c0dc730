"""Pod security admission: what a namespace's label ``pod-security.kubernetes.io/enforce`` forbids.

The levels baseline and restricted of the Pod Security Standards, for Linux pods and Kubernetes
from 1.34. An unknown level is the cluster's mistake to report; here it is a finding as well.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.manifests.findings import Finding, Findings, Json, Path, dig, entries, mapping

ENFORCE = "pod-security.kubernetes.io/enforce"
LEVELS = ("privileged", "baseline", "restricted")

_BASELINE_CAPABILITIES = frozenset(
    [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ]
)
_RESTRICTED_VOLUMES = frozenset(
    [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ]
)
_SYSCTLS = frozenset(
    [
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.ping_group_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_wmem",
    ]
)
_SECCOMP = ("RuntimeDefault", "Localhost")
_CONTAINERS = ("initContainers", "containers", "ephemeralContainers")
_HANDLERS = (
    *(("startupProbe",), ("readinessProbe",), ("livenessProbe",)),
    *(("lifecycle", "preStop"), ("lifecycle", "postStart")),
)


def findings(level: str, spec: Json, path: Path) -> Findings:
    """What a pod does that its namespace's level forbids."""
    if level not in LEVELS:
        yield path, f"its namespace enforces {level!r}, which is no level"
    if level in ("baseline", "restricted"):
        for found in _baseline(spec, path):
            yield found[0], f"{found[1]}; its namespace enforces {level}"
    if level == "restricted":
        for found in _restricted(spec, path):
            yield found[0], f"{found[1]}; its namespace enforces restricted"


def _each(spec: Json, path: Path) -> Iterator[tuple[Path, Json]]:
    for key in _CONTAINERS:
        for index, one in entries(spec.get(key)):
            yield (*path, key, index), one


def _baseline(spec: Json, path: Path) -> Iterator[Finding]:
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield (*path, key), "must not be set"
    for index, volume in entries(spec.get("volumes")):
        if "hostPath" in volume:
            yield (*path, "volumes", index), "must not be a hostPath"
    pod = mapping(spec.get("securityContext"))
    for index, sysctl in entries(pod.get("sysctls")):
        if sysctl.get("name") not in _SYSCTLS:
            yield (*path, "securityContext", "sysctls", index), "is no safe sysctl"
    for at, one in _each(spec, path):
        yield from _baseline_container(one, at)
    for at, context in _contexts(spec, path):
        profile = dig(context, "seccompProfile").get("type")
        if profile == "Unconfined":
            yield (*at, "seccompProfile", "type"), "must not be Unconfined"
        if dig(context, "appArmorProfile").get("type") == "Unconfined":
            yield (*at, "appArmorProfile", "type"), "must not be Unconfined"
        options = dig(context, "seLinuxOptions")
        if options.get("user") or options.get("role"):
            yield (*at, "seLinuxOptions"), "must set neither user nor role"


def _baseline_container(one: Json, path: Path) -> Iterator[Finding]:
    context = mapping(one.get("securityContext"))
    if context.get("privileged"):
        yield (*path, "securityContext", "privileged"), "must not be true"
    if context.get("procMount", "Default") != "Default":
        yield (*path, "securityContext", "procMount"), "must be Default"
    for index, name in enumerate(dig(context, "capabilities").get("add") or ()):
        if name not in _BASELINE_CAPABILITIES:
            yield (*path, "securityContext", "capabilities", "add", index), f"must not be {name}"
    for index, port in entries(one.get("ports")):
        if port.get("hostPort"):
            yield (*path, "ports", index, "hostPort"), "must not be set"
    for keys in _HANDLERS:
        for handler in ("httpGet", "tcpSocket"):
            if dig(one, *keys, handler).get("host"):
                yield (*path, *keys, handler, "host"), "must not be set"


def _contexts(spec: Json, path: Path) -> Iterator[tuple[Path, Json]]:
    yield (*path, "securityContext"), mapping(spec.get("securityContext"))
    for at, one in _each(spec, path):
        yield (*at, "securityContext"), mapping(one.get("securityContext"))


def _restricted(spec: Json, path: Path) -> Iterator[Finding]:
    for index, volume in entries(spec.get("volumes")):
        for source in sorted(volume.keys() - {"name"} - _RESTRICTED_VOLUMES - {"hostPath"}):
            yield (*path, "volumes", index, source), f"must not be of type {source}"
    pod = mapping(spec.get("securityContext"))
    for at, context in _contexts(spec, path):
        if context.get("runAsUser") == 0:
            yield (*at, "runAsUser"), "must not be 0"
        if context.get("runAsNonRoot") is False:
            yield (*at, "runAsNonRoot"), "must be true"
    for at, one in _each(spec, path):
        context, where = mapping(one.get("securityContext")), (*at, "securityContext")
        if not (context.get("runAsNonRoot") or pod.get("runAsNonRoot")):
            yield (*where, "runAsNonRoot"), "must be true, here or in the pod's securityContext"
        seccomp = dig(context, "seccompProfile").get("type") or dig(pod, "seccompProfile").get(
            "type"
        )
        if seccomp not in _SECCOMP:
            yield (
                (*where, "seccompProfile"),
                "must be RuntimeDefault or Localhost, here or in the pod's",
            )
        if context.get("allowPrivilegeEscalation") is not False:
            yield (*where, "allowPrivilegeEscalation"), "must be false"
        capabilities = dig(context, "capabilities")
        if "ALL" not in (capabilities.get("drop") or ()):
            yield (*where, "capabilities", "drop"), "must hold ALL"
        for index, name in enumerate(capabilities.get("add") or ()):
            if name in _BASELINE_CAPABILITIES - {"NET_BIND_SERVICE"}:
                yield (*where, "capabilities", "add", index), f"must not be {name}"
