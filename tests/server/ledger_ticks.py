"""Samples of GPUs at their worst: in any order, with gaps, told twice, shared, of no known interval, lost."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from tests.samples import sample

MODELS = {"gpu-a": "NVIDIA H100 80GB HBM3", "gpu-b": "NVIDIA A100-SXM4-40GB", "gpu-c": "Tesla T4", None: "Old GPU"}
percent = st.none() | st.sampled_from([0.0, 25.0, 50.0, 100.0]) | st.floats(0, 100)
shares = st.none() | st.sampled_from([0.0, 0.25, 0.5, 1.0])
pods = st.builds(
    lambda pod, container, owner, held, method, share, used, memory, energy, mig, process: {
        name: value
        for name, value in {
            "namespace": None if pod is None else pod[0],
            "pod": None if pod is None else pod[1],
            "container": container,
            "owner_kind": owner and "Job",
            "owner_name": owner,
            "held": held,
            "method": method,
            "gpu_share": share,
            "utilization": used,
            "memory_used": memory,
            "energy_mj": energy,
            "mig_uuid": mig,
            "process_name": process,
        }.items()
        if value is not None
    },
    st.sampled_from([("red", "p-1"), ("red", "p-2"), ("blue", "p-1"), None]),
    st.sampled_from([None, "main"]),
    st.sampled_from([None, "train"]),
    st.sampled_from([True, True, False, None]),
    st.sampled_from(["exclusive", "process", "equal-split", "unresolved", None]),
    shares,
    percent,
    st.none() | st.floats(0, 90_000),
    st.none() | st.floats(0, 3e6),
    st.sampled_from([None, None, "MIG-1", "MIG-2"]),
    st.sampled_from([None, "Xorg"]),
)
tick = st.builds(
    lambda seconds, gpu, node, interval, busy, mean, state, held, count, unhealthy, users, power, energy, memory: {
        "seconds": seconds,
        "gpu_uuid": gpu,
        "client_name": node,
        "node": None if node == "node-2" else node,
        "gpu_name": MODELS[gpu],
        "interval_seconds": interval,
        "utilization_gpu": busy,
        "utilization_mean": mean,
        "state": state,
        "holder_count": held,
        "process_count": count,
        "unhealthy": unhealthy,
        "pods": users,
        "power_draw": power,
        "interval_energy_mj": energy,
        "memory_used": memory,
    },
    st.integers(0, 600) | st.floats(0, 600) | st.sampled_from([-80_000, -1000, -300, 0, 600, 900, 5000]),
    st.sampled_from(["gpu-a", "gpu-a", "gpu-b", "gpu-c", None]),
    st.sampled_from(["node-1", "node-2"]),
    st.sampled_from([None, 0.0, 5.0, 30.0, 600.0, 3000.0]) | st.floats(0, 400),
    percent,
    st.none() | percent,
    st.sampled_from([None, "ok", "ok", "ok", "lost", "unknown"]),
    st.sampled_from([None, 0, 1, 2]),
    st.sampled_from([None, 0, 1]),
    st.sampled_from([None, None, "cordoned"]),
    st.lists(pods, min_size=1, max_size=4) | st.none() | st.just([]),
    st.none() | st.floats(0, 700),
    st.none() | st.floats(0, 3e6),
    st.none() | st.integers(0, 90_000),
)  # fmt: skip
groupings = st.sampled_from(
    ["pod", "container", "owner", "namespace", "node", "gpu", "model", "node,namespace", "label:team"]
)


def posted_at(base: datetime, ticks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ticks as samples, whose times are relative to `base`."""
    posted = []
    for told in ticks:
        at = (base + timedelta(seconds=told["seconds"])).isoformat(timespec="milliseconds")
        fields = {name: value for name, value in told.items() if name != "seconds" and value is not None}
        posted.append(
            sample(**dict.fromkeys(("utilization_gpu", "power_draw", "memory_used")))
            | {"timestamp": at, "sampled_at": at}
            | fields
        )
    return posted


def label_some(posted: list[dict[str, Any]], label: str) -> dict[tuple[Any, Any], Any]:
    """Labels the pods of namespace red, always alike."""
    found = {}
    for one in posted:
        for pod in one.get("pods") or ():
            if pod.get("namespace") == "red":
                pod["labels"] = {label: f"team of {pod['pod']}"}
                found["red", pod["pod"]] = pod["labels"][label]
    return found
