"""ResourceSlices say what GPU a device by claim is: driver, pool and device name → UUID. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from gpumon.agent.kube.objects import Device, ResourceSlice
from gpumon.agent.ports import ClaimedDevice

_UUID = "uuid"


def device_uuids(slices: Iterable[ResourceSlice]) -> dict[ClaimedDevice, str]:
    """The UUID of every device that has one, from the slices of each pool's highest generation: those of an
    earlier one may still be there, and don't hold."""
    given = [a_slice.spec for a_slice in slices]
    newest: dict[tuple[str, str], int] = {}
    for spec in given:
        pool = (spec.driver, spec.pool.name)
        newest[pool] = max(spec.pool.generation, newest.get(pool, spec.pool.generation))
    return {
        ClaimedDevice(spec.driver, spec.pool.name, device.name): uuid
        for spec in given
        if spec.pool.generation == newest[spec.driver, spec.pool.name]
        for device in spec.devices or ()
        if (uuid := _uuid(device, spec.driver))
    }


def _uuid(device: Device, driver: str) -> str | None:
    """An attribute's name without a domain is the driver's own; it may also be written out."""
    attributes = device.attributes or (device.basic.attributes if device.basic is not None else None) or {}
    value = attributes.get(_UUID) or attributes.get(f"{driver}/{_UUID}")
    return value.string if value is not None else None
