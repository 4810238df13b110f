"""From the bytes of a request to rows of the CSV, each checked; pure.

The whole body is decoded in one typed pass; only when that fails is it taken row by row, so that the
good rows are kept and each bad one is reported with its place. Nothing that passes can tear or inject a
line of the CSV, or a formula into the spreadsheet that opens it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from operator import attrgetter
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from gpumon.clock import to_wire
from gpumon.faults import explain
from gpumon.model.fields import BY_NAME, CSV_COLUMNS, FIELDS
from gpumon.model.sample import GpuSample

Row = tuple[Any, ...]
"""Values in the order of the CSV's columns; `timestamp` local, `sampled_at` exact."""

MAX_REPORTED_ERRORS = 20
MAX_OBJECTS = 200_000
"""A small gzip body can unpack to millions of empty objects, which would hold the server up for seconds."""

_decode_list = msgspec.json.Decoder(list[GpuSample]).decode
_decode_one = msgspec.json.Decoder(GpuSample).decode
_decode_anything = msgspec.json.Decoder(float_hook=float).decode  # 1e999 is inf here, and then out of bounds
_values = attrgetter(*CSV_COLUMNS)
_INTEGERS = frozenset(f.name for f in FIELDS if f.kind == "int")
_TEXTS = tuple((i, f.name) for i, f in enumerate(FIELDS) if f.kind == "text")
_TIMESTAMP = CSV_COLUMNS.index("timestamp")
_SAMPLED_AT = CSV_COLUMNS.index("sampled_at")
_KUBERNETES_NAME = re.compile(r"[a-z0-9A-Z]([-a-z0-9A-Z_.]*[a-z0-9A-Z])?")
_TIMESTAMP_FORM = re.compile(r"\d{4}-\d{2}-\d{2}[ T]\d{2}:\d{2}:\d{2}")
_FORMULA = ("=", "+", "-", "@")
_KNOWN_TEXTS = 50_000


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one sample: its place in the list, the field, and a sentence."""

    index: int
    loc: list[str]
    msg: str


@dataclass(slots=True)
class Accepted:
    """The good rows of a body with the local day and hour that each belongs to, and the faults of the bad."""

    rows: list[tuple[date, int, Row]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    failed: int = 0

    def refuse(self, index: int, loc: list[str], msg: str) -> None:
        """Counts a bad sample; the first few are reported in words."""
        self.failed += 1
        if len(self.faults) < MAX_REPORTED_ERRORS:
            self.faults.append(Fault(index, loc, msg))


class BadBody(ValueError):
    """The body as a whole is not a sample or a list of samples. `status` is the HTTP status it becomes."""

    def __init__(self, message: str, *, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


class BadInstant(ValueError):
    """A sample's time can't be. `field` is where it stands."""

    def __init__(self, field_name: str, message: str) -> None:
        super().__init__(message)
        self.field = field_name


class Acceptor:
    """Checks bodies by one server's zone and limits."""

    def __init__(self, zone: ZoneInfo, past: timedelta, future: timedelta) -> None:
        self._zone = zone
        self._past = past
        self._future = future
        self._good: set[tuple[str, str]] = set()

    def accept(self, body: bytes, now: datetime) -> Accepted:
        """Decodes and checks a body. Raises BadBody when it is no JSON or neither a sample nor a non-empty
        list; otherwise every sample is either among the rows or counted in `failed`."""
        if body.count(b"{") > MAX_OBJECTS:
            raise BadBody(f"the body holds more than {MAX_OBJECTS} objects; send fewer at once", status=413)
        accepted = Accepted()
        instants: dict[tuple[str, str | None], tuple[str, str, date, int]] = {}
        for index, sample in self._decode(body, accepted):
            values = _values(sample)
            told = (values[_TIMESTAMP], values[_SAMPLED_AT])
            when = instants.get(told)
            if when is None:
                try:
                    when = instants[told] = self._when(*told, now)
                except BadInstant as error:
                    accepted.refuse(index, [error.field], str(error))
                    continue
            bad = self._bad_text(values)
            if bad is not None:
                accepted.refuse(index, [bad[0]], bad[1])
                continue
            row = (when[0], *values[1:_SAMPLED_AT], when[1], *values[_SAMPLED_AT + 1 :])
            accepted.rows.append((when[2], when[3], row))
        return accepted

    def _decode(self, body: bytes, accepted: Accepted) -> list[tuple[int, Any]]:
        try:
            try:
                if body.lstrip()[:1] == b"{":
                    return [(0, _decode_one(body))]
                samples = _decode_list(body)
            except msgspec.ValidationError:
                return _one_by_one(body, accepted)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if not body.strip():
                raise BadBody("the body is empty; send one sample object, or a list of them, as JSON") from error
            if isinstance(error, RecursionError):
                raise BadBody("the body is nested too deeply; send a list of plain sample objects") from error
            raise BadBody(
                f"the body is not valid JSON in UTF-8: {error} (NaN and Infinity are not JSON; send null instead)"
            ) from error
        if not samples:
            raise BadBody("the list is empty; send at least one sample")
        return list(enumerate(samples))

    def _when(self, timestamp: str, sampled_at: str | None, now: datetime) -> tuple[str, str, date, int]:
        """(local whole seconds, exact UTC, local day, local hour) of a sample. Raises BadInstant."""
        instant = self._instant("timestamp", timestamp)
        field, text = "timestamp", timestamp
        if sampled_at:
            instant = self._instant("sampled_at", sampled_at)
            field, text = "sampled_at", sampled_at
        if instant > now + self._future:
            raise BadInstant(
                field,
                f"{text!r} is further in the future than [LIMITS] accept_future_seconds allows; "
                "check the sender's clock and zone",
            )
        if instant < now - self._past:
            raise BadInstant(
                field,
                f"{text!r} is older than [LIMITS] accept_past_days allows; check the sender's clock",
            )
        local = instant.astimezone(self._zone)
        return local.strftime("%Y-%m-%d %H:%M:%S"), to_wire(instant), local.date(), local.hour

    def _instant(self, field: str, text: str) -> datetime:
        """The UTC instant of `YYYY-MM-DD HH:MM:SS` (the server's zone) or of ISO 8601 with an offset."""
        try:
            if not _TIMESTAMP_FORM.match(text):
                raise ValueError
            parsed = datetime.fromisoformat(text)
            return (parsed if parsed.tzinfo else parsed.replace(tzinfo=self._zone)).astimezone(UTC)
        except (ValueError, OverflowError):
            raise BadInstant(
                field, f"{text[:40]!r} is no timestamp; write YYYY-MM-DD HH:MM:SS, or ISO 8601 with an offset"
            ) from None

    def _bad_text(self, values: Row) -> tuple[str, str] | None:
        for position, name in _TEXTS:
            text = values[position]
            if text is None or (name, text) in self._good:
                continue
            fault = _text_fault(name, text)
            if fault is not None:
                return name, fault
            if len(self._good) >= _KNOWN_TEXTS:
                self._good.clear()
            self._good.add((name, text))
        return None


