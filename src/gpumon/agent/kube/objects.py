"""What is read of the Kubernetes API's objects: their JSON, decoded into no more than is used.

Any field may be absent, and null where None is among its types. What does not fit raises msgspec.MsgspecError;
who decodes an object leaves out that one.
"""

from __future__ import annotations

from datetime import datetime

import msgspec
from msgspec import Raw, Struct, field


class OwnerReference(Struct, frozen=True, rename="camel"):
    """What an object belongs to; `controller` marks the one that made it."""

    api_version: str = ""
    kind: str = ""
    name: str = ""
    controller: bool | None = None


class Metadata(Struct, frozen=True, rename="camel"):
    """What every object has. In a list's answer, `continue_token` leads to its next page."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: datetime | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: list[OwnerReference] | None = None
    continue_token: str = field(name="continue", default="")


class Terminated(Struct, frozen=True):
    """The end of a container."""

    container_id: str | None = field(name="containerID", default=None)


class ContainerState(Struct, frozen=True):
    """How a container was before it was started again."""

    terminated: Terminated | None = None


class ContainerStatus(Struct, frozen=True, rename="camel"):
    """One container; its id begins with the runtime's name, `containerd://`."""

    name: str = ""
    container_id: str | None = field(name="containerID", default=None)
    last_state: ContainerState | None = None


class Container(Struct, frozen=True):
    """A container as it was asked for."""

    name: str = ""


class PodSpec(Struct, frozen=True):
    """What was asked for."""

    containers: list[Container] | None = None


class PodStatus(Struct, frozen=True, rename="camel"):
    """What became of it."""

    phase: str = ""
    container_statuses: list[ContainerStatus] | None = None
    init_container_statuses: list[ContainerStatus] | None = None
    ephemeral_container_statuses: list[ContainerStatus] | None = None


class PodObject(Struct, frozen=True):
    """A pod."""

    metadata: Metadata = Metadata()
    spec: PodSpec | None = None
    status: PodStatus | None = None


class NodeSpec(Struct, frozen=True):
    """What was asked of a node."""

    unschedulable: bool | None = None


class NodeObject(Struct, frozen=True):
    """A node."""

    metadata: Metadata = Metadata()
    spec: NodeSpec | None = None


class AttributeValue(Struct, frozen=True):
    """A device's attribute; None where it is no text."""

    string: str | None = None


class BasicDevice(Struct, frozen=True):
    """Where v1beta1 has a device's attributes."""

    attributes: dict[str, AttributeValue] | None = None


class Device(Struct, frozen=True):
    """A device that can be claimed."""

    name: str = ""
    attributes: dict[str, AttributeValue] | None = None
    basic: BasicDevice | None = None


class ResourcePool(Struct, frozen=True):
    """A driver's pool of devices. Of its slices only those of the highest generation hold."""

    name: str = ""
    generation: int = 0


class ResourceSliceSpec(Struct, frozen=True):
    """Some of a pool's devices."""

    driver: str = ""
    pool: ResourcePool = ResourcePool()
    devices: list[Device] | None = None


class ResourceSlice(Struct, frozen=True):
    """A driver's statement of what devices a node has."""

    spec: ResourceSliceSpec = ResourceSliceSpec()


class Page(Struct, frozen=True):
    """A page of a list, its items not yet decoded: one that can't be read costs no other."""

    metadata: Metadata = Metadata()
    items: list[Raw] | None = None


class Event(Struct, frozen=True):
    """A line of a watch. `type`: ADDED, MODIFIED, DELETED, BOOKMARK (`object` has a resourceVersion alone), or
    ERROR (`object` is a Status)."""

    type: str = ""
    object: Raw = Raw(b"{}")


class Version(Struct, frozen=True, rename="camel"):
    """Which object, and in which state."""

    uid: str = ""
    resource_version: str = ""


class Versioned(Struct, frozen=True):
    """Any object, whatever else of it can't be read."""

    metadata: Version = Version()


class Status(Struct, frozen=True):
    """Why something can't be had."""

    code: int = 0
    message: str = ""


read_page = msgspec.json.Decoder(Page).decode
read_event = msgspec.json.Decoder(Event).decode
read_pod = msgspec.json.Decoder(PodObject).decode
read_node = msgspec.json.Decoder(NodeObject).decode
read_versioned = msgspec.json.Decoder(Versioned).decode
read_status = msgspec.json.Decoder(Status).decode
read_slice = msgspec.json.Decoder(ResourceSlice).decode
