"""Whatever is sealed, rolled up, late, compressed or lost: every answer equals that of the CSV files alone."""

from __future__ import annotations

import asyncio
import random
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest

from gpumon.clock import to_wire
from gpumon.model.fields import FIELDS
from gpumon.server.accounts.series import AGGREGATES
from gpumon.server.app import create_app
from gpumon.server.days import local_midnight
from gpumon.server.engine import Engine
from gpumon.tasks import Task
from tests.samples import pod, sample
from tests.server.conftest import settings_for

NEVER = threading.Event()
GROUPINGS = (
    "none",
    "namespace",
    "owner",
    "pod,node",
    "container",
    "gpu",
    "model",
    "label:team",
    "label:team,node",
)
FIRST_DAYS = {
    "UTC": date(2026, 11, 10),
    "Asia/Kolkata": date(2026, 11, 10),  # 5 h 30 min
    "Europe/Berlin": date(2026, 10, 24),  # the 25th has 25 hours
    "America/New_York": date(2026, 3, 7),  # the 8th has 23
    "Australia/Lord_Howe": date(2026, 4, 4),  # the 5th has 24 and a half
}
DAYS = 3
SEED_COLUMNS = [field.name for field in FIELDS[:13]]


class Client:
    """Asks an application in this process."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def request(self, method: str, path: str, **wanted: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                return await client.request(method, path, **wanted)

        return asyncio.run(ask())

    def post(self, path: str, **wanted: Any) -> httpx.Response:
        return self.request("POST", path, **wanted)

    def get(self, path: str, **wanted: Any) -> httpx.Response:
        return self.request("GET", path, **wanted)


@contextmanager
def served(
    folder: Path, zone: str, now: datetime, stale_after_seconds: float = 1000
) -> Iterator[tuple[Client, Engine]]:
    """A server whose days are sealed and rolled up when the test says so; until then it has the CSV alone."""
    settings = settings_for(
        folder,
        server={"timezone": zone},
        storage={"enable_file_compression": True, "compress_after_days": 1},
        performance={"seal_after_minutes": 1e6, "gc_interval": 86_400},
        limits={"stale_after_seconds": stale_after_seconds},
        cost={"prices": "NVIDIA H100*: 2.5; NVIDIA A*: 1"},
    )
    app = create_app(settings, lambda: now)
    engine: Engine = app.state.gpumon.engine
    engine.index.roll_due = lambda _: None  # type: ignore[method-assign]
    engine._sealing = Task("sealing", lambda _: None)
    engine.open()
    try:
        yield Client(app), engine
    finally:
        engine.close()


def users_of(chance: random.Random, gpu: int) -> list[dict[str, Any]]:
    listed = []
    for number in range(chance.choice((0, 1, 1, 1, 2, 3))):
        namespace = chance.choice(("research", "serving"))
        name = f"p{gpu}-{chance.randrange(3)}"
        listed.append(
            pod(
                namespace=namespace,
                pod=name,
                container=f"c{number}",
                pod_uid=f"uid-{name}",
                owner_name=f"job-{chance.randrange(2)}",
                held=chance.choice((True, True, True, False, None)),
                method=chance.choice(("exclusive", "process", "equal-split")),
                gpu_share=chance.choice((1.0, 0.5, 0.25, None)),
                utilization=chance.choice((0.0, 3.0, 40.5, None)),
                memory_used=chance.choice((100.5, 5000.0, None)),
                energy_mj=chance.choice((1000.0, 50_000.0, None)),
                labels={"team": chance.choice(("red", "blue"))},
            )
        )
    if chance.random() < 0.1:
        listed.append({"process_name": "Xorg", "method": "process", "utilization": 1.0, "memory_used": 20.0})
    return listed


def samples_of(chance: random.Random, begin: datetime, end: datetime) -> list[dict[str, Any]]:
    """Some GPUs of two nodes, an old client's among them: gaps, duplicates, intervals of all lengths and none."""
    made = []
    for gpu in range(4):
        client, moment, index = f"node-{gpu % 2}", begin + timedelta(seconds=chance.randrange(900)), gpu // 2
        pace = chance.choice((240, 420, 700))
        while moment < end:
            busy = chance.choice((0.0, 12.0, 55.0, 99.0, None))
            one = sample(
                timestamp=to_wire(moment), gpu_id=index, client_name=client, utilization_gpu=busy,
                power_draw=float(chance.randrange(100, 700)), gpu_name=chance.choice(("NVIDIA H100", "NVIDIA A2")),
            )  # fmt: skip
            if gpu != 3:  # the old client's
                listed = users_of(chance, gpu)
                one |= {
                    "sampled_at": to_wire(moment),
                    "gpu_uuid": f"GPU-{gpu if chance.random() < 0.99 else 0}",
                    "node": client,
                    "interval_seconds": chance.choice((float(pace), float(pace), 60.0, 3000.0, None)),
                    "holder_count": sum(user.get("held") is True for user in listed) or chance.choice((0, None)),
                    "process_count": len(listed),
                    "state": chance.choice(("ok",) * 12 + ("lost", "unknown")),
                    "energy_mj": round(moment.timestamp()) * 300 % 10**9 + chance.randrange(20_000),
                    "attribution_note": chance.choice((None, None, None, "the kubelet could not be asked")),
                    "pods": listed,
                }
            made.append(one)
            moment += timedelta(seconds=chance.choice((pace, pace, pace, pace * 9, 30)) + chance.random())
        if chance.random() < 0.5:
            made.append(made[-1] | {"power_draw": 1.0})
    made.sort(key=lambda one: str(one["timestamp"]))
    return made


