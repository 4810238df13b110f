"""Errors, each of which means one decision.

GpumonError
├── SettingsError        a setting is wrong: exit 2, the message says which and what to write instead
├── SourceError          a reading can't be had
│   ├── NvmlUnavailable  no library or no driver: keep serving, try again later
│   ├── GpuLost          one GPU is gone: the others go on
│   ├── KubeletUnavailable     who holds GPUs is not known now
│   └── KubernetesUnavailable  what pods are called and belong to is not known now
├── StorageError         samples can't be stored: answer 503, the agent keeps them
│   └── StorageBusy      too much waits for the disk: answer 429, the agent comes back
└── QueryError           the question can't be answered as asked: answer 422 or 503

What became of a delivery is a value, not an error: see `gpumon.agent.ports.Outcome`.
"""


class GpumonError(Exception):
    """Any trouble gpumon knows and names. The message is one sentence that says what to do."""


class SettingsError(GpumonError):
    """A setting is missing or wrong."""


class SourceError(GpumonError):
    """A source of readings does not answer."""


class NvmlUnavailable(SourceError):
    """NVML as a whole does not answer: library not found, driver not loaded, or not initialised."""


class GpuLost(SourceError):
    """One GPU has fallen off the bus, is being reset, or its handle died."""


class KubeletUnavailable(SourceError):
    """The kubelet's PodResources API does not answer, or not in a way that can be used."""


class KubernetesUnavailable(SourceError):
    """The Kubernetes API does not answer, or not this agent."""


class StorageError(GpumonError):
    """Samples can't be written: disk full, read-only, or in use by another server."""


class StorageBusy(StorageError):
    """The queue in front of the disk is full."""


class QueryError(GpumonError):
    """A query can't be answered as asked. `status` is the HTTP status it becomes."""

    def __init__(self, message: str, *, status: int = 422) -> None:
        super().__init__(message)
        self.status = status
