"""Scenes in which something happens, or is missing: restarts, outages, a clock that steps, an old driver."""

from __future__ import annotations

import math

from bench.attribution.scene import Device, Gpu, Process, Scene, pod


def pid_reuse(seconds: float) -> Scene:
    half = seconds / 2
    a, b, c = (pod(name, Device(0, replica=n)) for n, name in enumerate(("a", "b", "c")))
    return Scene(
        "pid reused by another pod",
        (Gpu(replicas=3),),
        (a, b, c),
        (
            Process(101, a, 60, runs=(-math.inf, half)),
            Process(101, b, 35, runs=(half + 0.25, math.inf)),
            Process(102, c, 20),
        ),
    )


def pod_restart(seconds: float) -> Scene:
    half = seconds / 2
    before = pod("train-0", Device(0, replica=0), listed=(-math.inf, half))
    after = pod("train-0", Device(0, replica=0), listed=(half, math.inf), incarnation=1)
    other = pod("other", Device(0, replica=1))
    return Scene(
        "pod restarted, same name",
        (Gpu(replicas=2),),
        (before, after, other),
        (
            Process(101, before, 50, runs=(-math.inf, half)),
            Process(201, after, 70, runs=(half + 0.25, math.inf)),
            Process(102, other, 20),
        ),
    )


def kubelet_restart(seconds: float) -> Scene:
    a, b = (pod(name, Device(0, replica=n)) for n, name in enumerate(("a", "b")))
    return Scene(
        "kubelet away",
        (Gpu(replicas=2),),
        (a, b),
        (Process(101, a, 55), Process(102, b, 25)),
        kubelet_down=(seconds / 3, seconds / 2),
    )


def finished(seconds: float) -> Scene:
    new, old = pod("new", Device(0)), pod("old", Device(0), finished=True, shares={})
    return Scene("finished pod still listed", (Gpu(),), (new, old), (Process(101, new, 80),))


def agent_outage(seconds: float) -> Scene:
    a, b = (pod(name, Device(0, replica=n)) for n, name in enumerate(("a", "b")))
    return Scene(
        "agent killed, back later",
        (Gpu(replicas=2),),
        (a, b),
        (Process(101, a, 50), Process(102, b, 30)),
        agent_down=(seconds / 3, seconds / 2),
        remark="the outage is no data, not idle",
    )


def clock_step(seconds: float) -> Scene:
    a, b = (pod(name, Device(0, replica=n)) for n, name in enumerate(("a", "b")))
    return Scene(
        "clock steps ahead and back",
        (Gpu(replicas=2),),
        (a, b),
        (Process(101, a, 60), Process(102, b, 25)),
        clock_ahead=(seconds / 6, seconds / 3),
        clock_ahead_seconds=seconds / 2,
        remark="what a wrong clock stamped elsewhere is no data",
    )


def no_host_pids(seconds: float) -> Scene:
    a, b = (pod(name, Device(0, replica=n)) for n, name in enumerate(("a", "b")))
    return Scene(
        "no hostPID",
        (Gpu(replicas=2),),
        (a, b),
        (Process(101, a, 60), Process(102, b, 20)),
        host_pids=False,
        exact=False,
        remark="no view of processes: an equal split, marked",
    )


def no_process_use(seconds: float) -> Scene:
    a, b = (pod(name, Device(0, replica=n)) for n, name in enumerate(("a", "b")))
    return Scene(
        "driver without per-process use",
        (Gpu(replicas=2),),
        (a, b),
        (Process(101, a, 60), Process(102, b, 20)),
        missing_calls=("nvmlDeviceGetProcess*Utilization*",),
        exact=False,
        remark="nothing tells them apart: an equal split, marked",
    )
