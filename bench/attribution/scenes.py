"""All scenes. Each is a function of the length of the measured range in seconds, and has a node of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bench.attribution import mishaps, sharing
from bench.attribution.scene import Scene

SCENES: Final[dict[str, Callable[[float], Scene]]] = {
    make.__name__: make
    for make in (
        sharing.exclusive,
        sharing.time_sliced,
        sharing.busy_then_idle,
        sharing.bursts,
        sharing.mps,
        sharing.mps_server_only,
        sharing.mig,
        sharing.mig_and_whole,
        sharing.mig_shared,
        sharing.mig_a100,
        sharing.held_idle,
        sharing.foreign,
        sharing.short_exclusive,
        sharing.short_shared,
        sharing.fractional,
        sharing.hami,
        sharing.two_containers,
        mishaps.pid_reuse,
        mishaps.pod_restart,
        mishaps.kubelet_restart,
        mishaps.finished,
        mishaps.agent_outage,
        mishaps.clock_step,
        mishaps.no_host_pids,
        mishaps.no_process_use,
    )
}