def ranges_of(chance: random.Random, begin: datetime, end: datetime) -> list[dict[str, str]]:
    span = (end - begin).total_seconds()
    listed = [{"start": begin.isoformat(), "end": end.isoformat()}]
    for length in (span / 2, 60):
        first = begin + timedelta(seconds=chance.uniform(0, span - length))
        listed.append({"start": to_wire(first), "end": to_wire(first + timedelta(seconds=length))})
    return listed


def everything(
    client: Client, chance: random.Random, first: date, begin: datetime, end: datetime
) -> dict[str, Any]:
    """All answers, by what was asked."""
    answers = {}

    def ask(method: str, path: str, **wanted: Any) -> None:
        answer = client.request(method, f"/api/{path}", **wanted)
        assert answer.status_code == 200, (path, wanted, answer.text)
        answers[f"{path} {wanted}"] = answer.json()["data"]

    days = [(first + timedelta(days=number)).isoformat() for number in range(DAYS)]
    for body in (
        {},
        {"start_date": days[0], "end_date": days[-1]},
        {"start_date": days[1], "end_date": days[2], "client_name": "node-1"},
        {"start_date": days[1], "end_date": days[1], "gpu_id": 1},
    ):
        ask("POST", "gpu/statistics", json=body)
        if body:
            ask("POST", "gpu/hourly-usage", json=body)
            ask("POST", "gpu/daily-usage", json=body)
    ask("POST", "gpu/list", json={})
    ask("POST", "gpu/realtime", json={})
    for name in ("gpus", "pods", "nodes"):
        ask("GET", name)
    for wanted in ranges_of(chance, begin, end):
        for group_by in chance.sample(GROUPINGS, 2):
            ask("GET", "ledger", params=wanted | {"group_by": group_by})
            ask("GET", "usage", params=wanted | {"group_by": group_by})
        ask(
            "GET",
            "series",
            params=wanted | {"metric": chance.choice(("power_draw", "energy_mj"))},
        )
        for step in ("1h", "6h", "1d"):
            chosen = chance.choice(({}, {"node": "node-1"}, {"client_name": "old-node"}, {"gpu_uuid": "GPU-0"}))
            pods = chance.choice(({"namespace": "research"}, {"owner": "job-1"}, {"pod": "p1-0"}))
            for of in (
                chosen | {"metric": chance.choice(("power_draw", "temperature", "energy_mj"))},
                chosen | pods | {"metric": chance.choice(("utilization", "memory_used", "gpu_share"))},
            ):
                how = {"step": step, "aggregate": chance.choice(AGGREGATES)}
                ask("GET", "series", params=wanted | how | of)
        ask("GET", "utilization", params=wanted | {"group_by": chance.choice(("gpu", "node", "model", "none"))})
        ask("GET", "series", params=wanted | {"metric": "utilization", "namespace": "research"})
        ask("GET", "idle", params=wanted | {"threshold": chance.choice((0, 5, 100)), "at_least": "1m"})
    exported = client.get(
        "/api/export", params={"format": "csv", "start": begin.isoformat(), "end": end.isoformat()}
    )
    answers["export"] = sorted(exported.text.splitlines())
    return answers


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for name in one:
            yield from differences(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for place, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from differences(left, right, f"{where}[{place}]")
    elif isinstance(one, float) and isinstance(other, float):
        if one != pytest.approx(other, rel=1e-8, abs=1e-8):
            yield f"{where}: {one} is not {other}"
    elif one != other:
        yield f"{where}: {str(one)[:200]} is not {str(other)[:200]}"


def act(what: str, client: Client, engine: Engine, waiting: list[list[dict[str, Any]]], day: date) -> None:
    """One of the things that happen to a server."""
    if what == "post" and waiting:
        assert client.post("/api/receive-data", json=waiting.pop()).status_code == 200
    engine.index.catchup.refresh()
    if what == "rows":
        engine.index.sealer.seal_rows(day, NEVER)
    elif what == "cells" and day in engine.index.shelf.without_cells():
        engine.index.sealer.seal_cells(day, NEVER)
    elif what == "roll":
        engine.index.roller.roll_due(NEVER.is_set, patient=False)
    elif what == "tidy":
        engine.tidy_now()


def put_old_file(folder: Path, chance: random.Random, day: date) -> None:
    """A file of the old program; two of its lines are no rows."""
    folder.mkdir()
    lines = [",".join(SEED_COLUMNS), "not,a,row", '"torn']
    for minute in range(0, 1440, 13):
        busy = chance.randrange(101)
        at = f"{day} {minute // 60:02}:{minute % 60:02}:00"
        lines.append(f"{at},0,NVIDIA A2,{busy}.0,5.0,16000,{busy * 100},9000,50,{busy}.5,60.0,,old-node")
    (folder / f"gpu_metrics_{day:%Y%m%d}.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("zone", FIRST_DAYS)
def test_every_answer_equals_that_of_the_csv_alone(tmp_path: Path, zone: str) -> None:
    chance = random.Random(zone)
    first = FIRST_DAYS[zone]
    days = [first + timedelta(days=number) for number in range(DAYS)]
    begin = local_midnight(first, ZoneInfo(zone))
    end = local_midnight(days[-1], ZoneInfo(zone)) + timedelta(hours=9, minutes=7)
    now = end + timedelta(seconds=400)
    made = samples_of(chance, begin, end)
    late = [one for one in made if chance.random() < 0.1]
    in_time = [one for one in made if one not in late]
    waiting = [late, in_time[1::3], in_time[2::3]]
    chance.shuffle(waiting)
    acts = ["rows", "rows", "cells", "cells", "cells", "post", "post", "roll", "tidy"]
    chance.shuffle(acts)
    folder, alone = tmp_path / "data", tmp_path / "alone"
    put_old_file(folder, chance, days[1])
    with served(folder, zone, now) as (client, engine):
        assert client.post("/api/receive-data", json=in_time[::3]).status_code == 200
        for what in ["rows", *acts[:5]]:
            act(what, client, engine, waiting, chance.choice(days[:2]))
    if chance.random() < 0.5:
        (folder / ".gpumon" / "store.duckdb").unlink()
    with served(folder, zone, now) as (client, engine):
        for what in [*acts[5:], "rows", "post"]:
            act(what, client, engine, waiting, chance.choice(days[:2]))
        asked = chance.getstate()
        found = everything(client, chance, first, begin, end)
        assert engine.index.shelf.days
    alone.mkdir()
    for path in folder.glob("*.csv*"):
        shutil.copy(path, alone)
    with served(alone, zone, now) as (client, _):
        chance.setstate(asked)
        wanted = everything(client, chance, first, begin, end)
    assert not list(differences(found, wanted))
