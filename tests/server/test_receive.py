"""What clients may send, good and bad, over real HTTP."""

from __future__ import annotations

import csv
import gzip
import json
import math
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpumon.model.fields import CSV_COLUMNS, SEED_COLUMNS
from gpumon.server.decode import MAX_OBJECTS, MAX_VALUES
from gpumon.server.settings import Limits
from tests.samples import full_sample, pod, sample
from tests.server.conftest import Serve

PATH = "/api/receive-data"
JSON = {"Content-Type": "application/json"}


def stored(folder: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    for path in sorted((folder / "data").glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows += csv.DictReader(file)
    return rows


def assert_error(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    body: dict[str, Any] = answer.json()
    assert answer.status_code == status, answer.text
    assert body["success"] is False
    assert body["error_code"] == code
    assert body["detail"]
    return body


def test_one_sample_and_a_list_of_them_are_stored(serve: Serve, tmp_path: Path) -> None:
    client = serve()
    one = client.post(PATH, json=sample())
    assert one.status_code == 200
    assert {k: one.json()[k] for k in ("success", "received_count", "failed_count")} == {
        "success": True,
        "received_count": 1,
        "failed_count": 0,
    }
    assert client.post(PATH, json=[sample(gpu_id=1), sample(gpu_id=2)]).json()["received_count"] == 2
    assert [row["gpu_id"] for row in stored(tmp_path)] == ["0", "1", "2"]


def test_the_file_begins_with_the_old_programs_columns(serve: Serve, tmp_path: Path) -> None:
    serve().post(PATH, json=full_sample(timestamp="2026-11-24T12:00:00.250Z"))
    header, line = (tmp_path / "data" / "gpu_metrics_20261124.csv").read_text().splitlines()
    assert tuple(header.split(",")) == CSV_COLUMNS
    assert CSV_COLUMNS[:13] == SEED_COLUMNS
    assert line.startswith(
        "2026-11-24 12:00:00,0,NVIDIA H100 80GB HBM3,50.0,20.0,80000,20000,60000,60,400.5,700.0,,node-1,"
        "2026-11-24T12:00:00.250Z,5.0,,GPU-"
    )


def test_null_is_allowed_in_every_reading_and_stays_absent(serve: Serve, tmp_path: Path) -> None:
    readings = dict.fromkeys(SEED_COLUMNS[3:12])
    assert serve().post(PATH, json=sample(**readings)).status_code == 200
    assert [stored(tmp_path)[0][name] for name in SEED_COLUMNS[3:12]] == [""] * 9


def test_unknown_fields_are_ignored(serve: Serve) -> None:
    assert serve().post(PATH, json=sample(pods=[{"pod": "x"}], new={"deep": [1]})).status_code == 200


def test_a_whole_number_written_as_a_float_is_taken(serve: Serve, tmp_path: Path) -> None:
    assert serve().post(PATH, json=sample(memory_total=81559.0)).status_code == 200
    assert stored(tmp_path)[0]["memory_total"] == "81559"


def test_one_bad_sample_does_not_spoil_a_batch(serve: Serve, tmp_path: Path) -> None:
    answer = serve().post(PATH, json=[sample(), sample(gpu_id=1, utilization_gpu=37100), sample(gpu_id=2)])
    assert answer.status_code == 200
    body = answer.json()
    assert (body["received_count"], body["failed_count"]) == (2, 1)
    assert body["errors"] == [{"index": 1, "loc": ["utilization_gpu"], "msg": "must be at most 100"}]
    assert [row["gpu_id"] for row in stored(tmp_path)] == ["0", "2"]


LONG = "1" * 5000
"""An integer that neither msgspec nor Python converts."""


def body_of(*entries: dict[str, Any] | str) -> bytes:
    """A list of these, texts as they are; a field whose value is LONG has the integer."""
    texts = (entry if isinstance(entry, str) else json.dumps(entry) for entry in entries)
    return f"[{','.join(texts)}]".replace(f'"{LONG}"', LONG).encode()


NO_SAMPLE = "must be a sample object; leave the entry out where there is no sample"
BAD_ENTRIES: list[tuple[dict[str, Any] | str, list[str], str]] = [
    ("null", [], NO_SAMPLE),
    ("7", [], NO_SAMPLE),
    ('"x"', [], NO_SAMPLE),
    ("[]", [], NO_SAMPLE),
    (LONG, [], NO_SAMPLE),
    (sample(gpu_id=LONG), ["gpu_id"], "must be at most 65535"),
    (sample(power_draw=LONG), ["power_draw"], "must be at most 100000"),
    (sample(gpu_name=LONG), ["gpu_name"], "must be text, not a whole number"),
    (sample(pod="caf\udce9"), ["pod"], "is not a Kubernetes name (letters, digits, '-', '_' and '.')"),
]


@pytest.mark.parametrize(("entry", "loc", "msg"), BAD_ENTRIES, ids=lambda value: str(value)[:40])
def test_a_bad_entry_of_the_list_is_refused_by_itself(
    serve: Serve, tmp_path: Path, entry: dict[str, Any] | str, loc: list[str], msg: str
) -> None:
    answer = serve().post(PATH, content=body_of(sample(), entry, sample(gpu_id=2)), headers=JSON)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["received_count"], body["failed_count"]) == (2, 1)
    assert body["errors"] == [{"index": 1, "loc": loc, "msg": msg}]
    assert [row["gpu_id"] for row in stored(tmp_path)] == ["0", "2"]


def test_a_list_of_bad_entries_only_is_refused_with_the_first_of_them(serve: Serve) -> None:
    body = assert_error(serve().post(PATH, content=b"[null, 7]", headers=JSON), 422, "VALIDATION_ERROR")
    assert body["detail"] == f"no sample could be stored; sample 0: it {NO_SAMPLE}"
    assert [error["index"] for error in body["errors"]] == [0, 1]


@pytest.mark.parametrize(
    ("fields", "column", "kept"),
    [
        ({"gpu_name": "caf\udce9 \ud800"}, "gpu_name", "caf\ufffd \ufffd"),
        ({"gpu_name": "\U0001f680 \udce9"}, "gpu_name", "\U0001f680 \ufffd"),
        ({"new": "caf\udce9"}, "gpu_name", "NVIDIA H100 80GB HBM3"),
        ({"caf\udce9": ["caf\udce9", {"caf\udce9": 1}]}, "gpu_name", "NVIDIA H100 80GB HBM3"),
        ({"pods": [pod(owner_kind="caf\udce9")]}, "owner_kind", "caf\ufffd"),
        ({"pods": [pod(labels={"team": "caf\udce9"})]}, "value", "caf\ufffd"),
        ({"node_labels": {"caf\udce9": "a"}}, "label", "caf\ufffd"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_lone_surrogate_spoils_nothing_and_is_stored_as_the_sign_for_what_could_not_be_read(
    serve: Serve, tmp_path: Path, fields: dict[str, Any], column: str, kept: str
) -> None:
    answer = serve().post(PATH, content=body_of(sample(), sample(gpu_id=1, **fields)), headers=JSON)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["received_count"], answer.json().get("left_out_count", 0)) == (2, 0)
    assert kept in {row.get(column) for row in stored(tmp_path)}


def test_an_integer_of_any_length_in_an_unknown_field_is_ignored(serve: Serve, tmp_path: Path) -> None:
    mixed = body_of(sample(new=LONG), sample(gpu_id=-1), sample(gpu_id=2, new={"deep": [LONG]}))
    answer = serve().post(PATH, content=mixed, headers=JSON)
    assert answer.status_code == 200, answer.text
    assert [row["gpu_id"] for row in stored(tmp_path)] == ["0", "2"]


BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"utilization_gpu": 37100}, "utilization_gpu"),
    ({"utilization_gpu": -1}, "utilization_gpu"),
    ({"utilization_gpu": 1e999}, "utilization_gpu"),
    ({"utilization_gpu": "50"}, "utilization_gpu"),
    ({"utilization_gpu": True}, "utilization_gpu"),
    ({"utilization_gpu": [50]}, "utilization_gpu"),
    ({"memory_used": -5}, "memory_used"),
    ({"memory_used": 10**30}, "memory_used"),
    ({"temperature": 60.5}, "temperature"),
    ({"power_draw": 1e9}, "power_draw"),
    ({"gpu_id": -1}, "gpu_id"),
    ({"gpu_id": None}, "gpu_id"),
    ({"client_name": None}, "client_name"),
    ({"client_name": ""}, "client_name"),
    ({"client_name": "x" * 10_000}, "client_name"),
    ({"client_name": "a\nb"}, "client_name"),
    ({"client_name": "a\rb"}, "client_name"),
    ({"client_name": "a\x00b"}, "client_name"),
    ({"client_name": "a\u2028b"}, "client_name"),
    ({"client_name": "=cmd()"}, "client_name"),
    ({"gpu_name": "@SUM(A1)"}, "gpu_name"),
    ({"pod": "=cmd()"}, "pod"),
    ({"pod": "a,b"}, "pod"),
    ({"pod": 'a"b'}, "pod"),
    ({"pod": "a\nb"}, "pod"),
    ({"state": "fine"}, "state"),
    ({"timestamp": "yesterday"}, "timestamp"),
    ({"timestamp": "2026-11-24"}, "timestamp"),
    ({"timestamp": "2026-13-24 12:00:00"}, "timestamp"),
    ({"timestamp": 1795541603}, "timestamp"),
    ({"timestamp": "2999-01-01 00:00:00"}, "timestamp"),
    ({"timestamp": "0001-01-01 00:00:00"}, "timestamp"),
    ({"timestamp": "9999-12-31 23:59:59"}, "timestamp"),
    ({"sampled_at": "0001-01-01T00:00:00+23:59"}, "sampled_at"),
]


@pytest.mark.parametrize(("fields", "culprit"), BAD_FIELDS, ids=lambda value: str(value)[:40])
def test_a_bad_value_is_refused_with_its_field_and_a_sentence(
    serve: Serve, tmp_path: Path, fields: dict[str, Any], culprit: str
) -> None:
    client = serve(limits={"accept_past_days": 400})
    body = assert_error(
        client.post(PATH, content=json.dumps(sample(**fields)).replace("Infinity", "1e999"), headers=JSON),
        422,
        "VALIDATION_ERROR",
    )
    assert culprit in body["errors"][0]["loc"]
    assert body["errors"][0]["msg"]
    assert stored(tmp_path) == []


@pytest.mark.parametrize("name", SEED_COLUMNS)
def test_identity_is_required_and_readings_are_not(serve: Serve, name: str) -> None:
    without = {key: value for key, value in sample().items() if key != name}
    needed = name in ("timestamp", "gpu_id", "gpu_name", "client_name")
    answer = serve().post(PATH, json=without)
    assert answer.status_code == (422 if needed else 200)
    if needed:
        assert answer.json()["errors"] == [{"index": 0, "loc": [name], "msg": "is required"}]


BAD_BODIES: list[tuple[str, bytes, dict[str, str], int, str]] = [
    ("empty", b"", JSON, 422, "VALIDATION_ERROR"),
    ("empty list", b"[]", JSON, 422, "VALIDATION_ERROR"),
    ("cut off", b'[{"timestamp": "2026', JSON, 422, "VALIDATION_ERROR"),
    ("a number", b"7", JSON, 422, "VALIDATION_ERROR"),
    ("a string", b'"x"', JSON, 422, "VALIDATION_ERROR"),
    ("list of numbers", b"[1, 2]", JSON, 422, "VALIDATION_ERROR"),
    ("not UTF-8", b'[{"client_name": "\xff\xfe"}]', JSON, 422, "VALIDATION_ERROR"),
    ("lone surrogate", b'[{"client_name": "\\ud800"}]', JSON, 422, "VALIDATION_ERROR"),
    ("nested too deep", b"[" * 200_000, JSON, 422, "VALIDATION_ERROR"),
    ("form", b"a=1", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "HTTP_415"),
    ("text", b"[]", {"Content-Type": "text/plain"}, 415, "HTTP_415"),
    ("brotli", b"[]", JSON | {"Content-Encoding": "br"}, 415, "HTTP_415"),
    ("not gzip", b"[]", JSON | {"Content-Encoding": "gzip"}, 400, "HTTP_400"),
    ("torn gzip", gzip.compress(b"[]" * 99, mtime=0)[:-9], JSON | {"Content-Encoding": "gzip"}, 400, "HTTP_400"),
    ("gzip and more", gzip.compress(b"[]", mtime=0) + b"x", JSON | {"Content-Encoding": "gzip"}, 400, "HTTP_400"),
    ("gzip bomb", gzip.compress(b" " * 50_000_000, mtime=0), JSON | {"Content-Encoding": "gzip"}, 413, "HTTP_413"),
    ("too large", b" " * 1_500_000, JSON, 413, "HTTP_413"),
    ("bad batch id", b"[]", JSON | {"Gpumon-Batch": "what"}, 400, "HTTP_400"),
]


@pytest.mark.parametrize(("name", "body", "headers", "status", "code"), BAD_BODIES, ids=lambda v: str(v)[:20])
def test_a_bad_body_is_refused_in_the_envelope(
    serve: Serve, tmp_path: Path, name: str, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    client = serve(server={"max_body_mb": 1})
    assert_error(client.post(PATH, content=body, headers=headers), status, code)
    assert client.post(PATH, json=sample()).status_code == 200, f"after {name}"
    assert len(stored(tmp_path)) == 1


def test_what_json_does_not_know_spoils_only_what_it_stands_in(serve: Serve, tmp_path: Path) -> None:
    """`json.dumps` writes NaN and Infinity, and the old program's server read them."""
    samples = [
        sample(gpu_id=0, power_draw=math.nan),
        sample(gpu_id=1, power_draw=math.inf),
        sample(gpu_id=2, power_draw=-math.inf),
        sample(gpu_id=3, unknown=[math.nan, -math.inf]),
        sample(gpu_id=math.nan),
    ]
    answer = serve().post(PATH, content=json.dumps(samples), headers=JSON)
    assert (answer.status_code, answer.json()["received_count"]) == (200, 2)
    assert [(fault["index"], fault["loc"]) for fault in answer.json()["errors"]] == [
        (1, ["power_draw"]),
        (2, ["power_draw"]),
        (4, ["gpu_id"]),
    ]
    assert [(row["gpu_id"], row["power_draw"]) for row in stored(tmp_path)] == [("0", ""), ("3", "400.5")]


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b'["\\ud800",' + b"[" * 190_000, 422, "nested too deeply"),
        (b"[null" + b",null" * MAX_OBJECTS + b"]", 413, "more than 200000 entries"),
        (b'["\\ud800"' + b",1" * (MAX_VALUES + 1) + b"]", 413, "more than 1200000 values"),
    ],
    ids=["depth", "entries", "values"],
)
def test_bodies_that_are_taken_entry_by_entry_are_limited_too(
    serve: Serve, body: bytes, status: int, reason: str
) -> None:
    answer = serve().post(PATH, content=body, headers=JSON)
    assert (answer.status_code, reason in answer.json()["detail"]) == (status, True), answer.text


