"""What stretch of time a question is about; pure. `start`, `end` and `last` as people and links write them, to
instants in UTC.

An instant is ISO 8601, with an offset or Z, or without one in the server's zone. A date is a whole day of the
server's zone: as `start` its first moment, as `end` its last. `last` is a number and s, m, h, d or w, and ends
now; what is longer than a day begins up to `kept` earlier, where what is kept added up begins.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from gpumon.errors import QueryError
from gpumon.server.days import FIRST_DAY, LAST_DAY, local_midnight

DEFAULT_LAST = "24h"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_EXACT: Final = timedelta(days=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_HOW = "write 2026-11-24, 2026-11-24T08:00 (the server's zone), 2026-11-24T08:00:00Z or with an offset as +08:00"


@dataclass(frozen=True, slots=True)
class Span:
    """From `start` up to, not including, `end`, both aware UTC instants."""

    start: datetime
    end: datetime

    @property
    def seconds(self) -> float:
        """Its length."""
        return (self.end - self.start).total_seconds()


def span_of(
    start: str | None,
    end: str | None,
    last: str | None,
    *,
    now: datetime,
    zone: ZoneInfo,
    max_days: int,
    kept: timedelta | None = None,
    ahead: bool = False,
) -> Span:
    """The span that is asked for; its end is never after `now` but where the question may look `ahead` of it.
    Nothing given is the last 24 hours; a start alone ends now. Raises QueryError where the words can't be
    understood, or the span is empty or longer than allowed."""
    if last is not None and (start is not None or end is not None):
        raise QueryError("give either last, or start and end; last always ends now")
    if last is None and start is None and end is None:
        last = DEFAULT_LAST
    if last is not None:
        try:
            length = duration("last", last)
            begin, finish = now - length, now
            if kept is not None and length > _EXACT:
                begin -= (begin - _EPOCH) % kept
        except OverflowError:
            raise QueryError(f"last = {last[:40]!r} reaches back beyond all calendars; ask for less") from None
    elif start is None:
        raise QueryError("end alone is no range; give start, too, or last")
    else:
        begin = _instant("start", start, zone, end_of_day=False)
        finish = now if end is None else _instant("end", end, zone, end_of_day=True)
        finish = finish if ahead else min(now, finish)
        if begin >= finish:
            raise QueryError(
                f"the range is empty: start is {begin.isoformat()}, end {finish.isoformat()}; "
                f"start must be before end{'' if ahead else ' and before now'}"
            )
    if (finish - begin).total_seconds() > max_days * 86_400 + 7200:  # days with a change of clocks are longer
        raise QueryError(
            f"the range of {(finish - begin).total_seconds() / 86_400:.1f} days is longer than the {max_days} "
            "that [LIMITS] max_range_days allows; ask for a shorter one"
        )
    return Span(begin, finish)


def duration(name: str, text: str) -> timedelta:
    """A length of time as `90s`, `15m`, `24h`, `7d` or `4w`. Raises QueryError that names the parameter."""
    match = re.fullmatch(r"([0-9]{1,12})([smhdw])", text.strip().lower(), re.ASCII)
    if match is None or int(match[1]) == 0:
        raise QueryError(f"{name} = {text[:40]!r} is no length of time; write 90s, 15m, 24h, 7d or 4w")
    try:
        return timedelta(seconds=int(match[1]) * _UNITS[match[2]])
    except OverflowError:
        raise QueryError(f"{name} = {text[:40]!r} is longer than can be reckoned with; ask for less") from None


def _instant(name: str, text: str, zone: ZoneInfo, *, end_of_day: bool) -> datetime:
    try:
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text, re.ASCII):
            day = min(max(date.fromisoformat(text), FIRST_DAY), LAST_DAY)
            return local_midnight(day + timedelta(days=1) if end_of_day else day, zone)
        if not re.match(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}", text, re.ASCII):
            raise ValueError
        # The + of an offset arrives as a space where a link does not escape it.
        parsed = datetime.fromisoformat(re.sub(r"([T ]\S+) (\d{2}:?\d{2})$", r"\1+\2", text))
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise QueryError(f"{name} = {text[:40]!r} is no time; {_HOW}") from None
