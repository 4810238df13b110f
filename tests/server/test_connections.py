"""What a connection may send or leave unsent before there is a request, and how long it is kept."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import pytest

from gpumon.server import protocol
from gpumon.server import serve as serve_module
from tests.samples import sample
from tests.server.conftest import Serve

PATIENCE_SECONDS = 20
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
BEGUN = b"GET /health HTTP/1.1\r\nHost: x\r\nX-Filler: "


@contextmanager
def linked(client: httpx.Client) -> Iterator[tuple[socket.socket, BinaryIO]]:
    """A plain connection to the server, and what comes of it."""
    address = (client.base_url.host, client.base_url.port or 0)
    with (
        socket.create_connection(address, timeout=PATIENCE_SECONDS) as link,
        link.makefile("rb") as answers,
    ):
        yield link, answers


def answer(answers: BinaryIO) -> tuple[int, dict[str, str], bytes]:
    """The next one: status, headers, body."""
    status = int(answers.readline().split()[1])
    headers = {}
    while line := answers.readline().strip():
        name, _, value = line.decode().partition(": ")
        headers[name.lower()] = value
    return status, headers, answers.read(int(headers["content-length"]))


def sent_until_cut(link: socket.socket, piece: bytes, *, most: int = 64 << 20) -> int:
    """How many bytes of endless pieces went out before the server closed the connection."""
    sent = 0
    try:
        while sent < most:
            link.sendall(piece)
            sent += len(piece)
    except ConnectionError:
        pass
    return sent


def wait_for_a_silent_connection_to_be_closed(client: httpx.Client) -> None:
    """Until whatever had been timed before is over, too."""
    with linked(client) as (_, answers):
        assert answers.read() == b""


def test_a_head_of_more_than_64_kib_is_431_in_the_envelope_and_the_end(serve: Serve) -> None:
    with linked(serve()) as (link, answers):
        link.sendall(BEGUN + b"x" * (protocol.HEAD_BYTES - len(BEGUN) - protocol._HEADER_BYTES))
        link.sendall(b"x")  # crosses the limit, so nothing is left unread
        status, headers, body = answer(answers)
        assert status == 431
        assert headers["connection"] == "close"
        said = json.loads(body)
        assert (said["success"], said["error_code"]) == (False, "HTTP_431")
        assert "65536 bytes" in said["detail"]
        assert answers.read() == b""


def test_a_head_of_less_is_taken(serve: Serve) -> None:
    with linked(serve()) as (link, answers):
        for _ in range(3):  # each request is counted for itself
            link.sendall(BEGUN)
            for _ in range(6):
                link.sendall(b"x" * 10_000)
            link.sendall(b"\r\n\r\n")
            assert answer(answers)[0] == 200


ENDLESS = {
    "headers": (BEGUN, b"\r\nX-Other: y" * 1000),
    "short headers": (BEGUN, b"\r\na:" * 2000),
    "one header": (BEGUN, b"x" * 10_000),
    "a target": (b"GET /", b"x" * 10_000),
    "blank lines": (b"", b"\r\n" * 5000),
    "trailers": (
        b"POST /api/receive-data HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n",
        b"X-Trailer: y\r\n" * 1000,
    ),
    "a chunk's extension": (
        b"POST /api/receive-data HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2;a=",
        b"x" * 10_000,
    ),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_whatever_has_no_end_is_cut(serve: Serve, what: str) -> None:
    begun, piece = ENDLESS[what]
    client = serve()
    with linked(client) as (link, _):
        link.sendall(begun)
        assert sent_until_cut(link, piece) < 64 << 20
    assert client.get("/health").status_code == 200


def test_a_large_body_is_no_large_head(serve: Serve) -> None:
    client = serve()
    rows = json.dumps([sample(gpu_id=number) for number in range(3000)]).encode()
    assert len(rows) > 4 * protocol.HEAD_BYTES
    for content in (rows, (rows[at : at + 50_000] for at in range(0, len(rows), 50_000))):
        assert client.post("/api/receive-data", content=content, headers=JSON).json()["received_count"] == 3000


JSON = {"Content-Type": "application/json"}


def test_what_follows_an_answered_head_gets_no_second_answer(serve: Serve) -> None:
    with linked(serve()) as (link, answers):
        link.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert answer(answers)[0] == 405
        link.sendall(b"2;a=" + b"x" * (protocol.HEAD_BYTES - 3))
        assert answers.read() == b""


class SlowApp:
    """Answers when it is let go."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.go = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while scope["type"] == "lifespan":
            phase = (await receive())["type"]
            await send({"type": f"{phase}.complete"})
            if phase == "lifespan.shutdown":
                return
        if scope["path"] == "/slow":
            self.asked.set()
            await asyncio.to_thread(self.go.wait, PATIENCE_SECONDS)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowApp]:
    app = SlowApp()
    monkeypatch.setattr(serve_module, "create_app", lambda *_: app)
    yield app
    app.go.set()


