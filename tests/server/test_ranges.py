"""How a range in words becomes instants."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from gpumon.errors import QueryError
from gpumon.server.accounts.ranges import Span, span_of

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
TAIPEI = ZoneInfo("Asia/Taipei")


def span(
    start: str | None = None, end: str | None = None, last: str | None = None, zone: ZoneInfo = TAIPEI
) -> Span:
    return span_of(start, end, last, now=NOW, zone=zone, max_days=366)


def utc(*of: int) -> datetime:
    return datetime(*of, tzinfo=UTC)  # type: ignore[arg-type,misc]


@pytest.mark.parametrize(
    ("last", "length"),
    [
        (None, timedelta(days=1)),
        ("90s", timedelta(seconds=90)),
        ("15m", timedelta(minutes=15)),
        ("24H", timedelta(days=1)),
        ("7d", timedelta(days=7)),
        ("4w", timedelta(days=28)),
    ],
)
def test_last_ends_now(last: str | None, length: timedelta) -> None:
    assert span(last=last) == Span(NOW - length, NOW)


@pytest.mark.parametrize(
    ("last", "start"),
    [
        ("24h", utc(2026, 11, 23, 12, 3, 20)),
        ("25h", utc(2026, 11, 23, 11, 0)),
        ("7d", utc(2026, 11, 17, 12, 0)),
    ],
)
def test_more_than_a_day_begins_where_what_is_kept_begins(last: str, start: datetime) -> None:
    now = utc(2026, 11, 24, 12, 3, 20)
    kept = timedelta(minutes=5)
    asked = span_of(None, None, last, now=now, zone=TAIPEI, max_days=366, kept=kept)
    assert asked == Span(start, now)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ("2026-11-24T08:00:00Z", "2026-11-24T09:00:00Z", (utc(2026, 11, 24, 8), utc(2026, 11, 24, 9))),
        ("2026-11-24T08:00:00+08:00", "2026-11-24T01:00Z", (utc(2026, 11, 24), utc(2026, 11, 24, 1))),
        ("2026-11-24T08:00:00 08:00", "2026-11-24T01:00Z", (utc(2026, 11, 24), utc(2026, 11, 24, 1))),
        ("2026-11-24T08:00", "2026-11-24 10:30:00", (utc(2026, 11, 24), utc(2026, 11, 24, 2, 30))),
        ("2026-11-20", "2026-11-20", (utc(2026, 11, 19, 16), utc(2026, 11, 20, 16))),
        ("2026-11-20", "2026-11-21", (utc(2026, 11, 19, 16), utc(2026, 11, 21, 16))),
        ("2026-11-24", None, (utc(2026, 11, 23, 16), NOW)),
        ("2026-11-24", "2026-12-24", (utc(2026, 11, 23, 16), NOW)),
    ],
)
def test_start_and_end_are_instants_or_whole_local_days_and_never_after_now(
    start: str, end: str | None, expected: tuple[datetime, datetime]
) -> None:
    assert span(start, end) == Span(*expected)


def test_a_day_on_which_clocks_change_is_as_long_as_it_is() -> None:
    assert span("2026-10-25", "2026-10-25", zone=ZoneInfo("Europe/Berlin")).seconds == 25 * 3600


def test_as_many_days_as_are_allowed_may_hold_a_change_of_clocks() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    asked = span_of("2026-10-25", "2026-10-25", None, now=NOW, zone=berlin, max_days=1)
    assert asked.seconds > 86_400


def test_dates_beyond_all_reckoning_are_the_first_and_the_last_that_can_be() -> None:
    zone = ZoneInfo("Asia/Taipei")
    asked = span_of("0001-01-01", "9999-12-31", None, now=NOW, zone=zone, max_days=10**6, ahead=True)
    assert (asked.start.year, asked.end.year) == (1699, 2199)  # in UTC


@pytest.mark.parametrize(
    ("start", "end", "last", "words"),
    [
        ("yesterday", None, None, ["start", "yesterday", "2026-11-24"]),
        ("2026-11-24", "then", None, ["end", "then"]),
        ("2026-13-24", None, None, ["start"]),
        ("0001-01-01", None, None, ["max_range_days"]),
        ("2026-11-24T", None, None, ["start"]),
        ("1764000000", None, None, ["start"]),
        ("2026-11-24T08:00", "2026-11-24T08:00", None, ["empty", "before"]),
        ("2026-11-25", None, None, ["empty", "now"]),
        (None, "2026-11-24", None, ["end alone", "start"]),
        ("2026-11-24", None, "1h", ["either", "last"]),
        (None, None, "24", ["last", "24h"]),
        (None, None, "0h", ["last"]),
        (None, None, "-1h", ["last"]),
        (None, None, "1y", ["last"]),
        (None, None, "9" * 12 + "w", ["last"]),
        (None, None, "999999d", ["last"]),
        (None, None, "367d", ["367.0 days", "max_range_days"]),
        ("2025-01-01", "2026-11-24", None, ["max_range_days"]),
    ],
)
def test_what_is_no_range_is_refused_with_what_to_write(
    start: str | None, end: str | None, last: str | None, words: list[str]
) -> None:
    with pytest.raises(QueryError) as refused:
        span(start, end, last)
    assert refused.value.status == 422
    for word in words:
        assert word in str(refused.value)
