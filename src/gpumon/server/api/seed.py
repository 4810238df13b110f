"""The five questions of NVIDIA GPU Metrics Logger v2, with its figures and envelope.

What gpumon does differently is said in the endpoints' descriptions and in the README: filled zeros come with
`coverage` and `samples`, days with the year, and memory in use is what its name says.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from pydantic import BaseModel

from gpumon.server.api.errors import ErrorAnswer, answer
from gpumon.server.api.seed_models import (
    DailyAnswer,
    HourlyAnswer,
    ListAnswer,
    ListWanted,
    RealtimeAnswer,
    StatisticsAnswer,
    StatisticsWanted,
    UsageWanted,
    Wanted,
)
from gpumon.server.api.state import state_of
from gpumon.server.queries import Filter

router = APIRouter(prefix="/api/gpu", tags=["queries"])


def _responses(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    return {
        200: {"model": model},
        422: {"model": ErrorAnswer, "description": "A date, range or filter that can't be."},
        503: {"model": ErrorAnswer, "description": "The query took too long, or the store is not open."},
    }


def _done(data: Any) -> Response:
    return answer({"success": True, "data": data})


@router.post(
    "/statistics", summary="Averages and extremes", response_model=None, responses=_responses(StatisticsAnswer)
)
def statistics(request: Request, wanted: Annotated[StatisticsWanted | None, Body()] = None) -> Response:
    """Mean and extremes of `utilization_gpu` over the days and GPUs asked for, in percent.

    `hourly_average` is the mean of the means of each (date, hour), `daily_average` of each date, `period_average`
    of all readings. Where nothing matches, all are 0.0 and `coverage` is 0."""
    asked = wanted.filter() if wanted else Filter()
    return _done(state_of(request).engine.reader.statistics(asked))


@router.post("/hourly-usage", summary="Every hour's mean", response_model=None, responses=_responses(HourlyAnswer))
def hourly_usage(request: Request, wanted: UsageWanted) -> Response:
    """Mean `utilization_gpu` of every hour from 00:00 of the first day to 23:59 of the last, in percent. An hour
    without readings is 0.0 with `samples` 0."""
    return _done(state_of(request).engine.reader.hourly_usage(wanted.filter()))


@router.post(
    "/daily-usage", summary="Every day's extremes", response_model=None, responses=_responses(DailyAnswer)
)
def daily_usage(request: Request, wanted: UsageWanted) -> Response:
    """Lowest and highest `utilization_gpu` of every day, in percent. A day without readings is 0.0 with `samples`
    0. `day` carries the year, since MM/DD alone is ambiguous."""
    return _done(state_of(request).engine.reader.daily_usage(wanted.filter()))


@router.post("/list", summary="All GPUs", response_model=None, responses=_responses(ListAnswer))
def gpu_list(request: Request, wanted: Annotated[ListWanted | None, Body()] = None) -> Response:
    """The newest sample of each (client_name, gpu_id), ordered by both. A GPU is `stale` when that sample is older
    than `[LIMITS] stale_after_seconds` (the old program always said `active`)."""
    return _done(state_of(request).engine.reader.gpu_list((wanted or ListWanted()).client_name))


@router.post(
    "/realtime", summary="The last five minutes", response_model=None, responses=_responses(RealtimeAnswer)
)
def realtime(request: Request, wanted: Annotated[Wanted | None, Body()] = None) -> Response:
    """Means over the samples that match within the five minutes up to the newest sample of all. A figure that no
    sample in the window has is null."""
    wanted = wanted or Wanted()
    return _done(state_of(request).engine.reader.realtime(wanted.gpu_id, wanted.client_name))
