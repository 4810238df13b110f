"""The wire format: a sample is one GPU at one instant; a batch is the JSON list that is POSTed.

`GpuSample` and the `PodUse`s in it are built from the catalogues, so a field is described in one place only.
msgspec decodes and checks it at some 5x the speed of the same pydantic model (`bench/ingest.py` prints the ratio).

A batch may carry the header `Gpumon-Batch: <agent>/<boot>/<sequence>`. The server stores a batch with
the same header once, however often it arrives.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from gpumon.model.field import Field
from gpumon.model.fields import FIELDS
from gpumon.model.pod_fields import USE_FIELDS

BATCH_HEADER = "Gpumon-Batch"
MAX_TEXT = 253
"""Longest text in characters: the longest name that Kubernetes allows."""
MAX_LABEL = 317
"""Longest key of a label: a prefix of 253, a slash, a name of 63."""
MAX_LABELS = 64
MAX_PODS = 1000
"""Users of one GPU that a sample may name."""


def _wire_type(field: Field) -> Any:
    base: Any
    if field.choices:
        base = Literal[field.choices]
    elif field.kind == "bool":
        base = bool
    elif field.kind in {"text", "instant"}:
        base = Annotated[str, msgspec.Meta(min_length=1 if field.required else None, max_length=MAX_TEXT)]
    else:
        number = int if field.kind == "int" else float
        base = Annotated[number, msgspec.Meta(ge=_bound(number, field.low), le=_bound(number, field.high))]
    return base if field.required else base | None


def _bound(number: type[int] | type[float], value: float | None) -> int | float | None:
    return None if value is None else number(value)


def _wire_field(field: Field) -> tuple[str, Any] | tuple[str, Any, None]:
    kind = _wire_type(field)
    return (field.name, kind) if field.required else (field.name, kind, None)


_Labels = Annotated[
    dict[
        Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_LABEL)],
        Annotated[str, msgspec.Meta(max_length=MAX_TEXT)],
    ],
    msgspec.Meta(max_length=MAX_LABELS),
]

PodUse: Any = msgspec.defstruct(
    "PodUse",
    [*(_wire_field(field) for field in USE_FIELDS), ("labels", _Labels | None, None)],
    kw_only=True,
    frozen=True,
    gc=False,
    omit_defaults=True,
    module=__name__,
)
"""One user's part of a GPU, in a sample's `pods`: attributes are `pod_fields.USE_FIELDS` and the pod's chosen
`labels`."""

GpuSample: Any = msgspec.defstruct(
    "GpuSample",
    [
        *(_wire_field(field) for field in FIELDS),
        ("pods", Annotated[list[PodUse], msgspec.Meta(max_length=MAX_PODS)] | None, None),
        ("node_labels", _Labels | None, None),
    ],
    kw_only=True,
    frozen=True,
    gc=False,
    omit_defaults=True,
    module=__name__,
)
"""One GPU at one instant. Attributes are the catalogue's fields, None where there is no reading; `pods`, who holds
and uses it, None from a client that does not tell; `node_labels`, the node's chosen labels."""

_BATCH_ID = re.compile(r"([A-Za-z0-9._-]{1,253})/([A-Za-z0-9-]{1,64})/([0-9]{1,15})")


@dataclass(frozen=True, slots=True)
class BatchId:
    """Names a batch for ever: which agent, which run of it, and the place in that run's order."""

    agent: str
    boot: str
    sequence: int

    def __str__(self) -> str:
        return f"{self.agent}/{self.boot}/{self.sequence}"

    @classmethod
    def parse(cls, text: str) -> BatchId:
        """The id in a `Gpumon-Batch` header. Raises ValueError with a sentence when it is not one."""
        match = _BATCH_ID.fullmatch(text)
        if match is None:
            raise ValueError(f"{BATCH_HEADER} must read <agent>/<boot>/<sequence>, got {text[:80]!r}")
        return cls(match[1], match[2], int(match[3]))
