"""Bodies and answers of the old program's five questions, for checking the former and documenting both."""

from __future__ import annotations

import re
from datetime import date, datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from gpumon.server.queries import Filter

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def _day(value: Any) -> Any:
    if value is None or (isinstance(value, date) and not isinstance(value, datetime)):
        return value
    try:
        if not isinstance(value, str) or not _DATE.fullmatch(value):
            raise ValueError
        return date.fromisoformat(value)
    except ValueError:
        raise ValueError("is not a date; write YYYY-MM-DD") from None


def _name(value: Any) -> Any:
    """Empty is not given, as the old program had it; half a surrogate pair is no text."""
    if isinstance(value, str):
        value = value.encode("utf-8", "replace").decode()
    return value or None


Day = Annotated[date, BeforeValidator(_day)]
Name = Annotated[str | None, BeforeValidator(_name)]
_GPU = Field(None, description="Only this index.", examples=[0])
_CLIENT = Field(None, description="Only this client (node).", examples=["gpu-node-a"])
_START = "First day, in the server's zone."
_END = "Last day, included."


class Wanted(BaseModel):
    """Which GPUs; nothing given is all of them."""

    model_config = ConfigDict(extra="ignore")
    gpu_id: int | None = _GPU
    client_name: Name = _CLIENT


class StatisticsWanted(Wanted):
    """Which GPUs and days; nothing given is all that is stored."""

    start_date: Day | None = Field(None, description=_START, examples=["2026-11-01"])
    end_date: Day | None = Field(None, description=_END, examples=["2026-11-24"])

    def filter(self) -> Filter:
        """The same as a filter of rows."""
        return Filter(self.start_date, self.end_date, self.gpu_id, self.client_name)


class UsageWanted(Wanted):
    """Which days, and which GPUs of them."""

    start_date: Day = Field(description=_START, examples=["2026-11-23"])
    end_date: Day = Field(description=_END, examples=["2026-11-24"])

    def filter(self) -> Filter:
        """The same as a filter of rows."""
        return Filter(self.start_date, self.end_date, self.gpu_id, self.client_name)


class ListWanted(BaseModel):
    """Which client's GPUs; nothing given is all of them."""

    model_config = ConfigDict(extra="ignore")
    client_name: Name = _CLIENT


class Period(BaseModel):
    """The days that were asked for."""

    start_date: str | None = Field(examples=["2026-11-01"])
    end_date: str | None = Field(examples=["2026-11-24"])


_COVERAGE = Field(
    description="Of the minutes asked for that have passed, the share that holds a reading. 0 means that the "
    "figures are filled, not measured.",
    examples=[0.9987],
)
_SAMPLES = Field(description="Readings behind the figure; 0 means that it is filled.", examples=[720])


class Statistics(BaseModel):
    """Averages and extremes of utilization_gpu, in percent."""

    hourly_average: float = Field(description="Mean of the hours' means, %.", examples=[41.2])
    daily_average: float = Field(description="Mean of the days' means, %.", examples=[40.87])
    period_average: float = Field(description="Mean over all readings, %.", examples=[41.05])
    max_utilization: float = Field(description="Highest reading, %.", examples=[100.0])
    min_utilization: float = Field(description="Lowest reading, %.", examples=[0.0])
    period: Period
    gpu_id: int | None = None
    client_name: str | None = None
    samples: int = _SAMPLES
    coverage: float = _COVERAGE


class Hour(BaseModel):
    """One hour of the server's zone."""

    date: str = Field(examples=["2026-11-24"])
    hour: int = Field(description="0 to 23, local.", examples=[17])
    utilization: float = Field(description="Mean utilization_gpu, %.", examples=[43.5])
    samples: int = _SAMPLES


class DayItem(BaseModel):
    """One day of the server's zone."""

    date: str = Field(description="MM/DD, as the old program had it.", examples=["11/24"])
    day: str = Field(description="The same day with its year.", examples=["2026-11-24"])
    min_utilization: float = Field(description="Lowest utilization_gpu, %.", examples=[0.0])
    max_utilization: float = Field(description="Highest utilization_gpu, %.", examples=[100.0])
    samples: int = _SAMPLES


class _Chart(BaseModel):
    period: Period
    gpu_id: int | None = None
    client_name: str | None = None
    coverage: float = _COVERAGE


class HourlyUsage(_Chart):
    """Every hour of the range, in order."""

    chart_data: list[Hour]


class DailyUsage(_Chart):
    """Every day of the range, in order."""

    chart_data: list[DayItem]


class ListedGpu(BaseModel):
    """The newest that is known of one GPU."""

    gpu_id: int = Field(examples=[0])
    gpu_name: str | None = Field(examples=["NVIDIA H100 80GB HBM3"])
    client_name: str = Field(examples=["gpu-node-a"])
    status: str = Field(description="active, or stale when the newest sample is too old.", examples=["active"])
    last_update: str = Field(description="Local time of the newest sample.", examples=["2026-11-24 17:33:23"])
    gpu_uuid: str | None = Field(None, description="The GPU's identity, where the sender gave it.")
    state: str | None = Field(None, description="ok, lost or unknown, where the sender gave it.")
    age_seconds: int = Field(description="Age of the newest sample, s.", examples=[4])


class Realtime(BaseModel):
    """Means over the five minutes up to the newest sample of all."""

    timestamp: str | None = Field(description="Local time of the newest sample.", examples=["2026-11-24 17:33:23"])
    type: str = Field("average", examples=["average"])
    scope: str = Field(
        description="{all_clients|single_client}_{all_gpus|single_gpu}, no_recent_data (nothing matches) or "
        "no_data (nothing is stored).",
        examples=["all_clients_all_gpus"],
    )
    utilization_gpu: float | None = Field(description="%", examples=[43.5])
    temperature: int | None = Field(description="°C", examples=[58])
    memory_used_percent: float | None = Field(
        description="Used of total memory, %. (The old program gave the memory controller's activity here; where "
        "a total is missing, that is still used.)",
        examples=[61.3],
    )
    power_draw: float | None = Field(description="W", examples=[402.11])
    gpu_count: int = Field(description="GPUs with samples in the window.", examples=[8])
    client_count: int = Field(description="Clients with samples in the window.", examples=[2])
    samples: int = _SAMPLES
    coverage: float = _COVERAGE


class StatisticsAnswer(BaseModel):
    """Envelope."""

    success: bool = True
    data: Statistics


class HourlyAnswer(BaseModel):
    """Envelope."""

    success: bool = True
    data: HourlyUsage


class DailyAnswer(BaseModel):
    """Envelope."""

    success: bool = True
    data: DailyUsage


class ListAnswer(BaseModel):
    """Envelope."""

    success: bool = True
    data: list[ListedGpu]


class RealtimeAnswer(BaseModel):
    """Envelope."""

    success: bool = True
    data: Realtime
