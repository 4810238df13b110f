"""Scenes in which all goes well: what is hard is that GPUs are shared, split, idle or used by strangers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bench.attribution.scene import Device, Gpu, Pod, Process, Scene, Window, pod

MPS_SERVER = "nvidia-cuda-mps"
"""As the kernel cuts the name of nvidia-cuda-mps-server."""
_GROUP: Final = {"runai-gpu-group": "c7a1"}


def exclusive(seconds: float) -> Scene:
    train, serve = pod("train", Device(0)), pod("serve", Device(1))
    return Scene(
        "exclusive",
        (Gpu(), Gpu()),
        (train, serve),
        (Process(101, train, 90, then=((seconds / 2, 30),)), Process(102, serve, 15, gpu=1)),
    )


def time_sliced(seconds: float) -> Scene:
    a, b, c = (pod(name, Device(0, replica=n)) for n, name in enumerate(("a", "b", "c")))
    return Scene(
        "time-sliced, 60/25/0",
        (Gpu(replicas=4),),
        (a, b, c),
        (Process(101, a, 60), Process(102, b, 25), Process(103, c, 0)),
    )


def busy_then_idle(seconds: float) -> Scene:
    a, b = (pod(name, Device(0, replica=n)) for n, name in enumerate(("a", "b")))
    return Scene(
        "time-sliced, busy then idle",
        (Gpu(replicas=2),),
        (a, b),
        (Process(101, a, 70, then=((seconds / 2, 0),)), Process(102, b, 20)),
    )


def bursts(seconds: float) -> Scene:
    a, b = (pod(name, Device(0, replica=n)) for n, name in enumerate(("a", "b")))
    edges = [edge for window in _bursts(seconds) for edge in window]
    steps = tuple((edge, 50.0 if n % 2 == 0 else 0.0) for n, edge in enumerate(edges))
    return Scene(
        "time-sliced, one in bursts",
        (Gpu(replicas=2),),
        (a, b),
        (Process(101, a, 40), Process(102, b, 0, then=steps)),
    )


def mps(seconds: float) -> Scene:
    a, b, c = (pod(name, Device(0, replica=n)) for n, name in enumerate(("a", "b", "c")))
    return Scene(
        "MPS, clients listed",
        (Gpu(replicas=3),),
        (a, b, c),
        (
            Process(100, None, comm=MPS_SERVER),
            Process(101, a, 45, kind="mps"),
            Process(102, b, 20, kind="mps"),
            Process(103, c, 10, kind="mps"),
        ),
    )


def mps_server_only(seconds: float) -> Scene:
    a, b = (pod(name, Device(0, replica=n)) for n, name in enumerate(("a", "b")))
    return Scene(
        "MPS, only the server listed",
        (Gpu(replicas=2),),
        (a, b),
        (Process(100, None, 70, comm=MPS_SERVER, works_for=((a, 45), (b, 25))),),
        exact=False,
        remark="the driver names no client: the total is right, its halves are a split",
    )


def mig(seconds: float) -> Scene:
    a, b = (pod(name, Device(0, mig=n)) for n, name in enumerate(("a", "b")))
    return Scene(
        "MIG, H100",
        (Gpu(mig=("3g.40gb", "4g.40gb")),),
        (a, b),
        (Process(101, a, 80, mig=0), Process(102, b, 25, mig=1)),
    )


def mig_and_whole(seconds: float) -> Scene:
    a, b, whole = pod("a", Device(0, mig=0)), pod("b", Device(0, mig=1)), pod("whole", Device(1))
    return Scene(
        "MIG beside a whole GPU",
        (Gpu(mig=("1g.10gb", "2g.20gb")), Gpu()),
        (a, b, whole),
        (Process(101, a, 100, mig=0), Process(102, b, 40, mig=1), Process(103, whole, 65, gpu=1)),
    )


def mig_shared(seconds: float) -> Scene:
    a, b = (pod(name, Device(0, mig=0, replica=n)) for n, name in enumerate(("a", "b")))
    return Scene(
        "MIG instance, time-sliced",
        (Gpu(mig=("7g.80gb",), replicas=2),),
        (a, b),
        (Process(101, a, 60, mig=0), Process(102, b, 20, mig=0)),
        exact=False,
        remark="within an instance the driver tells no per-process use: an equal split, marked",
    )


def mig_a100(seconds: float) -> Scene:
    a, b = (pod(name, Device(0, mig=n)) for n, name in enumerate(("a", "b")))
    return Scene(
        "MIG, A100",
        (Gpu("a100-sxm", mig=("3g.20gb", "4g.20gb")),),
        (a, b),
        (Process(101, a, 80, mig=0), Process(102, b, 25, mig=1)),
        exact=False,
        remark="no activity of instances before Hopper: held, and said to be unmeasured",
    )


def held_idle(seconds: float) -> Scene:
    loaded, waiting = pod("loaded", Device(0)), pod("waiting", Device(1))
    return Scene("held, idle", (Gpu(), Gpu(), Gpu()), (loaded, waiting), (Process(101, loaded),))


def foreign(seconds: float) -> Scene:
    a, b = pod("a", Device(0)), pod("b", Device(1))
    return Scene(
        "foreign processes",
        (Gpu(), Gpu()),
        (a, b),
        (
            Process(101, a, 50),
            Process(102, a, 20, gpu=1),
            Process(103, b, 30, gpu=1),
            Process(104, None, 15, comm="python3"),
        ),
    )


def short_exclusive(seconds: float) -> Scene:
    job = pod("job", Device(0))
    return Scene(
        "short processes, exclusive",
        (Gpu(),),
        (job,),
        tuple(Process(1000 + n, job, 50, runs=window) for n, window in enumerate(_bursts(seconds))),
    )


def short_shared(seconds: float) -> Scene:
    a, b = (pod(name, Device(0, replica=n)) for n, name in enumerate(("a", "b")))
    bursts = tuple(Process(1000 + n, b, 50, runs=window) for n, window in enumerate(_bursts(seconds)))
    return Scene(
        "short processes, shared",
        (Gpu(replicas=2),),
        (a, b),
        (Process(101, a, 30), *bursts),
        exact=False,
        remark="who ends before any sample sees it is unresolved, not lost",
    )


def fractional(seconds: float) -> Scene:
    reservation = pod(
        "gpu-reservation-x2x5k", Device(0), namespace="kai-resource-reservation", labels=_GROUP, shares={}
    )
    half = pod("half", labels=_GROUP, annotations={"gpu-fraction": "0.5"}, shares={0: 0.5})
    quarter = pod("quarter", labels=_GROUP, annotations={"gpu-fraction": "0.25"}, shares={0: 0.25})
    return Scene(
        "fractions by reservation (KAI)",
        (Gpu(),),
        (reservation, half, quarter),
        (Process(101, half, 45), Process(102, quarter, 25)),
    )


def hami(seconds: float) -> Scene:
    def placed(name: str, device: int, truly: int) -> Pod:
        told = {"hami.io/vgpu-devices-allocated": f"{{gpu[{truly}]}},NVIDIA,20000,50:;"}
        return pod(name, Device(device, replica=0), annotations=told, shares={truly: 0.5})

    a, b = placed("a", device=0, truly=1), placed("b", device=1, truly=0)
    return Scene(
        "HAMi, ids name the wrong GPU",
        (Gpu(replicas=2), Gpu(replicas=2)),
        (a, b),
        (Process(101, a, 70, gpu=1), Process(102, b, 20, gpu=0)),
    )


def two_containers(seconds: float) -> Scene:
    both = Pod("both", {"encoder": (Device(0, replica=0),), "decoder": (Device(0, replica=1),)})
    return Scene(
        "two containers of one pod",
        (Gpu(replicas=2),),
        (both,),
        (Process(101, both, 55, container="encoder"), Process(102, both, 15, container="decoder")),
    )


def _bursts(seconds: float) -> Iterator[Window]:
    """Runs of 0.3 s every 0.73 s: no multiple of any sampling interval."""
    start = 0.1
    while start < seconds:
        yield start, start + 0.3
        start += 0.73