def test_a_body_of_unknown_length_is_limited_too(serve: Serve) -> None:
    client = serve(server={"max_body_mb": 1})
    assert_error(client.post(PATH, content=iter([b" " * 100_000] * 20), headers=JSON), 413, "HTTP_413")


def test_a_query_body_is_limited_too(serve: Serve) -> None:
    client = serve(server={"max_body_mb": 1})
    too_large = b'{"x": "' + b" " * 1_500_000 + b'"}'
    assert_error(client.post("/api/gpu/list", content=iter([too_large]), headers=JSON), 413, "HTTP_413")
    assert_error(client.post("/api/gpu/list", content=too_large, headers=JSON), 413, "HTTP_413")


def test_names_with_commas_quotes_and_other_scripts_are_kept_as_they_are(serve: Serve, tmp_path: Path) -> None:
    name = 'GPU, "großer" 顯示卡 🚀'
    client = serve()
    assert client.post(PATH, json=sample(gpu_name=name)).status_code == 200
    assert stored(tmp_path)[0]["gpu_name"] == name
    assert client.post("/api/gpu/list").json()["data"][0]["gpu_name"] == name


def test_a_batch_with_an_id_is_stored_once_also_across_a_restart(tmp_path: Path, serve: Serve) -> None:
    from tests.server.conftest import serving, settings_for

    headers = {"Gpumon-Batch": "node-1/boot/7"}
    with serving(settings_for(tmp_path / "data")) as client:
        assert "duplicate" not in client.post(PATH, json=sample(), headers=headers).json()
        assert client.post(PATH, json=sample(), headers=headers).json()["duplicate"] is True
    again = serve().post(PATH, json=sample(), headers=headers)
    assert (again.status_code, again.json()["duplicate"]) == (200, True)
    assert len(stored(tmp_path)) == 1


