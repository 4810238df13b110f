"""From the bytes of a request to rows of the CSV files, each checked; pure.

Nothing that passes can tear or inject a line of a CSV, or a formula into the spreadsheet that opens it. A bad
sample is refused; of a good one, bad entries of `pods` and bad labels are left out: nothing good is lost for
its neighbour.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from operator import attrgetter, itemgetter
from typing import Any
from zoneinfo import ZoneInfo

from msgspec.structs import astuple

from gpumon.clock import to_wire
from gpumon.model.field import Field
from gpumon.model.fields import CSV_COLUMNS, FIELDS
from gpumon.model.pod_fields import LABEL_FIELDS, POD_FIELDS, USE_FIELDS
from gpumon.server.decode import Faults, decode
from gpumon.server.labels import Labels
from gpumon.server.tables import POD_KEY, POD_USAGE, SAMPLES, DatedRow, Row

_pod_key = attrgetter(*POD_KEY)
_before_use = itemgetter(*(CSV_COLUMNS.index(f.name) for f in POD_FIELDS[: POD_FIELDS.index(USE_FIELDS[0])]))
_before_pod = itemgetter(*(CSV_COLUMNS.index(f.name) for f in LABEL_FIELDS[:4]))
_USES = len(USE_FIELDS)
(_HELD,) = (i for i, f in enumerate(USE_FIELDS) if f.kind == "bool")
_CELLS = {True: "true", False: "false", None: None}
_COLUMNS = len(CSV_COLUMNS)
_SAMPLED_AT = CSV_COLUMNS.index("sampled_at")
_told = itemgetter(CSV_COLUMNS.index("timestamp"), _SAMPLED_AT)
_UTILIZATION = CSV_COLUMNS.index("utilization_gpu")
_UTILIZATION_MEAN = CSV_COLUMNS.index("utilization_mean")
_KUBERNETES_NAME = re.compile(r"[a-z0-9A-Z]([-a-z0-9A-Z_.]*[a-z0-9A-Z])?")
_UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Of Unicode's categories. Others that Python doesn't call printable are in good names: a full-width or no-break
blank, what joins emoji."""
_TIMESTAMP_FORM = re.compile(r"\d{4}-\d{2}-\d{2}[ T]\d{2}:\d{2}:\d{2}")
_FORMULA = ("=", "+", "-", "@")
_KNOWN_TEXTS = 20_000
"""Rows or labels whose texts are remembered as good, each some 1 KB at most; more GPUs than that send much."""
_SHOWN_KEY = 80

_When = tuple[str, str, date, int]
"""Local whole seconds, exact UTC, local day, local hour."""


@dataclass(slots=True)
class Accepted:
    """What of a body is to be stored, all of it or nothing: the rows of good samples and of their pods, and
    labels. `samples` counts the former."""

    samples: int = 0
    rows: list[DatedRow] = field(default_factory=list)
    labels: list[Labels] = field(default_factory=list)
    faults: Faults = field(default_factory=Faults)