SLOW = b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n"


def test_a_refusal_of_a_second_head_does_not_come_as_the_first_answer(slow: SlowApp, serve: Serve) -> None:
    with linked(serve()) as (link, answers):
        link.sendall(SLOW)
        assert slow.asked.wait(PATIENCE_SECONDS)
        link.sendall(BEGUN + b"x" * (protocol.HEAD_BYTES - len(BEGUN) - protocol._HEADER_BYTES + 1))
        assert answers.read() == b""
        slow.go.set()


def test_a_second_head_waits_for_the_first_answer(
    slow: SlowApp, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.05)
    client = serve()
    with linked(client) as (link, answers):
        link.sendall(SLOW)
        assert slow.asked.wait(PATIENCE_SECONDS)
        link.sendall(BEGUN)
        wait_for_a_silent_connection_to_be_closed(client)
        wait_for_a_silent_connection_to_be_closed(client)
        link.sendall(b"y\r\n\r\n")
        wait_for_a_silent_connection_to_be_closed(client)  # until that has been read
        slow.go.set()
        assert [answer(answers)[0] for _ in range(2)] == [200, 200]


@pytest.mark.parametrize("begun", [b"", b"\r\n", BEGUN, BEGUN + b"y\r\n"])
def test_a_first_head_that_does_not_come_is_the_end(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.05)
    with linked(serve()) as (link, answers):
        link.sendall(begun)
        assert answers.read() == b""


def test_each_further_head_has_the_time_from_its_first_byte(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.05)
    client = serve()
    with linked(client) as (link, answers):
        for _ in range(2):  # between requests the time is that of an idle connection
            link.sendall(HEALTH)
            assert answer(answers)[0] == 200
            wait_for_a_silent_connection_to_be_closed(client)
        link.sendall(BEGUN)
        assert answers.read() == b""


def test_a_body_may_take_its_time(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.05)
    client = serve()
    body = json.dumps([sample()]).encode()
    with linked(client) as (link, answers):
        link.sendall(
            b"POST /api/receive-data HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body[:10])
        )
        wait_for_a_silent_connection_to_be_closed(client)
        link.sendall(body[10:])
        assert answer(answers)[0] == 200


@pytest.mark.parametrize(
    "late",
    [
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n", b"x"),  # 405 needs no body
        (HEALTH, b"\r\n"),
    ],
)
def test_what_comes_after_an_answer_does_not_keep_a_connection_for_ever(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, late: tuple[bytes, bytes]
) -> None:
    monkeypatch.setattr(serve_module, "KEEP_ALIVE_SECONDS", 1)
    with linked(serve()) as (link, answers):
        link.sendall(late[0])
        assert answer(answers)[0] in (200, 405)
        link.sendall(late[1])
        assert answers.read() == b""


def test_a_websocket_is_an_ordinary_request(serve: Serve) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "eHh4eHh4eHh4eHh4eHh4eA==",
    }
    assert serve().get("/health", headers=upgrade).status_code == 200


@pytest.mark.parametrize(
    ("trusted", "counted"), [(None, "127.0.0.1"), ("", "127.0.0.1"), ("127.0.0.1", "10.1.2.3")]
)
def test_a_forwarded_address_is_believed_only_of_those_named(
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    trusted: str | None,
    counted: str,
) -> None:
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    if trusted is not None:
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted)
    (tmp_path / "token").write_text("token-0123456789abcdef")
    client = serve(auth={"read_token_file": str(tmp_path / "token")})
    assert client.get("/metrics", headers={"X-Forwarded-For": "10.1.2.3"}).status_code == 401
    assert f"refusing address={counted} " in caplog.text