def _text_fault(name: str, text: str) -> str | None:
    if not text:
        return None
    if not text.isprintable():
        return "holds control characters or line breaks; names are printable text"
    if text.startswith(_FORMULA):
        return "begins with = + - or @, which a spreadsheet would run as a formula"
    if BY_NAME[name].kubernetes_name and not _KUBERNETES_NAME.fullmatch(text):
        return "is not a Kubernetes name (letters, digits, '-', '_' and '.')"
    return None


def _one_by_one(body: bytes, accepted: Accepted) -> list[tuple[int, Any]]:
    """The samples of a body that are well formed, with their places; the others are refused."""
    raw = _decode_anything(body)
    samples = raw if isinstance(raw, list) else [raw]
    if not all(isinstance(sample, dict) for sample in samples):
        raise BadBody("send one sample object, or a list of sample objects")
    good: list[tuple[int, Any]] = []
    for index, sample in enumerate(samples):
        try:
            good.append((index, msgspec.convert(_whole_numbers(sample), GpuSample)))
        except msgspec.ValidationError as error:
            if len(accepted.faults) >= MAX_REPORTED_ERRORS:
                accepted.failed += 1
                continue
            name, fault = explain(error, lambda name: BY_NAME[name].choices)
            accepted.refuse(index, [name] if name else [], fault)
    return good


def _whole_numbers(sample: dict[str, Any]) -> dict[str, Any]:
    """81559.0 is a whole number: clients that divide before they round send it for an int."""
    return {
        name: int(value) if name in _INTEGERS and isinstance(value, float) and value.is_integer() else value
        for name, value in sample.items()
    }
