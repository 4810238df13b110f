"""What the server is asked again and again until it is so."""

from __future__ import annotations

from datetime import datetime

from tests.cluster.cluster import Forward, Json, NotYet


def holders(server: Forward) -> dict[str, Json]:
    """Pods that hold GPUs now, by namespace/name."""
    return {
        f"{pod['namespace']}/{pod['pod']}": pod
        for pod in server.data("/api/pods")
        if not pod["stale"] and any(part["held"] for part in pod["gpus"])
    }


def samples_since(server: Forward, instant: datetime) -> None:
    """Every GPU has a sample of this instant or later. Raises NotYet."""
    newest = {gpu["gpu_uuid"]: datetime.fromisoformat(gpu["sampled_at"]) for gpu in server.data("/api/gpus")}
    if not newest or min(newest.values()) < instant:
        raise NotYet(f"wanted samples of {instant}, the newest are of {newest}")
