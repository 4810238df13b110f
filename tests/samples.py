"""Builders of samples: each spells out only what the test is about."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

NOON = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)


def sample(**fields: Any) -> dict[str, Any]:
    """What a client of the old program sends: thirteen fields."""
    return {
        "timestamp": "2026-11-24 12:00:00",
        "gpu_id": 0,
        "gpu_name": "NVIDIA H100 80GB HBM3",
        "utilization_gpu": 50.0,
        "utilization_memory": 20.0,
        "memory_total": 80_000,
        "memory_used": 20_000,
        "memory_free": 60_000,
        "temperature": 60,
        "power_draw": 400.5,
        "power_limit": 700.0,
        "fan_speed": None,
        "client_name": "node-1",
    } | fields


def full_sample(**fields: Any) -> dict[str, Any]:
    """What gpumon's own agent sends: some of its further fields, too."""
    return sample(
        timestamp="2026-11-24T12:00:00.250Z",
        sampled_at="2026-11-24T12:00:00.250Z",
        interval_seconds=5.0,
        gpu_uuid="GPU-8f0c1d3e-0000-0000-0000-000000000001",
        energy_mj=123_456_789,
        sm_clock=1980,
        state="ok",
    ) | (fields)


def pod(**fields: Any) -> dict[str, Any]:
    """What the agent sends of a container that holds all of a GPU and uses half of its time."""
    return {
        "namespace": "research",
        "pod": "train-0",
        "container": "main",
        "pod_uid": "1d5c2c3e-7f54-4f0e-8a55-2f1f3f0a9b11",
        "owner_kind": "StatefulSet",
        "owner_name": "train",
        "held": True,
        "method": "exclusive",
        "gpu_share": 1.0,
        "utilization": 50.0,
        "memory_used": 19_000.5,
        "energy_mj": 2_000_000.0,
        "process_count": 2,
    } | fields
