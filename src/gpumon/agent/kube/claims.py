"""Devices by claim (DRA): what GPU each is. The API is asked in a thread of its own, and only when somebody meets
a device that is not known here: at once, and then at most once a minute, however often that happens.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

import msgspec

from gpumon.agent.kube.client import Client, HttpError
from gpumon.agent.kube.objects import ResourceSlice, read_slice
from gpumon.agent.kube.slices import device_uuids
from gpumon.agent.ports import ClaimedDevice
from gpumon.errors import KubernetesUnavailable
from gpumon.logs import Trouble

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 60.0

_VERSIONS = ("v1", "v1beta2", "v1beta1")
"""Of resource.k8s.io, the newest first: Kubernetes 1.34, 1.33, 1.32."""
_NOT_FOUND = 404


class Claims:
    """What is known of devices by claim; `uuid` may be called from any thread, `run` is a task's work."""

    def __init__(self, node: str, open_client: Callable[[], Client], *, interval_seconds: float) -> None:
        self.trouble: str | None = None
        self._node = node
        self._open_client = open_client
        self._interval_seconds = interval_seconds
        self._uuids: Mapping[ClaimedDevice, str] = {}
        self._versions: tuple[str, ...] = _VERSIONS
        self._wanted = threading.Event()
        self._client: Client | None = None
        self._log = Trouble(log, "kubernetes_resourceslices")

    def uuid(self, device: ClaimedDevice) -> str | None:
        """The device's UUID; None while it is not known, and then the API is asked."""
        uuid = self._uuids.get(device)
        if uuid is None:
            self._wanted.set()
        return uuid

    def run(self, stop: threading.Event) -> None:
        """Asks the API whenever somebody wants to know, until `stop` is set; `interrupt` then ends the wait."""
        while True:
            self._wanted.wait()
            if stop.is_set():
                return
            self._ask()
            self._wanted.clear()
            if stop.wait(self._interval_seconds):
                return

    def interrupt(self) -> None:
        """Ends what `run` waits for; to be called from another thread once its `stop` is set."""
        self._wanted.set()
        client = self._client
        if client is not None:
            client.interrupt()

    def _ask(self) -> None:
        try:
            self._client = self._open_client()
            try:
                self._uuids = device_uuids(self._list(self._client))
            finally:
                self._client.close()
                self._client = None
        except KubernetesUnavailable as error:
            self.trouble = f"it can't be told which GPUs are held by claim (DRA): {error}"
            self._log.occurred(self.trouble)
            return
        self.trouble = None
        self._log.ended()

    def _list(self, client: Client) -> list[ResourceSlice]:
        """The node's slices, by the newest version of the API that there is; it is remembered."""
        query = {"fieldSelector": f"spec.nodeName={self._node}"}
        for version in self._versions:
            path = f"/apis/resource.k8s.io/{version}/resourceslices"
            try:
                slices = [
                    read_slice(item) for page in client.pages(path, dict(query)) for item in page.items or ()
                ]
            except HttpError as error:
                if error.status != _NOT_FOUND:
                    raise
            except msgspec.MsgspecError as error:
                raise KubernetesUnavailable(f"a ResourceSlice is not understood: {error}") from error
            else:
                self._versions = (version,)
                return slices
        self._versions = _VERSIONS  # the cluster may have been upgraded
        raise KubernetesUnavailable(
            "this cluster offers no ResourceSlices in a version of resource.k8s.io that is known here; DRA needs "
            "Kubernetes 1.32"
        )
