"""The agent's own port, over real HTTP."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gpumon import clock
from gpumon.agent.metrics import AgentCounts, AgentMetrics
from gpumon.agent.status import Health, Page, StatusServer, one_at_a_time
from tests.agent.doors import NOON, Times
from tests.processes import until


def ask(port: int | None, path: str, host: str = "127.0.0.1") -> tuple[int, str, bytes]:
    assert port is not None
    connection = http.client.HTTPConnection(host, port, timeout=20)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.headers["Content-Type"], response.read()
    finally:
        connection.close()


@contextmanager
def serving(server: StatusServer) -> Iterator[StatusServer]:
    server.start()
    try:
        yield server
    finally:
        server.stop(20)


def counted() -> AgentCounts:
    return AgentCounts()


def values(counts: AgentCounts) -> dict[str, float]:
    text = AgentMetrics(counts).render().decode()
    return {
        sample.name + "".join(f"{{{value}}}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_page_is_served_and_anything_else_is_404_with_what_there_is() -> None:
    pages = {"/healthz": lambda: Page(200, "text/plain", b"fine")}
    with serving(StatusServer(pages, host="127.0.0.1", port=0)) as server:
        assert ask(server.port, "/healthz") == (200, "text/plain", b"fine")
        assert ask(server.port, "/healthz?verbose")[0] == 200
        status, kind, body = ask(server.port, "/../etc/passwd")

    assert (status, kind) == (404, "application/json")
    assert json.loads(body) == {"detail": "not found", "paths": ["/healthz"]}


def test_a_client_that_says_nothing_keeps_nobody_waiting() -> None:
    pages = {"/": lambda: Page(200, "text/plain", b"fine")}
    with (
        serving(StatusServer(pages, host="127.0.0.1", port=0)) as server,
        socket.create_connection(("127.0.0.1", server.port or 0)),
    ):
        assert ask(server.port, "/")[0] == 200


def cut_off(connection: socket.socket) -> bool:
    """Whether the server has closed the connection without an answer."""
    connection.settimeout(0.05)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_a_client_that_drips_is_cut_off_when_its_request_should_have_ended() -> None:
    times = Times()
    pages = {"/": lambda: Page(200, "text/plain", b"fine")}
    with (
        serving(StatusServer(pages, host="127.0.0.1", port=0, monotonic=times.monotonic)) as server,
        socket.create_connection(("127.0.0.1", server.port or 0)) as connection,
    ):
        began = clock.monotonic()
        while not cut_off(connection):
            assert clock.monotonic() - began < 20
            times.seconds += 4.0
            with suppress(ConnectionError):
                connection.sendall(b"G")


def test_a_slow_client_has_some_time_for_its_request() -> None:
    times = Times()
    pages = {"/": lambda: Page(200, "text/plain", b"fine")}
    with (
        serving(StatusServer(pages, host="127.0.0.1", port=0, monotonic=times.monotonic)) as server,
        socket.create_connection(("127.0.0.1", server.port or 0), timeout=20) as connection,
    ):
        for part in (b"GET / HT", b"TP/1.0\r\n", b"\r\n"):
            connection.sendall(part)
            times.seconds += 4.0
        assert connection.recv(12) == b"HTTP/1.0 200"


def test_of_too_many_requests_at_a_time_the_further_ones_are_closed_at_once() -> None:
    making, release = threading.Semaphore(0), threading.Event()

    def make() -> Page:
        making.release()
        return Page(200 if release.wait(20) else 500, "text/plain", b"fine")

    with serving(StatusServer({"/": make}, host="127.0.0.1", port=0)) as server, ExitStack() as stack:
        stack.callback(release.set)

        def begun() -> socket.socket:
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port or 0), timeout=20))
            with suppress(ConnectionError):
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return connection

        held = []
        for _ in range(64):
            held.append(begun())
            assert making.acquire(timeout=20)
        further = begun()
        until(lambda: cut_off(further))
        release.set()
        for connection in held:
            connection.settimeout(20)
            assert connection.recv(12) == b"HTTP/1.0 200"
        until(lambda: served(server.port, "/"))


def served(port: int | None, path: str) -> bool:
    try:
        return ask(port, path)[0] == 200
    except (http.client.HTTPException, ConnectionError):
        return False


def test_a_request_for_which_no_thread_can_begin_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {"/": lambda: Page(200, "text/plain", b"fine")}
    with serving(StatusServer(pages, host="127.0.0.1", port=0)) as server:
        with monkeypatch.context() as patch:
            patch.setattr("socketserver.threading.Thread.start", no_thread)
            assert not any(served(server.port, "/") for _ in range(64))
        assert served(server.port, "/")


def no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_while_a_costly_page_is_made_a_further_request_is_told_so_at_once() -> None:
    making, release = threading.Semaphore(0), threading.Event()

    def make() -> Page:
        making.release()
        return Page(200 if release.wait(20) else 500, "text/plain", b"fine")

    pages = {"/": one_at_a_time(make, "ask again later")}
    first: list[int] = []
    with serving(StatusServer(pages, host="127.0.0.1", port=0)) as server:
        thread = threading.Thread(target=lambda: first.append(ask(server.port, "/")[0]))
        thread.start()
        assert making.acquire(timeout=20)
        try:
            assert ask(server.port, "/") == (429, "application/json", b'{"detail":"ask again later"}')
        finally:
            release.set()
            thread.join(20)
        assert first == [200]
        assert ask(server.port, "/")[0] == 200


def test_a_costly_page_that_fails_can_be_asked_for_again() -> None:
    pages = {"/": one_at_a_time(lambda: Page(1 // 0, "", b""), "ask again later")}
    with serving(StatusServer(pages, host="127.0.0.1", port=0)) as server:
        for _ in range(2):
            with pytest.raises(http.client.HTTPException):
                ask(server.port, "/")


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
def test_a_star_is_every_interface_of_both_kinds(host: str) -> None:
    pages = {"/": lambda: Page(200, "text/plain", b"fine")}
    with serving(StatusServer(pages, host="*", port=0)) as server:
        assert ask(server.port, "/", host)[0] == 200


@needs_ipv6
def test_an_ipv6_address_is_that_address_alone() -> None:
    pages = {"/": lambda: Page(200, "text/plain", b"fine")}
    with serving(StatusServer(pages, host="::1", port=0)) as server:
        assert ask(server.port, "/", "::1")[0] == 200
        with pytest.raises(ConnectionRefusedError):
            ask(server.port, "/", "127.0.0.1")


def test_a_page_that_fails_costs_its_own_request_only(caplog: pytest.LogCaptureFixture) -> None:
    pages = {"/": lambda: Page(200, "text/plain", b"fine"), "/bad": lambda: Page(1 // 0, "", b"")}
    with serving(StatusServer(pages, host="127.0.0.1", port=0)) as server:
        with pytest.raises(http.client.HTTPException):
            ask(server.port, "/bad")
        assert ask(server.port, "/")[0] == 200

    assert "status_page_failed" in caplog.text


def test_a_port_that_is_taken_is_a_warning_that_names_the_setting(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with serving(StatusServer({}, host="127.0.0.1", port=taken.getsockname()[1])) as server:
            assert server.port is None

    (record,) = caplog.records
    assert (record.levelno, "[STATUS] port" in record.getMessage()) == (logging.WARNING, True)


def test_port_minus_one_opens_none() -> None:
    threads = threading.active_count()
    with serving(StatusServer({}, host="127.0.0.1", port=-1)) as server:
        assert server.port is None
        assert threading.active_count() == threads


def test_it_is_alive_while_the_sampler_turns() -> None:
    times, counts = Times(), counted()
    health = Health(counts.sampler, counts.delivery, turns_within_seconds=30.0, monotonic=times.monotonic)

    times.seconds = 30.0
    assert health.healthz().status == 200
    times.seconds = 31.0
    page = health.healthz()
    assert page.status == 503
    answer = json.loads(page.body)
    assert (answer["alive"], answer["reasons"]) == (False, ["the sampler has not turned for 31 s"])
    counts.sampler.turned_at = 31.0
    times.seconds = 61.0
    assert health.healthz().status == 200


@pytest.mark.parametrize(
    ("nvml", "delivery", "status", "reasons"),
    [
        (None, None, 200, []),
        ("no driver", None, 503, ["NVML: no driver"]),
        ("no GPU answers", None, 503, ["NVML: no GPU answers"]),
        (None, "HTTP 503", 503, ["delivery: HTTP 503"]),
        ("no driver", "HTTP 503", 503, ["NVML: no driver", "delivery: HTTP 503"]),
    ],
)
def test_it_is_ready_when_nvml_is_open_and_nothing_failed_to_be_delivered(
    nvml: str | None, delivery: str | None, status: int, reasons: list[str]
) -> None:
    counts = counted()
    counts.sampler.nvml_trouble, counts.delivery.trouble = nvml, delivery

    page = Health(counts.sampler, counts.delivery, turns_within_seconds=30.0).readyz()

    assert page.status == status
    answer = json.loads(page.body)
    assert (answer["ready"], answer["reasons"]) == (status == 200, reasons)


def test_metrics_say_what_was_counted() -> None:
    counts = counted()
    counts.sampler.samples, counts.sampler.skipped_ticks, counts.sampler.nvml_trouble = 80, 2, None
    counts.sampler.gpus_by_state = {"ok": 7, "lost": 1}
    counts.spool.memory_batches, counts.spool.memory_bytes = 3, 3000
    counts.spool.disk_batches, counts.spool.disk_bytes = 4, 4000
    counts.spool.dropped_samples, counts.spool.quarantined_batches = 5, 6
    counts.batcher.dropped_samples, counts.batcher.dropped_batches = 10, 1
    counts.delivery.batches, counts.delivery.retries, counts.delivery.rejected_samples = 7, 8, 9
    counts.delivery.delivered_at = NOON.timestamp()
    counts.holders.calls, counts.holders.failures, counts.holders.trouble = 11, 2, "no socket"
    counts.attribution.rows, counts.attribution.conflicts = {"process": 12, "exclusive": 13}, 4

    found = values(counts)
    expected = {
        "gpumon_agent_samples_total": 80,
        "gpumon_agent_skipped_ticks_total": 2,
        "gpumon_agent_nvml_up": 1,
        "gpumon_agent_gpus{ok}": 7,
        "gpumon_agent_gpus{lost}": 1,
        "gpumon_agent_gpus{unknown}": 0,
        "gpumon_agent_spool_batches{memory}": 3,
        "gpumon_agent_spool_bytes{memory}": 3000,
        "gpumon_agent_spool_batches{disk}": 4,
        "gpumon_agent_spool_bytes{disk}": 4000,
        "gpumon_agent_spool_disk_up": 1,
        "gpumon_agent_dropped_samples_total": 15,
        "gpumon_agent_dropped_batches_total": 1,
        "gpumon_agent_quarantined_batches_total": 6,
        "gpumon_agent_batches_sent_total": 7,
        "gpumon_agent_retries_total": 8,
        "gpumon_agent_rejected_samples_total": 9,
        "gpumon_agent_last_delivery_timestamp_seconds": NOON.timestamp(),
        "gpumon_fake_nvml": 0,
        "gpumon_agent_kubelet_calls_total": 11,
        "gpumon_agent_kubelet_failures_total": 2,
        "gpumon_agent_kubelet_up": 0,
        "gpumon_agent_pod_rows_total{process}": 12,
        "gpumon_agent_pod_rows_total{exclusive}": 13,
        "gpumon_agent_pod_rows_total{unresolved}": 0,
        "gpumon_agent_conflicts_total": 4,
    }

    assert {name: found.get(name) for name in expected} == expected


def test_what_is_not_known_has_no_line() -> None:
    found = values(counted())

    assert "gpumon_agent_last_delivery_timestamp_seconds" not in found
    assert not any(name.startswith("gpumon_agent_gpus") for name in found)
    assert found["gpumon_agent_nvml_up"] == 0


def test_reads_are_a_histogram_of_their_seconds() -> None:
    counts = counted()
    for seconds in (0.001, 0.004, 0.004, 70.0):
        counts.sampler.read_seconds.add(seconds)

    found = values(counts)

    assert found["gpumon_agent_read_seconds_bucket{0.001}"] == 1
    assert found["gpumon_agent_read_seconds_bucket{0.005}"] == 3
    assert found["gpumon_agent_read_seconds_bucket{5.0}"] == 3
    assert found["gpumon_agent_read_seconds_bucket{+Inf}"] == found["gpumon_agent_read_seconds_count"] == 4
    assert found["gpumon_agent_read_seconds_sum"] == pytest.approx(70.009)
