"""From the bytes of a request to samples of the wire format; pure.

The whole body is decoded in one typed pass; only when that fails is it taken piece by piece, so that all good
samples are kept, and of a good sample all good entries of `pods` and labels. What is bad is reported with its
place. A lone surrogate in a text becomes U+FFFD, the sign for what could not be read; NaN, which is no JSON but
what Python's `json.dumps` writes for a reading that is none, is null. Infinity and a very long integer are refused
by their field; in an unknown field they are ignored like any other value.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gpumon.faults import explain
from gpumon.model.field import Field
from gpumon.model.fields import BY_NAME
from gpumon.model.pod_fields import USE_BY_NAME
from gpumon.model.sample import MAX_LABELS, MAX_PODS, GpuSample, PodUse

MAX_REPORTED_ERRORS = 20
MAX_OBJECTS = 200_000
"""A small gzip body can unpack to millions of empty objects or lists, which would hold the server up for
seconds. Full ones fill the largest usual body, 16 MB, long before: a pod with two labels takes some 400
bytes."""
MAX_VALUES = 1_200_000
"""The same for a body that only Python's slower decoder can read. Counted by its commas, of which a body of 16 MB
has a million."""
MAX_DIGITS = 30
"""Of a longer integer only the first ones are read: no field allows more than 19, and Python converts no more
than some thousands."""

_decode_list = msgspec.json.Decoder(list[GpuSample]).decode
_decode_one = msgspec.json.Decoder(GpuSample).decode
_decode_anything = msgspec.json.Decoder(float_hook=float).decode  # 1e999 is inf here, and then out of bounds
_SHOWN_KEY = 80
_CONSTANTS: dict[str, float | None] = {"NaN": None, "Infinity": math.inf, "-Infinity": -math.inf}
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one sample, or a part of it: its place in the list, the field, and a sentence."""

    index: int
    loc: list[str]
    msg: str


@dataclass(slots=True)
class Faults:
    """What is bad in one body: `failed` samples, and `left_out` entries of the `pods` and labels of good ones. The
    first few are reported in words."""

    found: list[Fault] = field(default_factory=list)
    failed: int = 0
    left_out: int = 0

    @property
    def enough(self) -> bool:
        """Whether no further one is reported in words."""
        return len(self.found) >= MAX_REPORTED_ERRORS

    def refuse(self, index: int, loc: list[str], msg: str) -> None:
        """Counts a bad sample."""
        self.failed += 1
        self._report(index, loc, msg)

    def leave_out(self, index: int, loc: list[str], msg: str, entries: int = 1) -> None:
        """Counts bad entries of a sample that is kept without them."""
        self.left_out += entries
        self._report(index, loc, msg)

    def _report(self, index: int, loc: list[str], msg: str) -> None:
        if not self.enough:
            self.found.append(Fault(index, loc, msg))