def test_without_an_id_the_same_sample_twice_is_two_rows(serve: Serve, tmp_path: Path) -> None:
    client = serve()
    for _ in range(2):
        client.post(PATH, json=sample())
    assert len(stored(tmp_path)) == 2


def test_a_row_is_filed_under_its_own_day_not_that_of_its_arrival(serve: Serve, tmp_path: Path) -> None:
    serve().post(PATH, json=[sample(timestamp="2026-11-20 23:59:59"), sample(timestamp="2026-11-21 00:00:00")])
    assert sorted(path.name for path in (tmp_path / "data").glob("*.csv")) == [
        "gpu_metrics_20261120.csv",
        "gpu_metrics_20261121.csv",
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_in_any_of_its_encodings_is_read(serve: Serve, tmp_path: Path, encoding: str) -> None:
    body = json.dumps([sample()], ensure_ascii=False).encode(encoding)
    assert serve().post(PATH, content=body, headers=JSON).json()["received_count"] == 1
    assert len(stored(tmp_path)) == 1


@pytest.mark.parametrize(
    "name", ["實驗室\N{IDEOGRAPHIC SPACE}一號機", "salle\N{NO-BREAK SPACE}2", "👩‍💻", "soft\xadhyphen"]
)
def test_names_in_any_script_are_stored(serve: Serve, tmp_path: Path, name: str) -> None:
    client = serve()
    answer = client.post(PATH, json=sample(client_name=name, gpu_name=name))
    assert answer.json()["received_count"] == 1, answer.text
    assert (stored(tmp_path)[0]["client_name"], stored(tmp_path)[0]["gpu_name"]) == (name, name)
    assert [gpu["client_name"] for gpu in client.post("/api/gpu/list").json()["data"]] == [name]


def test_a_sample_of_years_ago_is_stored_and_one_of_a_clock_that_was_never_set_is_not(
    serve: Serve, tmp_path: Path
) -> None:
    client = serve(limits={"accept_past_days": Limits().accept_past_days})
    samples = [sample(timestamp=f"{year}-06-01 12:00:00") for year in (1970, 2000, 2024)]
    answer = client.post(PATH, json=samples).json()
    assert (answer["received_count"], [fault["index"] for fault in answer["errors"]]) == (1, [0, 1])