class _Texts:
    """The texts of one kind of row. A GPU sends the same each time, so what was good together is remembered."""

    def __init__(self, fields: Iterable[Field]) -> None:
        texts = [(place, field) for place, field in enumerate(fields) if field.kind == "text"]
        self._fields = tuple(field for _, field in texts)
        self._of = itemgetter(*(place for place, _ in texts))
        self._good: set[Any] = set()

    def fault(self, values: Row) -> tuple[str, str] | None:
        """The field and what is wrong with it; None when all texts are good."""
        texts = self._of(values)
        if texts in self._good:
            return None
        for of, text in zip(self._fields, texts, strict=True):
            fault = _text_fault(text, kubernetes_name=of.kubernetes_name) if text else None
            if fault is not None:
                return of.name, fault
        _keep(self._good, texts)
        return None


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
        self._texts = _Texts(FIELDS)
        self._use_texts = _Texts(USE_FIELDS)
        self._good_labels: set[tuple[str, str]] = set()

    def accept(self, body: bytes, now: datetime) -> Accepted:
        """Decodes and checks a body. Raises BadBody when it is no JSON or neither a sample nor a non-empty
        list; otherwise everything in it is either to be stored or among the faults."""
        accepted = Accepted()
        faults = accepted.faults
        instants: dict[tuple[str, str | None], _When] = {}
        for index, sample in decode(body, faults):
            values = astuple(sample)  # the catalogue's fields, pods, node_labels
            told = _told(values)
            when = instants.get(told)
            if when is None:
                try:
                    when = instants[told] = self._when(told[0], told[1], now)
                except BadInstant as error:
                    faults.refuse(index, [error.field], str(error))
                    continue
            bad = self._texts.fault(values)
            if bad is not None:
                faults.refuse(index, [bad[0]], bad[1])
                continue
            row = (when[0], *values[1:_SAMPLED_AT], when[1], *values[_SAMPLED_AT + 1 : _COLUMNS])
            accepted.samples += 1
            accepted.rows.append((SAMPLES, when[2], when[3], row))
            if sample.pods:
                self._take_pods(accepted, index, sample.pods, row, when)
            if sample.node_labels:
                labels = self._sound_labels(index, ["node_labels"], sample.node_labels, faults)
                accepted.labels.append(Labels(when[2], when[3], (*_before_pod(row), None, None, None), labels))
        return accepted

    def _take_pods(self, accepted: Accepted, index: int, pods: list[Any], row: Row, when: _When) -> None:
        """The rows and labels of a sample's pods. One that is listed twice is stored once."""
        head = _before_use(row)
        busy = row[_UTILIZATION] if row[_UTILIZATION_MEAN] is None else row[_UTILIZATION_MEAN]
        seen = set()
        for place, pod in enumerate(pods):
            if pod is None:  # left out before
                continue
            use = astuple(pod)  # the catalogue's fields, labels
            bad = self._use_texts.fault(use)
            if bad is not None:
                accepted.faults.leave_out(index, ["pods", str(place), bad[0]], bad[1])
                continue
            key = _pod_key(pod)
            if key in seen:
                continue
            seen.add(key)
            cells = (*head, *use[:_HELD], _CELLS[use[_HELD]], *use[_HELD + 1 : _USES], busy)
            accepted.rows.append((POD_USAGE, when[2], when[3], cells))
            if pod.labels:
                loc = ["pods", str(place), "labels"]
                if pod.pod is None:
                    accepted.faults.leave_out(index, loc, "belong to no pod: the entry names none")
                    continue
                labels = self._sound_labels(index, loc, pod.labels, accepted.faults)
                whose = (*_before_pod(row), pod.namespace, pod.pod, pod.pod_uid)
                accepted.labels.append(Labels(when[2], when[3], whose, labels))

    def _when(self, timestamp: str, sampled_at: str | None, now: datetime) -> _When:
        """When a sample was taken. Raises BadInstant."""
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
        return local.isoformat(" ", "seconds")[:19], to_wire(instant), local.date(), local.hour

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

    def _sound_labels(self, index: int, loc: list[str], labels: dict[str, str], faults: Faults) -> dict[str, str]:
        """The labels that are good; the others are left out."""
        if self._good_labels.issuperset(labels.items()):
            return labels
        sound: dict[str, str] = {}
        for item in labels.items():
            fault = _text_fault(item[0]) or _text_fault(item[1])
            if fault is None:
                sound[item[0]] = item[1]
                _keep(self._good_labels, item)
            else:
                faults.leave_out(index, [*loc, item[0][:_SHOWN_KEY]], fault)
        return sound


def _keep(known: set[Any], good: tuple[str | None, ...]) -> None:
    if len(known) >= _KNOWN_TEXTS:
        known.clear()
    known.add(good)


def _text_fault(text: str, *, kubernetes_name: bool = False) -> str | None:
    if not text:
        return None
    if not text.isprintable() and _UNPRINTABLE.intersection(map(unicodedata.category, text)):
        return "holds control characters or line breaks; leave them out"
    if text.startswith(_FORMULA):
        return "begins with = + - or @, which a spreadsheet would run as a formula"
    if kubernetes_name and not _KUBERNETES_NAME.fullmatch(text):
        return "is not a Kubernetes name (letters, digits, '-', '_' and '.')"
    return None