class BadBody(ValueError):
    """The body as a whole is not a sample or a list of samples. `status` is the HTTP status it becomes."""

    def __init__(self, message: str, *, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


def decode(body: bytes, faults: Faults) -> list[tuple[int, Any]]:
    """The well-formed samples with their places in the body; the others are among the faults. A bad entry of
    `pods` is None, so that the places of the others hold. Raises BadBody when the body is no JSON or neither a
    sample nor a non-empty list."""
    if len(body) > MAX_OBJECTS and body.count(b"{") + body.count(b"[") > MAX_OBJECTS:
        raise BadBody(f"the body holds more than {MAX_OBJECTS} objects and lists; send fewer at once", status=413)
    try:
        if body.lstrip()[:1] == b"{":
            return [(0, _decode_one(body))]
        samples = _decode_list(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _one_by_one(_entries(body), faults)
    if not samples:
        raise BadBody("the list is empty; send at least one sample")
    return list(enumerate(samples))


def _entries(body: bytes) -> list[Any]:
    """What the body lists, or the one object that it is, of no type yet. Raises BadBody."""
    if not body.strip():
        raise BadBody("the body is empty; send one sample object, or a list of them, as JSON")
    try:
        raw = _decode_untyped(body)
    except RecursionError as error:
        raise BadBody("the body is nested too deeply; send a list of plain sample objects") from error
    if not isinstance(raw, list | dict):
        raise BadBody("send one sample object, or a list of sample objects")
    entries = raw if isinstance(raw, list) else [raw]
    if len(entries) > MAX_OBJECTS:
        raise BadBody(f"the list has more than {MAX_OBJECTS} entries; send fewer at once", status=413)
    return entries


def _decode_untyped(body: bytes) -> Any:
    """Any JSON. Raises BadBody when it is none, RecursionError when it is nested too deeply."""
    try:
        return _decode_anything(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _decode_leniently(body)


def _decode_leniently(body: bytes) -> Any:
    """Like `_decode_untyped`, also where msgspec reads no further: lone surrogates, which stay in the texts,
    integers of thousands of digits, NaN and Infinity, a byte order mark, UTF-16."""
    if body.count(b",") > MAX_VALUES:
        raise BadBody(f"the body holds more than {MAX_VALUES} values; send fewer at once", status=413)
    try:
        text = body.decode(json.detect_encoding(body))
        return json.loads(text, parse_int=_integer, parse_constant=_CONSTANTS.get)
    except ValueError as error:
        raise BadBody(f"the body is not valid JSON: {error}") from error


def _integer(digits: str) -> int:
    return int(digits[:MAX_DIGITS])


def _one_by_one(entries: list[Any], faults: Faults) -> list[tuple[int, Any]]:
    decoded = ((index, _good_sample(index, entry, faults)) for index, entry in enumerate(entries))
    return [(index, sample) for index, sample in decoded if sample is not None]


def _good_sample(index: int, raw: Any, faults: Faults) -> Any:
    """An entry of the list without its bad parts; None when it is bad itself."""
    if not isinstance(raw, dict):
        faults.refuse(index, [], "must be a sample object; leave the entry out where there is no sample")
        return None
    try:
        sample = msgspec.convert(_known(raw, BY_NAME), GpuSample)
    except msgspec.ValidationError as error:
        faults.refuse(index, *_explained(error, BY_NAME, faults))
        return None
    pods = _good_pods(index, raw.get("pods"), faults)
    labels = _good_labels(index, ["node_labels"], raw.get("node_labels"), faults)
    return msgspec.structs.replace(sample, pods=pods, node_labels=labels)


def _good_pods(index: int, raw: Any, faults: Faults) -> list[Any] | None:
    if raw is None:
        return None
    if not isinstance(raw, list):
        faults.leave_out(index, ["pods"], "must be a list of objects")
        return None
    if len(raw) > MAX_PODS:
        surplus = len(raw) - MAX_PODS
        faults.leave_out(index, ["pods"], f"may have {MAX_PODS} entries; the further ones are left out", surplus)
    return [_good_pod(index, str(place), entry, faults) for place, entry in enumerate(raw[:MAX_PODS])]


def _good_pod(index: int, place: str, raw: Any, faults: Faults) -> Any:
    """An entry of `pods`; None when it is bad."""
    if not isinstance(raw, dict):
        faults.leave_out(index, ["pods", place], "must be an object")
        return None
    try:
        pod = msgspec.convert(_known(raw, USE_BY_NAME), PodUse)
    except msgspec.ValidationError as error:
        loc, fault = _explained(error, USE_BY_NAME, faults)
        faults.leave_out(index, ["pods", place, *loc], fault)
        return None
    labels = _good_labels(index, ["pods", place, "labels"], raw.get("labels"), faults)
    return msgspec.structs.replace(pod, labels=labels)


def _good_labels(index: int, loc: list[str], raw: Any, faults: Faults) -> dict[str, str] | None:
    if raw is None:
        return None
    if not isinstance(raw, dict):
        faults.leave_out(index, loc, "must be an object of labels and their values")
        return None
    good: dict[str, str] = {}
    for label, value in ((_readable(key), _readable(text)) for key, text in raw.items()):
        try:
            msgspec.convert({"labels": {label: value}}, PodUse)
        except msgspec.ValidationError as error:
            faults.leave_out(index, [*loc, label[:_SHOWN_KEY]], explain(error)[1])
        else:
            good[label] = value
    if len(good) > MAX_LABELS:
        surplus = len(good) - MAX_LABELS
        faults.leave_out(index, loc, f"may have {MAX_LABELS} labels; the further ones are left out", surplus)
    return dict(list(good.items())[:MAX_LABELS])


def _explained(error: msgspec.ValidationError, fields: dict[str, Field], faults: Faults) -> tuple[list[str], str]:
    """(place within the object, a sentence), where anybody will read it."""
    if faults.enough:
        return [], ""
    name, fault = explain(error, lambda name: fields[name].choices)
    return [name] if name else [], fault


def _known(raw: dict[str, Any], fields: dict[str, Field]) -> dict[str, Any]:
    """What the object says of these fields, in its own order."""
    return {name: _mended(value, fields[name]) for name, value in raw.items() if name in fields}


def _mended(value: Any, of: Field) -> Any:
    """81559.0 is a whole number: clients that divide before they round send it for an int."""
    if isinstance(value, float) and value.is_integer() and of.kind == "int":
        return int(value)
    return _readable(value)


def _readable(value: Any) -> Any:
    """A text with U+FFFD for each lone surrogate, which UTF-8 can't hold; anything else as it is."""
    if not isinstance(value, str) or value.isascii():
        return value
    return _LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", value)
