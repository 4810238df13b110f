"""What operators see: the root, health, metrics, documentation, and errors off the beaten track."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.processes import until
from tests.samples import full_sample, sample
from tests.server.conftest import Serve

JSON = {"Content-Type": "application/json"}


def test_the_root_says_what_this_is_and_sends_a_browser_on(serve: Serve) -> None:
    client = serve()
    assert client.get("/").json()["message"] == "NVIDIA GPU Metrics API"
    browser = client.get("/", headers={"Accept": "text/html,*/*"})
    assert (browser.status_code, browser.headers["location"]) == (307, "/docs")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/", 405),
        ("GET", "/api/receive-data", 405),
        ("PUT", "/api/gpu/list", 405),
    ],
)
def test_unknown_paths_and_methods_answer_in_the_envelope(
    serve: Serve, method: str, path: str, status: int
) -> None:
    answer = serve().request(method, path)
    assert answer.status_code == status
    assert answer.json()["error_code"] == f"HTTP_{status}"
    assert path in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"start_date": "24.11.2026", "end_date": "2026-11-24"}, "YYYY-MM-DD"),
        ({"start_date": "2026-11-24T00:00:00", "end_date": "2026-11-24"}, "YYYY-MM-DD"),
        ({"start_date": 20261124, "end_date": "2026-11-24"}, "YYYY-MM-DD"),
        ({"start_date": "2026-11-24", "end_date": "2026-11-23"}, "after"),
        ({"start_date": "2020-01-01", "end_date": "2026-11-23"}, "max_range_days"),
        ({"start_date": "2026-11-24"}, "end_date"),
        ({"start_date": None, "end_date": "2026-11-24"}, "YYYY-MM-DD"),
        ({"start_date": "2026-W48-2", "end_date": "2026-11-24"}, "YYYY-MM-DD"),
        (["2026-11-24"], "JSON object"),
        ({"start_date": "2026-11-24", "end_date": "2026-11-24", "gpu_id": "x"}, "gpu_id"),
    ],
)
@pytest.mark.parametrize("name", ["hourly-usage", "daily-usage"])
def test_a_question_that_can_not_be_is_422_with_a_sentence(
    serve: Serve, name: str, body: object, word: str
) -> None:
    answer = serve().post(f"/api/gpu/{name}", json=body)
    assert answer.status_code == 422
    assert answer.json()["error_code"] == "VALIDATION_ERROR"
    assert word in answer.json()["detail"]
    assert word in answer.json()["errors"][0]["msg"] or word in answer.json()["errors"][0]["loc"]


def test_a_question_without_a_content_type_is_json(serve: Serve) -> None:
    client = serve()
    client.post("/api/receive-data", content=json.dumps(sample())).raise_for_status()
    for name in ("statistics", "realtime", "list"):
        answer = client.post(f"/api/gpu/{name}", content=b"{}")
        assert "content-type" not in answer.request.headers
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "asked",
    [
        {"gpu_id": -1},
        {"gpu_id": 10**40},
        {"client_name": "\ud800"},
        {"client_name": "x" * 100_000},
        {"client_name": "'; DROP TABLE samples; --"},
        {"end_date": "9999-12-31"},
        {"start_date": "0001-01-01"},
        {"start_date": "9998-01-01"},
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_unknown_filter_or_an_odd_range_is_no_error(serve: Serve, asked: dict[str, object]) -> None:
    client = serve(server={"timezone": "Asia/Taipei"})
    client.post("/api/receive-data", json=sample()).raise_for_status()
    for name in ("statistics", "realtime", "list"):
        answer = client.post(f"/api/gpu/{name}", content=json.dumps(asked), headers=JSON)
        assert answer.status_code == 200, answer.text


def test_an_empty_client_name_is_all_clients(serve: Serve) -> None:
    client = serve()
    client.post("/api/receive-data", json=sample()).raise_for_status()
    assert client.post("/api/gpu/statistics", json={"client_name": ""}).json()["data"]["samples"] == 1


@pytest.mark.parametrize("content", [b"{", b"\xff", b"", b"[" * 100_000, gzip.compress(b"{}", mtime=0)])
def test_a_query_body_that_is_no_json_is_4xx_in_the_envelope(serve: Serve, content: bytes) -> None:
    answer = serve().post("/api/gpu/hourly-usage", content=content, headers=JSON)
    assert 400 <= answer.status_code < 500
    assert answer.json()["success"] is False
    assert len(answer.json()["detail"]) > 10


def test_load_balancers_may_ask_by_head(serve: Serve) -> None:
    client = serve()
    for path in ("/", "/health", "/ready"):
        assert client.head(path).status_code == 200


def test_an_empty_store_answers_with_filled_zeros_and_coverage_0(serve: Serve) -> None:
    client = serve()
    statistics = client.post("/api/gpu/statistics").json()["data"]
    assert (statistics["period_average"], statistics["coverage"], statistics["samples"]) == (0.0, 0.0, 0)
    realtime = client.post("/api/gpu/realtime").json()["data"]
    assert (realtime["scope"], realtime["utilization_gpu"], realtime["temperature"]) == ("no_data", 0.0, 0)
    assert client.post("/api/gpu/list").json()["data"] == []


def test_scope_names_what_was_asked_for(serve: Serve) -> None:
    client = serve()
    client.post("/api/receive-data", json=sample()).raise_for_status()

    def scope(**body: object) -> str:
        return str(client.post("/api/gpu/realtime", json=body).json()["data"]["scope"])

    assert scope() == "all_clients_all_gpus"
    assert scope(client_name="node-1") == "single_client_all_gpus"
    assert scope(gpu_id=0) == "all_clients_single_gpu"
    assert scope(gpu_id=0, client_name="node-1") == "single_client_single_gpu"
    assert scope(gpu_id=9) == "no_recent_data"


def test_a_gpu_without_a_recent_sample_is_stale(serve: Serve) -> None:
    client = serve()
    client.post("/api/receive-data", json=sample(timestamp="2026-11-20 12:00:00")).raise_for_status()
    assert client.post("/api/gpu/list").json()["data"][0]["status"] == "stale"
    fresh = serve_now_sample()
    client.post("/api/receive-data", json=fresh).raise_for_status()
    assert client.post("/api/gpu/list").json()["data"][0]["status"] == "active"


def serve_now_sample() -> dict[str, object]:
    from gpumon.clock import now, to_wire

    return sample(timestamp=to_wire(now()))


def test_metrics_have_the_servers_figures_and_a_fresh_gpus_readings_in_base_units(serve: Serve) -> None:
    from gpumon.clock import now, to_wire

    client = serve()
    at = to_wire(now())
    client.post("/api/receive-data", json=full_sample(timestamp=at, sampled_at=at)).raise_for_status()
    client.post("/api/receive-data", json=sample(gpu_id=-1))
    text = client.get("/metrics").text
    gpu = {"gpu": "0", "name": "NVIDIA H100 80GB HBM3", "node": "node-1",
           "uuid": "GPU-8f0c1d3e-0000-0000-0000-000000000001"}  # fmt: skip
    received = {"method": "POST", "route": "/api/receive-data"}
    found = {
        (s.name, frozenset(s.labels.items())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }
    for name, labels, value in (
        ("gpumon_gpu_utilization_ratio", gpu, 0.5),
        ("gpumon_gpu_memory_used_bytes", gpu, 20_000 * 2**20),
        ("gpumon_gpu_energy_joules_total", gpu, 123456.789),
        ("gpumon_gpu_state", gpu | {"state": "ok"}, 1),
        ("gpumon_gpu_state", gpu | {"state": "lost"}, 0),
        ("gpumon_server_rows_stored_total", {}, 1),
        ("gpumon_server_rows_refused_total", {}, 1),
        ("gpumon_server_storage_ok", {}, 1),
        ("gpumon_server_request_seconds_count", received | {"status": "200"}, 1),
        ("gpumon_server_request_seconds_count", received | {"status": "422"}, 1),
    ):
        assert found[name, frozenset(labels.items())] == value, name
    assert "gpumon_gpu_fan_speed_ratio{" not in text, "absent is no line"
    assert not re.search(r" (nan|NaN)$", text, re.MULTILINE)


def test_names_in_the_metrics_are_what_they_were_sent_as(serve: Serve) -> None:
    client = serve()
    name = 'GPU "of\\n" C:\\Temp, {a="b"}'
    client.post("/api/receive-data", json=serve_now_sample() | {"gpu_name": name}).raise_for_status()
    found = {
        s.labels["name"]
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for s in family.samples
        if s.name == "gpumon_gpu_power_watts"
    }
    assert found == {name}


def test_the_documentation_needs_no_other_host(serve: Serve) -> None:
    client = serve()
    for page in ("/docs", "/redoc"):
        text = client.get(page).text
        for source in re.findall(r'(?:src|href)="([^"]+)"', text):
            if source.startswith("http"):
                assert "fonts.googleapis" in source, source
            elif not source.startswith("data:"):
                assert client.get(source).status_code == 200, source


def test_every_endpoint_is_documented_with_summary_description_and_examples(serve: Serve) -> None:
    document = serve().get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], path
            assert operation["description"], path
            if method == "post":
                assert operation["requestBody"], path
    text = str(document)
    for word in ("coverage", "Unit: MiB", "gpu-node-a", "Gpumon-Batch"):
        assert word in text


def test_cors_is_off_unless_it_is_asked_for(serve: Serve) -> None:
    asked = {"Origin": "https://ui.example"}
    assert "access-control-allow-origin" not in serve().get("/health", headers=asked).headers


def test_cors_opens_to_the_origins_that_are_named(serve: Serve) -> None:
    client = serve(server={"cors_origins": "https://ui.example, https://other.example"})
    answer = client.get("/health", headers={"Origin": "https://ui.example"})
    assert answer.headers["access-control-allow-origin"] == "https://ui.example"
    stranger = client.get("/health", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in stranger.headers


def test_a_folder_that_takes_no_files_is_said_in_health_and_heals_without_a_restart(
    serve: Serve, tmp_path: Path
) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    client = serve()
    health = client.get("/health")
    assert health.status_code == 503
    assert "[STORAGE] output_directory" in health.json()["reasons"][0]
    refused = client.post("/api/receive-data", json=sample())
    assert (refused.status_code, refused.json()["error_code"]) == (503, "HTTP_503")
    assert int(refused.headers["retry-after"]) > 0
    assert client.post("/api/gpu/list").status_code == 503
    assert client.get("/ready").status_code == 503
    (tmp_path / "data").unlink()
    assert until(lambda: client.get("/health").status_code == 200)
    client.post("/api/receive-data", json=sample()).raise_for_status()
