"""Instants, days and file names. One configured zone names days and hours; inside, instants are UTC.

A day's rows of a table stand in `<prefix>_YYYYMMDD.csv` and, where the day has further parts, in
`<prefix>_YYYYMMDD.NNN.csv`; either may be compressed (`.gz`). All parts together are the day.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from gpumon.errors import SettingsError
from gpumon.server.tables import POD_LABELS, POD_USAGE, SAMPLES, Table

_PREFIXES = {POD_USAGE: "pod_usage", POD_LABELS: "pods"}
"""How the files are named whose prefix is no setting."""

FIRST_DAY, LAST_DAY = date(1700, 1, 1), date(2199, 12, 31)
"""Between them a time can be reckoned with, also some days before it or after. A file or a line of any other day
is none; no setting lets a sample be so old."""

_REMEMBERED = 10_000
"""Names are asked for again with each query."""


@dataclass(frozen=True, slots=True)
class DayFile:
    """One file of a day's rows of a table: `part` 0 is the plain name."""

    table: Table
    day: date
    part: int = 0
    compressed: bool = False


class FileNames:
    """How the files of the days are named. Raises SettingsError where the files of samples could not be told from
    the others."""

    def __init__(self, samples_prefix: str) -> None:
        if samples_prefix.lower() in _PREFIXES.values():  # there are file systems that ignore case
            raise SettingsError(
                f"[STORAGE] csv_filename_prefix = {samples_prefix!r} is the name of the files of pods; "
                "write another, like gpu_metrics"
            )
        self.samples_prefix = samples_prefix
        self._prefixes = {SAMPLES: samples_prefix, **_PREFIXES}
        self._tables = {prefix: table for table, prefix in self._prefixes.items()}
        prefixes = "|".join(map(re.escape, self._tables))
        self._form = re.compile(rf"({prefixes})_(\d{{8}})(?:\.(\d{{3,6}}))?\.csv(\.gz)?")
        self._parsed: dict[str, DayFile | None] = {}

    def of(self, file: DayFile) -> str:
        """The name of a day's file."""
        part = f".{file.part:03d}" if file.part else ""
        return f"{self._prefixes[file.table]}_{file.day:%Y%m%d}{part}.csv{'.gz' if file.compressed else ''}"

    def parse(self, name: str) -> DayFile | None:
        """The day's file that a name stands for; None for any other name."""
        if name not in self._parsed:
            if len(self._parsed) >= _REMEMBERED:
                self._parsed.clear()
            self._parsed[name] = self._parse(name)
        return self._parsed[name]

    def _parse(self, name: str) -> DayFile | None:
        match = self._form.fullmatch(name)
        if match is None:
            return None
        try:
            day = datetime.strptime(match[2], "%Y%m%d").date()
        except ValueError:
            return None
        if not FIRST_DAY <= day <= LAST_DAY:
            return None
        return DayFile(self._tables[match[1]], day, int(match[3] or 0), match[4] is not None)


def zone_named(name: str) -> ZoneInfo:
    """The IANA zone. Raises SettingsError when there is none of that name."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise SettingsError(
            f"[SERVER] timezone = {name!r} is no IANA time zone; write one like UTC, Asia/Taipei or Europe/Berlin"
        ) from error


def local_midnight(day: date, zone: ZoneInfo) -> datetime:
    """The UTC instant at which a day begins in the zone (its first moment, where midnight is skipped)."""
    return datetime.combine(day, time(), zone).astimezone(UTC)


def days_between(first: date, last: date) -> Iterator[date]:
    """Every day of a range, both ends included."""
    for offset in range((last - first).days + 1):
        yield first + timedelta(days=offset)


def utc_offsets(first: datetime, last: datetime, zone: ZoneInfo) -> list[tuple[datetime, timedelta]]:
    """How to turn the zone's local times from `first` to `last` (both naive) into UTC: pairs of (local time
    from which it holds, offset to subtract), ascending. A local time that occurs twice is the first."""
    offsets: list[tuple[datetime, timedelta]] = []
    moment = first
    while moment <= last:
        offset = _offset(moment, zone)
        if not offsets:
            offsets.append((moment, offset))
        elif offsets[-1][1] != offset:
            offsets.append((_change(moment - timedelta(hours=12), moment, zone), offset))
        moment += timedelta(hours=12)
    if offsets and _offset(last, zone) != offsets[-1][1]:
        offsets.append((_change(moment - timedelta(hours=12), last, zone), _offset(last, zone)))
    return offsets


def _offset(local: datetime, zone: ZoneInfo) -> timedelta:
    offset = local.replace(tzinfo=zone).utcoffset()
    assert offset is not None
    return offset


def _change(before: datetime, after: datetime, zone: ZoneInfo) -> datetime:
    """The first whole second in (before, after] with the offset of `after`."""
    wanted = _offset(after, zone)
    while after - before > timedelta(seconds=1):
        middle = (before + (after - before) / 2).replace(microsecond=0)
        if middle <= before:
            break
        if _offset(middle, zone) == wanted:
            after = middle
        else:
            before = middle
    return after
