"""Event sets of the simulated library: Xids at the times that the scenario says.

As on hardware, a set that waits for a GPU that is lost answers GPU_IS_LOST at once and for ever.
"""
# ruff: noqa: N802

from __future__ import annotations

from typing import Any

from gpumon.agent.fakenvml.abi import EVENT_XID, EVENTS_SUPPORTED, NO_INSTANCE, Return
from gpumon.agent.fakenvml.calls import number
from gpumon.agent.fakenvml.state import EventSet, State

_SLICE_SECONDS = 0.5
"""A wait looks this often, so that an edit of the scenario or a shutdown is seen."""


def nvmlEventSetCreate(state: State, t: float, event_set: Any) -> int:
    return state.put(event_set._obj, EventSet())


def nvmlEventSetFree(state: State, t: float, event_set: Any) -> int:
    if not isinstance(state.target(event_set), EventSet):
        return Return.INVALID_ARGUMENT
    state.free(event_set)
    return Return.SUCCESS


def nvmlDeviceRegisterEvents(state: State, t: float, device: Any, types: Any, event_set: Any) -> int:
    target = state.target(event_set)
    if not isinstance(target, EventSet):
        return Return.INVALID_ARGUMENT
    found = state.gpu(device, t)
    if isinstance(found, Return):
        return found
    gpu, instance = found
    if instance is not None or number(types) & ~EVENTS_SUPPORTED:
        return Return.NOT_SUPPORTED
    if number(types) & EVENT_XID:
        target.gathered.setdefault(gpu.uuid, t)
    return Return.SUCCESS


def nvmlEventSetWait_v2(state: State, t: float, event_set: Any, data: Any, timeout: Any) -> int:
    target = state.target(event_set)
    if not isinstance(target, EventSet):
        return Return.INVALID_ARGUMENT
    left = number(timeout) / 1000
    while True:
        _gather(state, target, t)
        if target.waiting:
            return _give_out(state, target, data._obj)
        gpus = [state.gpu_by_uuid(uuid) for uuid in target.gathered]
        if any(gpu is None or gpu.is_lost(t) for gpu in gpus):
            return Return.GPU_IS_LOST
        if left <= 0:
            return Return.TIMEOUT
        pause = min(left, _SLICE_SECONDS)
        state.sleep(pause)
        left -= pause
        if not state.references:
            return Return.UNINITIALIZED
        t = state.clock()
        state.refresh(t)


def _gather(state: State, target: EventSet, t: float) -> None:
    for uuid, after in target.gathered.items():
        gpu = state.gpu_by_uuid(uuid)
        if gpu is not None:
            target.waiting += [(at, uuid, xid) for at, xid in state.events(gpu, after, t)]
            target.gathered[uuid] = max(after, t)
    target.waiting.sort()


def _give_out(state: State, target: EventSet, data: Any) -> int:
    _, uuid, xid = target.waiting.pop(0)
    state.put_known(data.device, uuid)
    data.eventType, data.eventData = EVENT_XID, xid
    data.gpuInstanceId = data.computeInstanceId = NO_INSTANCE
    return Return.SUCCESS
