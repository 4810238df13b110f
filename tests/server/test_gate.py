"""Who gets past the gate, over real HTTP: every endpoint, odd paths, large bodies, browsers and pages."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpumon.server.api.gate import Gate
from gpumon.server.app import create_app
from tests.samples import sample
from tests.server.conftest import Serve, settings_for

SEND, READ, WRONG = "send-token-0123456789", "read-token-0123456789", "wrong-token-0123456789"
PATH = "/api/receive-data"
OPEN = ["/", "/health", "/ready", "/docs", "/redoc", "/openapi.json", "/static-offline-docs/swagger-ui.css"]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """The keys of [AUTH] that guard both."""
    for name, token in (("send", SEND), ("read", READ)):
        (tmp_path / name).write_text(f"{token}\n")
    return {"mode": "token", "token_file": str(tmp_path / "send"), "read_token_file": str(tmp_path / "read")}


@pytest.fixture
def guarded(serve: Serve, files: dict[str, str]) -> httpx.Client:
    return serve(auth=files)


def refused(answer: httpx.Response, status: int, says: str) -> dict[str, Any]:
    body: dict[str, Any] = answer.json()
    assert answer.status_code == status, answer.text
    assert body["success"] is False
    assert body["error_code"] == f"HTTP_{status}"
    assert says in body["detail"]
    for token in (SEND, READ, WRONG):
        assert token not in answer.text
    return body


def every_operation(folder: Path) -> set[tuple[str, str]]:
    """Method and path of every route there is, whether or not the documentation has it."""
    found = set()
    for route in create_app(settings_for(folder)).routes:
        included = getattr(route, "original_router", None)
        for one in [route] if included is None else included.routes:
            found |= {(method, one.path) for method in getattr(one, "methods", None) or ()}
    return found


def test_what_has_no_data_is_open_and_everything_else_is_not(guarded: httpx.Client, tmp_path: Path) -> None:
    expected = {(method, path) for path in OPEN for method in ("GET", "HEAD")}
    operations = every_operation(tmp_path / "other") | expected
    documented = guarded.get("/openapi.json").json()["paths"].items()
    assert {(method.upper(), path) for path, methods in documented for method in methods} <= operations
    assert len(operations - expected) >= 15
    passed = {asked for asked in operations if guarded.request(*asked).status_code not in (401, 429)}
    assert passed == expected


def test_a_token_to_send_sends_and_one_to_read_reads(guarded: httpx.Client) -> None:
    assert guarded.post(PATH, json=[sample()], headers=bearer(SEND)).status_code == 200
    assert guarded.get("/api/gpus", headers=bearer(READ)).status_code == 200
    assert guarded.post("/api/gpu/statistics", headers=bearer(READ)).status_code == 200
    assert guarded.get("/metrics", headers=bearer(READ)).status_code == 200
    assert guarded.get("/nowhere", headers=bearer(READ)).status_code == 404
    assert guarded.get("/metrics", headers={"Authorization": f"bearer   {READ}"}).status_code == 200


def test_refusals_say_what_to_do(guarded: httpx.Client) -> None:
    refused(guarded.post(PATH, json=[sample()]), 401, "Authorization: Bearer")
    refused(guarded.post(PATH, json=[sample()], headers=bearer(WRONG)), 401, "[AUTH] token_file")
    refused(guarded.post(PATH, json=[sample()], headers=bearer(READ)), 403, "may read, but not send")
    refused(guarded.get("/api/gpus"), 401, "the token as password")
    refused(guarded.get("/api/gpus", headers=bearer(WRONG)), 401, "[AUTH] read_token_file")
    refused(guarded.get("/api/gpus", headers=bearer(SEND)), 403, "may send samples, but not read")
    assert guarded.get("/api/gpu/statistics", headers=bearer(READ)).status_code != 500


def test_a_browser_and_curl_read_by_the_token_as_password_of_any_name(guarded: httpx.Client) -> None:
    assert guarded.get("/api/gpus", auth=("anybody", READ)).status_code == 200
    assert guarded.get("/api/gpus", auth=("", READ)).status_code == 200
    assert guarded.get("/api/gpus", auth=("anybody", WRONG)).status_code == 401
    assert guarded.get("/api/gpus", auth=(READ, "")).status_code == 401
    for broken in ("Basic", "Basic !!", "Basic YQ==", "Bearer", "Digest x", READ, "Basic ÿ"):
        answer = guarded.get("/api/gpus", headers={"Authorization": broken.encode("latin-1")})
        assert answer.status_code == 401, broken
    assert guarded.post(PATH, json=[sample()], auth=("agent", SEND)).status_code == 401


def test_a_401_names_the_ways_to_log_in(guarded: httpx.Client) -> None:
    reading = guarded.get("/api/gpus").headers.get_list("WWW-Authenticate")
    assert reading == ['Basic realm="gpumon", charset="UTF-8"', 'Bearer realm="gpumon"']
    assert guarded.post(PATH).headers.get_list("WWW-Authenticate") == ['Bearer realm="gpumon"']
    assert "WWW-Authenticate" not in guarded.get("/api/gpus", headers=bearer(SEND)).headers


SPELLINGS_OF_SENDING = [
    "/api/receive-data",
    "/api/receive-data/",
    "/api/receive-data%0A",
    "/api%2Freceive-data",
    "/%61pi/receive-data",
    "/api/receive-data?x=/health",
    "/api/receive-data;/health",
    "/api/receive-data#/health",
    "//api/receive-data",
    "/api//receive-data",
    "/./api/receive-data",
    "/health/../api/receive-data",
    "/static-offline-docs/../api/receive-data",
    "/API/receive-data",
    "http://elsewhere/api/receive-data",
]
SPELLINGS_OF_READING = [
    "/api/gpus",
    "/api/gpus/",
    "/api/gpus%0A",
    "//api/gpus",
    "/api%2Fgpus",
    "/health/../api/gpus",
    "/static-offline-docs/../api/gpus",
    "/static-offline-docs/%2e%2e/api/gpus",
    "/static-offline-docs//api/gpus",
    "/docs/../api/gpus",
    "/metrics",
    "/metrics%0A",
    "/api/receive-data/../gpus",
    "/api/gpu/statistics",
    "/api/gpu/statistics%0A",
    "http://elsewhere/api/gpus",
    "/health%0A/../metrics",
]


def test_no_spelling_of_the_path_sends_past_the_gate(serve: Serve, files: dict[str, str], tmp_path: Path) -> None:
    """Neither without a token, nor with one that may only read."""
    client = serve(auth=files | {"failures_per_minute": 1_000_000})
    for target in SPELLINGS_OF_SENDING:
        for method in ("POST", "PUT", "PATCH", "DELETE", "GET"):
            for token in (None, READ):
                status = raw(client, method, target, token=token, body=_BODY)
                docs = target.startswith("/static-offline-docs/") and method == "GET"  # no file there
                allowed = (404,) if docs else (401,) if token is None else (403, 404, 405)
                assert status in allowed, (method, target, token, status)
    assert list((tmp_path / "data").glob("gpu_metrics*.csv")) == []
    assert raw(client, "POST", "/%61pi/receive-data", token=SEND, body=_BODY) == 200  # the body is a good one


@pytest.mark.parametrize("mode", ["token", "none"])
def test_no_spelling_of_a_path_reads_past_the_gate(serve: Serve, files: dict[str, str], mode: str) -> None:
    client = serve(auth=files | {"mode": mode, "failures_per_minute": 1_000_000})
    for target in SPELLINGS_OF_READING:
        for method in ("GET", "HEAD", "OPTIONS", "POST", "PUT"):
            for token in (None, SEND):
                status = raw(client, method, target, token=token)
                below_docs = target.startswith("/static-offline-docs/") and method in ("GET", "HEAD")
                assert status in ((404,) if below_docs else (401, 403, 404)), (method, target, token, status)
                assert status != 404 or below_docs or (token == SEND and "receive-data" in target)


_BODY = json.dumps([sample()]).encode()


def raw(client: httpx.Client, method: str, target: str, *, token: str | None, body: bytes = b"") -> int:
    """The status of a request whose target no library has tidied up."""
    shown = "" if token is None else f"Authorization: Bearer {token}\r\n"
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=20) as link:
        link.sendall(
            f"{method} {target} HTTP/1.1\r\nHost: x\r\n{shown}Content-Type: application/json\r\n"
            f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        with link.makefile("rb") as answer:
            return int(answer.readline().split()[1])


def test_with_reading_guarded_alone_old_clients_send_as_ever(serve: Serve, files: dict[str, str]) -> None:
    client = serve(auth={"read_token_file": files["read_token_file"]})
    assert client.post(PATH, json=[sample()]).status_code == 200
    assert client.get("/api/gpus").status_code == 401
    assert client.get("/api/gpus", headers=bearer(READ)).status_code == 200


def test_with_sending_guarded_alone_everybody_reads(serve: Serve, files: dict[str, str]) -> None:
    client = serve(auth=files | {"read_token_file": ""})
    assert client.post(PATH, json=[sample()]).status_code == 401
    assert client.get("/api/gpus").status_code == 200
    assert client.post("/api/gpu/statistics").status_code == 200


def test_without_a_guard_there_is_no_layer(tmp_path: Path, files: dict[str, str]) -> None:
    def layers(**auth: str) -> list[object]:
        return [layer.cls for layer in create_app(settings_for(tmp_path / "data", auth=auth)).user_middleware]

    assert Gate not in layers()
    assert Gate in layers(**files)


def test_a_websocket_gets_nowhere(tmp_path: Path, files: dict[str, str]) -> None:
    app = create_app(settings_for(tmp_path / "data", auth=files))
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app({"type": "websocket", "path": "/health", "headers": []}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize("token", [None, WRONG, READ])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_answered_and_the_connection_stays_good(
    guarded: httpx.Client, token: str | None, chunked: bool
) -> None:
    body = bytes(5_000_000)
    headers = {"Content-Type": "application/json"} | ({} if token is None else bearer(token))
    for _ in range(3):
        answer = guarded.post(
            PATH,
            content=(body[i : i + 65536] for i in range(0, len(body), 65536)) if chunked else body,
            headers=headers,
        )
        refused(answer, 403 if token == READ else 401, "token")
    assert guarded.post(PATH, json=[sample()], headers=bearer(SEND)).status_code == 200
    assert guarded.get("/health").status_code == 200


def test_a_client_that_waits_for_100_continue_is_refused_without_its_body(guarded: httpx.Client) -> None:
    with socket.create_connection((guarded.base_url.host, guarded.base_url.port or 0), timeout=20) as link:
        link.sendall(
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        with link.makefile("rb") as answer:
            assert answer.readline().split()[1] == b"401"


def test_a_body_over_the_limit_is_refused_before_anybody_is_asked(serve: Serve, files: dict[str, str]) -> None:
    client = serve(auth=files, server={"max_body_mb": 0.1})
    refused(client.post(PATH, content=bytes(200_000)), 413, "max_body_mb")


def test_pages_of_other_origins_get_preflights_and_read_refusals(serve: Serve, files: dict[str, str]) -> None:
    client = serve(auth=files, server={"cors_origins": "https://dash.example"})
    origin = {"Origin": "https://dash.example"}
    preflight = client.options(
        "/api/gpus",
        headers=origin
        | {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"},
    )
    assert preflight.status_code == 200
    assert "authorization" in preflight.headers["Access-Control-Allow-Headers"].lower()
    answer = client.get("/api/gpus", headers=origin)
    assert answer.status_code == 401
    assert answer.headers["Access-Control-Allow-Origin"] == "https://dash.example"
    assert client.options("/api/gpus", headers=origin).status_code == 401


def test_too_many_refusals_of_an_address_are_429_but_a_right_token_is_let_in(
    serve: Serve, files: dict[str, str]
) -> None:
    client = serve(auth=files | {"failures_per_minute": 3})
    assert [client.get("/api/gpus").status_code for _ in range(3)] == [401] * 3
    for answer in (
        client.get("/api/gpus"),
        client.get("/api/gpus", headers=bearer(WRONG)),
        client.get("/api/gpus", headers=bearer(SEND)),
        client.post(PATH, content=bytes(5_000_000), headers=bearer(WRONG)),
    ):
        refused(answer, 429, "[AUTH] failures_per_minute")
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
        assert not re.search(r"\d", answer.json()["detail"])  # agents log each sentence that is new
        assert "WWW-Authenticate" not in answer.headers
    assert client.get("/api/gpus", headers=bearer(READ)).status_code == 200
    assert client.post(PATH, json=[sample()], headers=bearer(SEND)).status_code == 200
    assert client.get("/health").status_code == 200


def test_refusals_are_counted_by_right_and_reason(serve: Serve, files: dict[str, str]) -> None:
    client = serve(auth=files | {"failures_per_minute": 4})

    def counted() -> dict[str, float]:
        lines = client.get("/metrics", headers=bearer(READ)).text.splitlines()
        found = [line.rpartition(" ") for line in lines if line.startswith("gpumon_server_auth_refusals_total")]
        return {name.partition("{")[2].rstrip("}"): float(value) for name, _, value in found}

    before = counted()
    assert len(before) == 10
    assert set(before.values()) == {0.0}
    client.post(PATH)
    client.post(PATH, headers=bearer(WRONG))
    client.post(PATH, headers=bearer(READ))
    client.get("/api/gpus")
    client.get("/api/gpus")
    assert {name: value for name, value in counted().items() if value} == {
        'reason="missing",right="send"': 1,
        'reason="unknown",right="send"': 1,
        'reason="not_allowed",right="send"': 1,
        'reason="missing",right="read"': 1,
        'reason="limited",right="read"': 1,
    }


def test_no_token_is_ever_logged(serve: Serve, files: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="gpumon")
    client = serve(auth=files, logging={"log_api_requests": True})
    for token in (SEND, READ, WRONG):
        client.post(PATH, json=[sample()], headers=bearer(token))
        client.get("/api/gpus", headers=bearer(token))
        client.get("/api/gpus", auth=("anybody", token))
    assert "refusing address=127.0.0.1 right=send reason=unknown" in caplog.text
    for token in (SEND, READ, WRONG):
        assert token not in caplog.text


def test_the_documentation_offers_to_enter_a_token_where_one_is_needed(
    serve: Serve, files: dict[str, str]
) -> None:
    schema = serve(auth=files).get("/openapi.json").json()
    assert schema["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    needing = {
        path for path, operations in schema["paths"].items() for one in operations.values() if "security" in one
    }
    assert needing == set(schema["paths"]) - set(OPEN)
    assert {"401", "403"} <= schema["paths"][PATH]["post"]["responses"].keys()


def test_the_documentation_asks_for_no_token_where_none_is_needed(serve: Serve, files: dict[str, str]) -> None:
    schema = serve(auth=files | {"read_token_file": ""}).get("/openapi.json").json()
    needing = {
        path for path, operations in schema["paths"].items() for one in operations.values() if "security" in one
    }
    assert needing == {PATH}
