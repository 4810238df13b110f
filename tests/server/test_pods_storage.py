"""Pods and labels in the files and in the store: each in its place, with their sample or not at all, once."""

from __future__ import annotations

import csv
import errno
import io
import random
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpumon.errors import StorageError
from gpumon.model.fields import CSV_COLUMNS
from gpumon.model.pod_fields import LABEL_FIELDS, POD_FIELDS, USE_FIELDS
from gpumon.model.sample import BatchId
from gpumon.server.csvlog import CsvLog, render
from gpumon.server.labels import KnownLabels
from gpumon.server.tables import POD_LABELS, POD_USAGE
from tests import processes
from tests.processes import free_port
from tests.samples import full_sample, pod, sample
from tests.server.conftest import serving, settings_for
from tests.server.test_csvlog import accepted_of, crashed, largest_file, number, opened, printable

PATH = "/api/receive-data"
POD_HEADER = ",".join(field.name for field in POD_FIELDS)
LABEL_HEADER = ",".join(field.name for field in LABEL_FIELDS)
DAY = "20261124"


def lines(folder: Path, prefix: str) -> list[dict[str, str]]:
    """The rows of one kind of file, in the order of files and lines."""
    rows: list[dict[str, str]] = []
    for path in sorted(folder.glob(f"{prefix}_*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows += csv.DictReader(file)
    return rows


def store(log: CsvLog, *samples: dict[str, Any], batch: BatchId | None = None) -> None:
    accepted = accepted_of(*samples)
    assert accepted.faults.found == []
    log.append(accepted.rows, [batch] if batch else [], accepted.labels)


def post(folder: Path, *samples: dict[str, Any], **sections: Any) -> None:
    with serving(settings_for(folder, **sections)) as client:
        client.post(PATH, json=list(samples)).raise_for_status()


def in_sql(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    """What a stopped server's store holds."""
    with duckdb.connect(str(folder / ".gpumon" / "store.duckdb"), read_only=True) as database:
        return database.execute(sql).fetchall()


# --- what stands where


def test_a_sample_its_pods_and_their_labels_are_stored_each_in_its_file(tmp_path: Path) -> None:
    one = full_sample(
        node="node-1",
        pods=[
            pod(labels={"team": "vision"}),
            {"process_name": "Xorg", "held": False, "method": "process", "memory_used": 20.0},
            {"method": "unresolved", "memory_used": 3.5},
        ],
        node_labels={"zone": "a"},
    )
    post(tmp_path, one)
    head = (
        "2026-11-24 12:00:00,0,NVIDIA H100 80GB HBM3,node-1,2026-11-24T12:00:00.250Z,5.0,node-1,"
        "GPU-8f0c1d3e-0000-0000-0000-000000000001,"
    )
    uid = "1d5c2c3e-7f54-4f0e-8a55-2f1f3f0a9b11"
    assert (tmp_path / f"pod_usage_{DAY}.csv").read_text().splitlines() == [
        POD_HEADER,
        f"{head},research,train-0,main,{uid},StatefulSet,train,,true,exclusive,1.0,50.0,19000.5,2000000.0,2,50.0",
        f"{head},,,,,,,Xorg,false,process,,,20.0,,,50.0",
        f"{head},,,,,,,,,unresolved,,,3.5,,,50.0",
    ]
    assert (tmp_path / f"pods_{DAY}.csv").read_text().splitlines() == [
        LABEL_HEADER,
        f"2026-11-24 12:00:00,node-1,2026-11-24T12:00:00.250Z,node-1,research,train-0,{uid},team,vision",
        "2026-11-24 12:00:00,node-1,2026-11-24T12:00:00.250Z,node-1,,,,zone,a",
    ]
    assert len(lines(tmp_path, "gpu_metrics")) == 1


def test_the_store_holds_what_the_files_say(tmp_path: Path) -> None:
    one = full_sample(
        pods=[pod(labels={"team": "vision", "empty": ""}), {"process_name": "Xorg", "held": False}, {}],
        node_labels={"zone": "a"},
    )
    with serving(settings_for(tmp_path)) as client:
        client.post(PATH, json=one).raise_for_status()
        client.post("/api/gpu/list").raise_for_status()  # loads what is there
        text = client.get("/metrics").text
        for trouble in ("csv_files_unreadable", "csv_lines_damaged_total", "store_behind"):
            assert f"gpumon_server_{trouble} 0.0" in text
    instant = datetime(2026, 11, 24, 12, 0, 0, 250_000)
    assert in_sql(
        tmp_path,
        "SELECT sampled_at, pod, process_name, held, memory_used, gpu_utilization, file FROM hot_pod_usage",
    ) == [
        (instant, "train-0", None, True, 19_000.5, 50.0, f"pod_usage_{DAY}.csv"),
        (instant, None, "Xorg", False, None, 50.0, f"pod_usage_{DAY}.csv"),
        (instant, None, None, None, None, 50.0, f"pod_usage_{DAY}.csv"),
    ]
    assert in_sql(tmp_path, "SELECT sampled_at, client_name, pod, label, value, file FROM pod_labels") == [
        (instant, "node-1", "train-0", "team", "vision", f"pods_{DAY}.csv"),
        (instant, "node-1", "train-0", "empty", None, f"pods_{DAY}.csv"),
        (instant, "node-1", None, "zone", "a", f"pods_{DAY}.csv"),
    ]
    assert in_sql(tmp_path, "SELECT count(*) FROM hot_samples") == [(1,)]


def test_nothing_changes_for_a_client_that_tells_of_no_pods(tmp_path: Path) -> None:
    post(
        tmp_path,
        sample(),
        full_sample(gpu_id=1),
        sample(timestamp="2026-11-24 11:00:00"),
        sample(gpu_name='a,"b"'),
    )
    unknown = "," * (len(CSV_COLUMNS) - 14)
    assert [path.name for path in tmp_path.glob("*.csv")] == [f"gpu_metrics_{DAY}.csv"]
    assert (tmp_path / f"gpu_metrics_{DAY}.csv").read_text() == "".join(
        f"{line}\n"
        for line in (
            ",".join(CSV_COLUMNS),
            "2026-11-24 12:00:00,0,NVIDIA H100 80GB HBM3,50.0,20.0,80000,20000,60000,60,400.5,700.0,,node-1,"
            f"2026-11-24T12:00:00.000Z{unknown}",
            "2026-11-24 12:00:00,1,NVIDIA H100 80GB HBM3,50.0,20.0,80000,20000,60000,60,400.5,700.0,,node-1,"
            "2026-11-24T12:00:00.250Z,5.0,,GPU-8f0c1d3e-0000-0000-0000-000000000001,,,,,1980,,123456789"
            + "," * (CSV_COLUMNS.index("state") - CSV_COLUMNS.index("energy_mj"))
            + "ok"
            + "," * (len(CSV_COLUMNS) - 1 - CSV_COLUMNS.index("state")),
            "2026-11-24 11:00:00,0,NVIDIA H100 80GB HBM3,50.0,20.0,80000,20000,60000,60,400.5,700.0,,node-1,"
            f"2026-11-24T11:00:00.000Z{unknown}",
            '2026-11-24 12:00:00,0,"a,""b""",50.0,20.0,80000,20000,60000,60,400.5,700.0,,node-1,'
            f"2026-11-24T12:00:00.000Z{unknown}",
        )
    )


names = st.none() | st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,20}[a-z0-9])?", fullmatch=True)
label_texts = st.just("") | printable
any_pod = st.fixed_dictionaries(
    {
        field.name: st.none() | st.sampled_from(field.choices)
        if field.choices
        else st.none() | st.booleans()
        if field.kind == "bool"
        else names
        if field.kubernetes_name
        else st.none() | printable
        if field.kind == "text"
        else st.none() | number(field.kind, field.low or 0, field.high or 0)
        for field in USE_FIELDS
    }
)


@given(any_pod, st.dictionaries(printable, label_texts, max_size=4))
def test_what_is_written_is_read_back_the_same(use: dict[str, Any], labels: dict[str, str]) -> None:
    accepted = accepted_of(sample(pods=[use], node_labels=labels))
    assert accepted.faults.found == []
    (cells,) = (row for table, *_, row in accepted.rows if table is POD_USAGE)
    text = (POD_USAGE.header + render([cells])).decode()
    assert text.count("\n") == 2
    (read,) = csv.DictReader(io.StringIO(text, newline=""))
    casts = {"int": int, "float": float, "text": str, "bool": {"true": True, "false": False}.get}
    for field in USE_FIELDS:
        assert (casts[field.kind](read[field.name]) if read[field.name] else None) == use[field.name], field.name
    rows, _ = KnownLabels().fresh(accepted.labels)
    text = (POD_LABELS.header + render([row for *_, row in rows])).decode()
    assert {r["label"]: r["value"] for r in csv.DictReader(io.StringIO(text, newline=""))} == labels


def test_a_sample_decoded_one_by_one_is_stored_like_any_other(tmp_path: Path) -> None:
    good = full_sample(pods=[pod(labels={"team": "a"})], node_labels={"zone": "b"})
    whole = accepted_of(good)
    beside_a_bad_one = accepted_of(good, sample(gpu_id=-1))
    assert beside_a_bad_one.faults.failed == 1
    assert (beside_a_bad_one.rows, beside_a_bad_one.labels) == (whole.rows, whole.labels)
    assert msgspec.json.encode(whole.labels[0].labels) == b'{"team":"a"}'


# --- all or nothing, once


def test_when_a_later_file_takes_no_more_nothing_of_the_commit_stays_and_its_labels_are_not_taken_for_written(
    tmp_path: Path,
) -> None:
    batch = BatchId("n", "b", 1)
    large = sample(pods=[pod(pod=f"p-{n}", labels={"team": f"t-{n}"}) for n in range(60)])
    with opened(tmp_path) as log:
        store(log, sample(pods=[pod(labels={"team": "first"})]))
        before = {path.name: path.read_bytes() for path in tmp_path.glob("*.csv")}
        assert len(before) == 3
        with largest_file(4000), pytest.raises(StorageError, match="can't write to"):
            store(log, large, batch=batch)  # its sample fits, its pods don't
        assert {path.name: path.read_bytes() for path in tmp_path.glob("*.csv")} == before
        store(log, large, batch=batch)
    assert len(lines(tmp_path, "gpu_metrics")) == 2
    assert len(lines(tmp_path, "pod_usage")) == 61
    assert [row["value"] for row in lines(tmp_path, "pods")] == ["first", *(f"t-{n}" for n in range(60))]


def test_when_only_the_journal_fails_no_file_keeps_anything_and_the_labels_come_with_the_next_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    labelled = sample(pods=[pod(labels={"team": "new"})], node_labels={"zone": "a"})
    with opened(tmp_path) as log:
        store(log, sample(pods=[pod(labels={"team": "old"})]))
        before = {path.name: path.read_bytes() for path in tmp_path.glob("*.csv")}
        with monkeypatch.context() as patch:
            patch.setattr("gpumon.server.journal.sync_file", full)
            with pytest.raises(StorageError):
                store(log, labelled)
        assert {path.name: path.read_bytes() for path in tmp_path.glob("*.csv")} == before
        for _ in range(2):
            store(log, labelled)
    assert [row["value"] for row in lines(tmp_path, "pods")] == ["old", "new", "a"]


def test_a_batch_that_comes_again_adds_nothing_to_any_file(tmp_path: Path) -> None:
    body = [sample(gpu_id=gpu, pods=[pod(labels={"team": "a"})]) for gpu in range(3)]
    for _ in range(2):
        with serving(settings_for(tmp_path)) as client:
            for _ in range(3):
                client.post(PATH, json=body, headers={"Gpumon-Batch": "n/b/1"}).raise_for_status()
    assert [len(lines(tmp_path, prefix)) for prefix in ("gpu_metrics", "pod_usage", "pods")] == [3, 3, 1]
    assert in_sql(tmp_path, "SELECT count(*) FROM hot_pod_usage") == [(3,)]


@pytest.mark.parametrize("prefix", ["gpu_metrics", "pod_usage", "pods"])
@pytest.mark.parametrize("torn", [True, False])
def test_what_a_crash_leaves_behind_the_last_commit_is_set_aside_in_every_file(
    tmp_path: Path, prefix: str, torn: bool
) -> None:
    crashed(tmp_path, accepted_of(labelled("24 10", team="a")))
    path = tmp_path / f"{prefix}_{DAY}.csv"
    whole = path.read_bytes()
    cut = whole.splitlines(keepends=True)[-1][: -5 if torn else None]
    path.write_bytes(whole + cut)
    with opened(tmp_path):
        assert path.read_bytes() == whole
    aside = list((tmp_path / ".gpumon" / "quarantine").iterdir())
    assert [file.read_bytes() for file in aside] == [cut]


@pytest.mark.timeout(240)
def test_after_kill_9_under_load_every_file_has_what_was_acknowledged_once(tmp_path: Path) -> None:
    chance = random.Random(11)
    port = free_port()
    acknowledged: set[int] = set()
    pending: list[int] = []
    numbers = iter(range(1, 10**9))
    lock = threading.Lock()

    def deliver(client: httpx.Client, number: int) -> None:
        """The batch's number is in memory_used, and in the name and label of both of its pods."""
        pods = [
            pod(pod=f"p-{number}", container=c, labels={"number": str(number), "team": "a"}) for c in ("x", "y")
        ]
        client.post(
            f"http://127.0.0.1:{port}{PATH}",
            json=[sample(memory_used=number, pods=pods)],
            headers={"Gpumon-Batch": f"node/boot/{number}"},
        ).raise_for_status()

    def sender(stop: threading.Event, enough: threading.Event, quota: int) -> None:
        with httpx.Client(timeout=10, trust_env=False) as client:
            while not stop.is_set():
                with lock:
                    number = pending.pop() if pending else next(numbers)
                try:
                    deliver(client, number)
                except httpx.HTTPError:
                    with lock:
                        pending.append(number)
                    if stop.wait(0.01):
                        return
                    continue
                with lock:
                    acknowledged.add(number)
                    if len(acknowledged) >= quota:
                        enough.set()

    with processes.server(tmp_path, port) as server:
        for _ in range(4):
            server.start()
            stop, enough = threading.Event(), threading.Event()
            quota = len(acknowledged) + chance.randrange(20, 150)
            with ThreadPoolExecutor(4) as pool:
                for _ in range(4):
                    pool.submit(sender, stop, enough, quota)
                assert enough.wait(60)
                server.end(signal.SIGKILL)
                stop.set()
        server.start()
        with httpx.Client(timeout=20, trust_env=False) as client:
            while pending:
                acknowledged.add(pending[-1])
                deliver(client, pending.pop())
            client.post(f"http://127.0.0.1:{port}/api/gpu/list").raise_for_status()
        server.end(signal.SIGTERM)

    assert Counter(int(row["memory_used"]) for row in lines(tmp_path, "gpu_metrics")) == Counter(acknowledged)
    used = Counter((row["pod"], row["container"]) for row in lines(tmp_path, "pod_usage"))
    assert used == Counter((f"p-{n}", c) for n in acknowledged for c in ("x", "y"))
    labelled = Counter((row["pod"], row["label"], row["value"]) for row in lines(tmp_path, "pods"))
    assert labelled == Counter(
        (f"p-{n}", label, value) for n in acknowledged for label, value in (("number", str(n)), ("team", "a"))
    )
    for table, rows in (("hot_samples", 1), ("hot_pod_usage", 2), ("pod_labels", 2)):
        assert in_sql(tmp_path, f"SELECT count(*) FROM {table}") == [(rows * len(acknowledged),)]


# --- labels


def values(folder: Path) -> list[tuple[str, str, str]]:
    return [(row["timestamp"][8:13], row["label"], row["value"]) for row in lines(folder, "pods")]


def labelled(at: str, **labels: str) -> dict[str, Any]:
    return sample(timestamp=f"2026-11-{at}:00:00", pods=[pod(labels=labels)])


def test_a_label_is_written_once_a_day_and_when_it_has_changed(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        store(log, labelled("23 10", team="a", app="x"), labelled("23 10", team="a", app="x"))
        store(log, labelled("23 11", team="a", app="x"))
        store(log, labelled("23 12", team="b", app="x"))
        store(log, labelled("23 13", team="b", app="x", new="n"))
        store(log, labelled("23 14", team="b"))
        store(log, labelled("23 15", team="b", app="x", new="n"))
        store(log, labelled("24 00", team="b"))
        store(log, labelled("23 16", team="b"), labelled("24 01", team="b"), labelled("24 02", team="a"))
    assert values(tmp_path) == [
        ("23 10", "team", "a"),
        ("23 10", "app", "x"),
        ("23 12", "team", "b"),
        ("23 13", "new", "n"),
        ("24 00", "team", "b"),
        ("24 02", "team", "a"),
    ]


def test_labels_are_each_pods_and_each_nodes_own(tmp_path: Path) -> None:
    team = {"team": "a"}
    pods = [pod(labels=team), pod(pod="p-2", pod_uid="u-2", labels=team), pod(namespace="other", labels=team)]
    with opened(tmp_path) as log:
        for _ in range(2):
            store(
                log,
                sample(pods=pods, node_labels=team),
                sample(gpu_id=1, pods=pods, node_labels=team),
                sample(client_name="node-2", pods=pods[:1], node_labels=team),
            )
    assert Counter((row["client_name"], row["namespace"], row["pod"]) for row in lines(tmp_path, "pods")) == {
        ("node-1", "research", "train-0"): 1,
        ("node-1", "research", "p-2"): 1,
        ("node-1", "other", "train-0"): 1,
        ("node-1", "", ""): 1,
        ("node-2", "research", "train-0"): 1,
        ("node-2", "", ""): 1,
    }


def test_a_restart_writes_a_label_at_most_once_more(tmp_path: Path) -> None:
    for _ in range(2):
        with opened(tmp_path) as log:
            for hour in (10, 11):
                store(log, labelled(f"24 {hour}", team="a"))
    assert values(tmp_path) == [("24 10", "team", "a")] * 2


def test_labels_whose_file_was_taken_away_are_written_again(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        store(log, labelled("24 10", team="a"))
        (tmp_path / f"pods_{DAY}.csv").unlink()
        store(log, labelled("24 11", team="a"))
    assert values(tmp_path) == [("24 11", "team", "a")]


def test_what_is_remembered_of_labels_is_bounded_and_the_newest_days_stay() -> None:
    known = KnownLabels(most_owners=50)
    for day in (22, 23, 24):
        pods = [pod(pod=f"p-{n}", labels={"team": "a"}) for n in range(20)]
        rows, news = known.fresh(accepted_of(sample(timestamp=f"2026-11-{day} 10:00:00", pods=pods)).labels)
        assert len(rows) == 20
        known.remember(news, [])
    fresh = {
        day: len(known.fresh(accepted_of(sample(timestamp=f"2026-11-{day} 11:00:00", pods=pods)).labels)[0])
        for day in (22, 23, 24)
    }
    assert fresh == {22: 20, 23: 0, 24: 0}
