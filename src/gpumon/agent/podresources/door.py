"""The door to the kubelet: implements `gpumon.agent.ports.PodResources`.

| trouble | what the message says to do |
|---|---|
| no socket, nobody listens, no permission | mount the directory, restart, run as uid 0 |
| no complete answer in time | look at the kubelet, or give it longer |
| a status that is not OK | by the status: an older kubelet, too many clients, the kubelet's log |
| an answer that is no gRPC, or not the message it should be | see whose socket it is |

An answer is believed as a whole or not at all. What a call meets is said anew each time and in the same words, so
that whoever logs it can tell new trouble from old.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import httpx

from gpumon import clock
from gpumon.agent.podresources import wire
from gpumon.agent.podresources.channel import UNKNOWN, BadAnswer, Channel, Refused
from gpumon.agent.ports import ContainerDevices
from gpumon.clock import Monotonic
from gpumon.errors import KubeletUnavailable

_SERVICE = "/v1.PodResourcesLister"
_RESOURCE_EXHAUSTED, _UNIMPLEMENTED = 8, 12
_STATUS_NAMES = {
    1: "CANCELLED",
    UNKNOWN: "UNKNOWN",
    3: "INVALID_ARGUMENT",
    4: "DEADLINE_EXCEEDED",
    5: "NOT_FOUND",
    6: "ALREADY_EXISTS",
    7: "PERMISSION_DENIED",
    _RESOURCE_EXHAUSTED: "RESOURCE_EXHAUSTED",
    9: "FAILED_PRECONDITION",
    10: "ABORTED",
    11: "OUT_OF_RANGE",
    _UNIMPLEMENTED: "UNIMPLEMENTED",
    13: "INTERNAL",
    14: "UNAVAILABLE",
    15: "DATA_LOSS",
    16: "UNAUTHENTICATED",
}
_STATUS_ADVICE = {
    _RESOURCE_EXHAUSTED: "it takes 100 calls a second from all its clients together, so find the one that asks "
    "without end",
    _UNIMPLEMENTED: "the agent needs a kubelet of Kubernetes 1.20 or newer",
}
_SEE_LOG = "see the kubelet's log"
_SEE_WHETHER_IT_HANGS = "see whether the kubelet hangs"
_WHOSE_SOCKET = "whether [KUBERNETES] kubelet_socket names the kubelet's socket"
T = TypeVar("T")


class KubeletPodResources:
    """The kubelet that listens on `socket`. Connects when it is first asked; an answer has `timeout_seconds`, from
    the connection to its last byte."""

    def __init__(self, socket: Path, *, timeout_seconds: float, monotonic: Monotonic = clock.monotonic) -> None:
        self._socket = socket
        self._timeout_seconds = timeout_seconds
        self._channel = Channel(socket, timeout_seconds=timeout_seconds, monotonic=monotonic)

    def list_containers(self) -> Sequence[ContainerDevices]:
        """Every container of this node that holds a device. Raises KubeletUnavailable."""
        try:
            return self._ask("List", wire.list_response)
        except Refused as error:
            raise self._refused(error) from error

    def list_allocatable(self) -> Mapping[str, frozenset[str]] | None:
        """Resource name → ids of all devices the kubelet could give out. None where it does not offer the call:
        before 1.21, and up to 1.27 where its feature gate is off. Raises KubeletUnavailable."""
        try:
            return self._ask("GetAllocatableResources", wire.allocatable_response)
        except Refused as error:
            gate_is_off = error.said.endswith("GetAllocatableResources disabled")
            if error.status == _UNIMPLEMENTED or gate_is_off:
                return None
            raise self._refused(error) from error

    def close(self) -> None:
        """Closes the connection. Harmless when there is none."""
        self._channel.close()

    def _ask(self, method: str, decode: Callable[[bytes], T]) -> T:
        """Raises KubeletUnavailable, and Refused, whose meaning differs by method."""
        try:
            return decode(self._channel.call(f"{_SERVICE}/{method}"))
        except (httpx.TimeoutException, TimeoutError) as error:
            raise self._unavailable(
                f"no complete answer within {self._timeout_seconds:g} s",
                f"{_SEE_WHETHER_IT_HANGS}, or raise [KUBERNETES] kubelet_timeout",
            ) from error
        except OSError as error:
            raise self._unavailable(*_not_connected(error)) from error
        except httpx.LocalProtocolError as error:
            raise self._unavailable("what answers there does not speak gRPC", f"see {_WHOSE_SOCKET}") from error
        except httpx.TransportError as error:
            raise self._unavailable(
                "the kubelet hangs up without an answer", f"{_SEE_LOG}, or {_WHOSE_SOCKET}"
            ) from error
        except (BadAnswer, wire.Malformed) as error:
            raise self._unavailable(f"the answer can't be used ({error})", f"see {_WHOSE_SOCKET}") from error

    def _refused(self, error: Refused) -> KubeletUnavailable:
        name = _STATUS_NAMES.get(error.status, f"status {error.status}")
        said = f" ({error.said})" if error.said else ""
        return self._unavailable(f"the kubelet answers {name}{said}", _STATUS_ADVICE.get(error.status, _SEE_LOG))

    def _unavailable(self, reason: str, advice: str) -> KubeletUnavailable:
        return KubeletUnavailable(f"{self._socket}: {reason}: {advice}.")


def _not_connected(error: OSError) -> tuple[str, str]:
    """The reason and the advice for a socket that can't be connected."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return (
            "there is no such socket",
            "mount <kubelet root>/pod-resources of the node there, or set [KUBERNETES] kubelet_socket",
        )
    if isinstance(error, PermissionError):
        return (
            "permission denied",
            "the agent needs uid 0, for the directory is 0750 root:root, and under SELinux the right to connect",
        )
    if isinstance(error, ConnectionRefusedError):
        return (
            "nobody listens there",
            "see whether the kubelet runs; if it does, mount the directory, not the socket: each start makes "
            "a new one",
        )
    if isinstance(error, BlockingIOError):
        return "so many wait there already that no more can", _SEE_WHETHER_IT_HANGS
    return error.strerror or str(error), f"see {_WHOSE_SOCKET}"
