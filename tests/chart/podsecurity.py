"""What a pod template violates of the Pod Security Standards, as Kubernetes' own admission would find it.

`violations(pod)` gives them by level: what stands under BASELINE needs the level privileged, what stands under
RESTRICTED needs baseline. Controls of fields that no template of the chart uses are checked, too, so that one that
begins to is found out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

BASELINE = "baseline"
RESTRICTED = "restricted"

_CAPABILITIES = {
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
}
_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
_SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
_SYSCTLS = {
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
}


def level(pod: Mapping[str, Any]) -> str:
    """The strictest level that lets the pod in."""
    found = violations(pod)
    return "privileged" if found[BASELINE] else BASELINE if found[RESTRICTED] else RESTRICTED


def violations(pod: Mapping[str, Any]) -> dict[str, set[str]]:
    """Violations by level, each as `where: what`."""
    spec = pod["spec"]
    containers = [
        (container, f"container {container['name']}")
        for kind in ("initContainers", "containers", "ephemeralContainers")
        for container in spec.get(kind, [])
    ]
    found = {BASELINE: set(_baseline_of_pod(pod)), RESTRICTED: set(_restricted_volumes(spec))}
    pod_context = spec.get("securityContext") or {}
    for container, where in containers:
        context = container.get("securityContext") or {}
        found[BASELINE] |= {f"{where}: {what}" for what in _baseline(container, context)}
        found[RESTRICTED] |= {f"{where}: {what}" for what in _restricted(context, pod_context)}
    return found


def _baseline_of_pod(pod: Mapping[str, Any]) -> Iterator[str]:
    spec = pod["spec"]
    context = spec.get("securityContext") or {}
    yield from (f"pod: {field}" for field in ("hostNetwork", "hostPID", "hostIPC") if spec.get(field))
    yield from (f"volume {volume['name']}: hostPath" for volume in spec.get("volumes", []) if "hostPath" in volume)
    yield from (f"pod: sysctl {an['name']}" for an in context.get("sysctls", []) if an["name"] not in _SYSCTLS)
    yield from (f"pod: {what}" for what in _baseline_of_context(context))
    for name, profile in (pod["metadata"].get("annotations") or {}).items():
        if name.startswith("container.apparmor.security") and not profile.startswith(("runtime/", "localhost/")):
            yield f"pod: {name}={profile}"


def _baseline(container: Mapping[str, Any], context: Mapping[str, Any]) -> Iterator[str]:
    if context.get("privileged"):
        yield "privileged"
    added = set((context.get("capabilities") or {}).get("add", []))
    yield from (f"capability {name}" for name in sorted(added - _CAPABILITIES))
    yield from (f"hostPort {port['hostPort']}" for port in container.get("ports", []) if port.get("hostPort"))
    if context.get("procMount", "Default") != "Default":
        yield f"procMount {context['procMount']}"
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        for how in ("httpGet", "tcpSocket"):
            if ((container.get(name) or {}).get(how) or {}).get("host"):
                yield f"{name} of another host"
    yield from _baseline_of_context(context)


def _baseline_of_context(context: Mapping[str, Any]) -> Iterator[str]:
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield "hostProcess"
    if (context.get("seccompProfile") or {}).get("type") == "Unconfined":
        yield "seccomp Unconfined"
    if (context.get("appArmorProfile") or {}).get("type") == "Unconfined":
        yield "AppArmor Unconfined"
    selinux = context.get("seLinuxOptions") or {}
    if selinux.get("type", "") not in _SELINUX_TYPES or selinux.get("user") or selinux.get("role"):
        yield "seLinuxOptions"


def _restricted_volumes(spec: Mapping[str, Any]) -> Iterator[str]:
    for volume in spec.get("volumes", []):
        for kind in set(volume) - {"name"} - _VOLUMES:
            yield f"volume {volume['name']}: {kind}"


def _restricted(context: Mapping[str, Any], pod_context: Mapping[str, Any]) -> Iterator[str]:
    both = {**pod_context, **context}
    capabilities = context.get("capabilities") or {}
    if context.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation"
    if both.get("runAsNonRoot") is not True:
        yield "runAsNonRoot"
    if both.get("runAsUser") == 0:
        yield "runAsUser 0"
    if (both.get("seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "seccomp"
    if "ALL" not in capabilities.get("drop", []):
        yield "capabilities not dropped"
    yield from (f"capability {name}" for name in sorted(set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}))
