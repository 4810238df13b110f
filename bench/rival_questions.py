"""The questions of `bench.rivals`, in gpumon's words and in PromQL, and how to read values out of the answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlencode

from bench.served import Asked

Values = dict[str, float]
Result = list[dict[str, Any]]
_DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Scene:
    """What there is to ask about: whole days from `start` to before `end` (aware UTC), the newest sample's time,
    seconds between samples, a GPU."""

    start: datetime
    end: datetime
    newest: datetime
    step: int
    gpu_uuid: str

    @property
    def days(self) -> int:
        """How many."""
        return (self.end - self.start) // _DAY


@dataclass(frozen=True, slots=True)
class Compared:
    """One question. `tolerance` is how far values may differ, as a part of the value; `note` says what the
    meanings do not share. `of_rival` is None where PromQL has no way to ask."""

    name: str
    of_gpumon: Callable[[int], Asked]
    gpumon_values: Callable[[Any], Values]
    of_rival: Callable[[int], Asked] | None
    rival_values: Callable[[Result], Values]
    tolerance: float = 0.001
    note: str = ""


def questions(scene: Scene) -> list[Compared]:
    """All that is compared."""
    first, last = f"{scene.start:%Y-%m-%d}", f"{scene.end - _DAY:%Y-%m-%d}"
    days = f"{scene.days}d"
    dates = {"start_date": first, "end_date": last}
    span = {"start": first, "end": last}
    week = max(scene.start, scene.end - 7 * _DAY)
    hours = {"start": scene.end - timedelta(hours=6), "end": scene.end}
    edges = "a sample at an edge of the range counts whole in PromQL, by its seconds here"

    def seed(path: str, **body: Any) -> Callable[[int], Asked]:
        return lambda _: Asked("POST", f"/api/gpu/{path}", json.dumps(body))

    def fleet(path: str, **words: Any) -> Callable[[int], Asked]:
        return lambda _: Asked("GET", f"/api/{path}?{urlencode(words)}")

    def at(promql: str, moment: datetime = scene.end) -> Callable[[int], Asked]:
        return lambda _: Asked("GET", f"/api/v1/query?{urlencode({'query': promql, 'time': moment.timestamp()})}")

    def over(promql: str, start: datetime, end: datetime, step: timedelta) -> Callable[[int], Asked]:
        words = {"query": promql, "start": start.timestamp(), "end": end.timestamp(), "step": step.total_seconds()}
        return lambda _: Asked("GET", f"/api/v1/query_range?{urlencode(words)}")

    return [
        Compared(
            "mean of all, whole range",
            seed("statistics", **dates),
            lambda answer: {"mean": answer["data"]["period_average"]},
            at(f"sum(sum_over_time(gpu_utilization[{days}])) / sum(count_over_time(gpu_utilization[{days}]))"),
            _scalar("mean"),
            note="gpumon's answer has the means by hour and by day, the highest and the lowest, too",
        ),
        Compared(
            "highest of each day",
            seed("daily-usage", **dates),
            lambda answer: {day["day"]: day["max_utilization"] for day in answer["data"]["chart_data"]},
            over("max(max_over_time(gpu_utilization[1d]))", scene.start + _DAY, scene.end, _DAY),
            _by_time("%Y-%m-%d", _DAY),
            note="gpumon's answer has the lowest, too",
        ),
        Compared(
            "mean of each hour, 7 d",
            seed("hourly-usage", start_date=f"{week:%Y-%m-%d}", end_date=last),
            lambda answer: {
                f"{hour['date']} {hour['hour']:02}": hour["utilization"]
                for hour in answer["data"]["chart_data"]
                if hour["samples"]
            },
            over(
                "sum(sum_over_time(gpu_utilization[1h])) / sum(count_over_time(gpu_utilization[1h]))",
                week + timedelta(hours=1),
                scene.end,
                timedelta(hours=1),
            ),
            _by_time("%Y-%m-%d %H", timedelta(hours=1)),
            tolerance=0.002,
        ),
        Compared(
            "mean of the last 5 minutes",
            seed("realtime"),
            lambda answer: {"mean": answer["data"]["utilization_gpu"]},
            at("avg(avg_over_time(gpu_utilization[5m]))", scene.newest),
            _scalar("mean"),
            tolerance=scene.step / 1200,
            note="a sample more or less at the edge; gpumon's answer has power, memory and temperature, too",
        ),
        Compared(
            "GPU-hours held, by namespace",
            fleet("usage", group_by="namespace", **span),
            _namespaces("gpu_hours_allocated"),
            at(f"sum by (namespace) (sum_over_time(pod_gpu_share[{days}])) * {scene.step} / 3600"),
            _by_label("namespace"),
            tolerance=0.005,
            note="PromQL counts samples and takes the interval on trust; " + edges,
        ),
        Compared(
            "GPU-hours active, by namespace",
            fleet("usage", group_by="namespace", **span),
            _namespaces("gpu_hours_active"),
            at(f"sum by (namespace) (sum_over_time(pod_gpu_utilization[{days}])) * {scene.step} / 360000"),
            _by_label("namespace"),
            tolerance=0.005,
            note="one answer of gpumon has both kinds of hours, and memory, energy and cost",
        ),
        Compared(
            "energy of all, kWh",
            fleet("usage", group_by="none", **span),
            lambda answer: {"kWh": answer["data"]["total"]["energy_kwh"]},
            at(f"sum(sum_over_time(gpu_power_watts[{days}])) * {scene.step} / 3600000"),
            _scalar("kWh"),
            tolerance=0.005,
            note="PromQL adds up power readings; gpumon the energy that the agent counted. " + edges,
        ),
        Compared(
            "held and unused for an hour",
            fleet("idle", at_least="1h", start=first, end=f"{scene.newest.isoformat()}"),
            lambda answer: {entry["pod"]: 1.0 for entry in answer["data"]["idle"]},
            at("max_over_time(pod_gpu_utilization[1h]) <= 1 and pod_gpu_share > 0", scene.newest),
            _by_label("pod", one=True),
            note="PromQL says who, not since when; gpumon looks back over the whole range, with evidence and cost",
        ),
        Compared(
            "95th percentile of each GPU",
            fleet("utilization", group_by="gpu", **span),
            lambda answer: {
                group["group"]["gpu_uuid"]: group["percentiles"]["p95"] for group in answer["data"]["groups"]
            },
            at(f"quantile_over_time(0.95, gpu_utilization[{days}])"),
            _by_label("gpu_uuid"),
            tolerance=0.011,
            note="PromQL interpolates between two readings",
        ),
        Compared(
            "power of one GPU, 6 h, all samples",
            fleet("series", metric="power_draw", gpu_uuid=scene.gpu_uuid, step=f"{scene.step}s",
                  **{name: moment.isoformat() for name, moment in hours.items()}),
            lambda answer: _mean([point["value"] for point in answer["data"]["points"]]),
            over(f'gpu_power_watts{{gpu_uuid="{scene.gpu_uuid}"}}', hours["start"], hours["end"],
                 timedelta(seconds=scene.step)),
            lambda result: _mean([float(value) for _, value in result[0]["values"]]),
            tolerance=0.005,
            note="means of the points are compared: here each is weighed by seconds, there it is a newest sample",
        ),
        Compared(
            "ledger: where every GPU-second went",
            fleet("ledger", group_by="node", **span),
            lambda answer: {},
            None,
            lambda result: {},
            note="no PromQL adds up to the wall time: it has no seconds, and a GPU that is silent is not there",
        ),
    ]  # fmt: skip


def _scalar(name: str) -> Callable[[Result], Values]:
    return lambda result: {name: float(result[0]["value"][1])}


def _by_label(label: str, *, one: bool = False) -> Callable[[Result], Values]:
    return lambda result: {row["metric"][label]: 1.0 if one else float(row["value"][1]) for row in result}


def _by_time(form: str, length: timedelta) -> Callable[[Result], Values]:
    """A range's values, named by when their time begins."""
    return lambda result: {
        f"{datetime.fromtimestamp(at, UTC) - length:{form}}": float(value) for at, value in result[0]["values"]
    }


def _namespaces(figure: str) -> Callable[[Any], Values]:
    return lambda answer: {
        group["group"]["namespace"]: group[figure] for group in answer["data"]["groups"] if group["who"] == "pod"
    }


def _mean(values: list[float | None]) -> Values:
    there = [value for value in values if value is not None]
    return {"mean": sum(there) / len(there)}
