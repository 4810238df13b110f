"""One POST per batch, what each answer means, and the pace of trying again."""

from __future__ import annotations

import json
import logging
import socket
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from gpumon.agent.counts import DeliveryCounts
from gpumon.agent.ports import Batch, Outcome
from gpumon.agent.shipping.connection import Destination
from gpumon.agent.shipping.delivery import LONGEST_DELAY_SECONDS, Delivery
from gpumon.agent.shipping.sender import HttpSink
from gpumon.errors import SettingsError
from tests.agent.doors import NOON, PATIENCE_SECONDS, Receiver, Times, Until, batch

NESTED = b'{"success": true, "more": ' + b"[" * 60_000
"""An answer that no parser gets through, for its depth."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def deliver(
    to: str | Destination, *batches: Batch, counts: DeliveryCounts | None = None, **settings: Any
) -> list[Outcome]:
    given: dict[str, Any] = {
        "connect_timeout_seconds": 5.0,
        "read_timeout_seconds": 5.0,
        "compress": True,
        "now": lambda: NOON,
    }
    destination = to if isinstance(to, Destination) else Destination(to)
    sink = HttpSink(destination, counts or DeliveryCounts(), **(given | settings))
    try:
        return [sink.deliver(each) for each in batches]
    finally:
        sink.close()


def test_a_batch_is_one_post_of_packed_json_with_its_id(receiver: Receiver) -> None:
    outcomes = deliver(receiver.url, batch(7, body=b'[{"gpu_id":0}]'))

    (post,) = receiver.posts
    assert outcomes == [Outcome("delivered")]
    assert post.path == "/api/receive-data"
    assert post.headers["Content-Type"] == "application/json"
    assert post.headers["Content-Encoding"] == "gzip"
    assert post.headers["Gpumon-Batch"] == "node-1/boot1/7"
    assert post.samples == [{"gpu_id": 0}]


def test_without_compression_the_body_is_plain(receiver: Receiver) -> None:
    deliver(receiver.url, batch(1, body=b'[{"gpu_id":0}]'), compress=False)

    assert receiver.posts[0].body == b'[{"gpu_id":0}]'
    assert "Content-Encoding" not in receiver.posts[0].headers


def test_rows_that_the_server_could_not_take_are_counted_and_logged(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [{"index": index, "loc": ["gpu_id"], "msg": f"fault {index}"} for index in range(4)]
    answer = {"success": True, "received_count": 6, "failed_count": 4, "errors": errors}
    receiver.answer = (200, {}, json.dumps(answer).encode())
    counts = DeliveryCounts()

    assert deliver(receiver.url, batch(1, samples=10), counts=counts) == [Outcome("delivered")]

    assert counts.rejected_samples == 4
    assert "rejected=4 of=10" in caplog.text
    assert "fault 0" in caplog.text
    assert "fault 3" not in caplog.text


def test_nothing_rejected_may_be_said_by_null(receiver: Receiver) -> None:
    receiver.answer = (200, {}, b'{"success": true, "failed_count": null, "errors": null}')

    assert deliver(receiver.url, batch(1)) == [Outcome("delivered")]


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_what_the_server_will_never_take_is_poison_with_its_words(receiver: Receiver, status: int) -> None:
    receiver.answer = (status, {}, b'{"success": false, "detail": "gpu_id must not be negative"}')

    (outcome,) = deliver(receiver.url, batch(1))

    assert outcome.kind == "poison"
    assert f"HTTP {status}: gpu_id must not be negative" in outcome.reason


@pytest.mark.parametrize("status", [400, 415])
def test_a_refusal_from_something_on_the_way_is_no_fault_of_the_batch(receiver: Receiver, status: int) -> None:
    receiver.answer = (status, {}, b"<html>The plain HTTP request was sent to HTTPS port</html>")

    (outcome,) = deliver(receiver.url, batch(1))

    assert outcome.kind == "retry"
    assert "The plain HTTP request" in outcome.reason


@pytest.mark.parametrize("status", [413, 422])
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"no JSON " + b"x" * 300, ": no JSON " + "x" * 192),
        (b'{"detail": null}', ': {"detail": null}'),
        (b'{"detail": {"loc": ["gpu_id"]}}', ': {"loc": ["gpu_id"]}'),
        (b"", ""),
        (NESTED, ": " + NESTED[:200].decode()),
        (b"x" * 100_000, ": " + "x" * 200),
    ],
    ids=["text", "no detail", "structured", "nothing", "nested", "long"],
)
def test_a_batch_that_cannot_be_processed_or_is_too_large_is_poison_whatever_the_answer_says(
    receiver: Receiver, status: int, body: bytes, said: str
) -> None:
    receiver.answer = (status, {}, body)

    (outcome,) = deliver(receiver.url, batch(1))

    assert outcome == Outcome("poison", f"{receiver.url}: HTTP {status}{said}")


@pytest.mark.parametrize("status", [301, 307, 401, 403, 404, 405, 408, 409, 429, 500, 502, 503, 507])
def test_every_other_status_is_tried_again(receiver: Receiver, status: int) -> None:
    receiver.answer = (status, {"Location": receiver.url}, b"not now")

    (outcome,) = deliver(receiver.url, batch(1))

    assert outcome.kind == "retry"
    assert f"HTTP {status}" in outcome.reason
    assert len(receiver.posts) == 1


@pytest.mark.parametrize(
    "body", [b"", b"<html>Welcome</html>", b"[]", b"\xff", b'{"success": false}', b"{}", NESTED]
)
def test_a_good_status_from_something_else_is_no_delivery(receiver: Receiver, body: bytes) -> None:
    receiver.answer = (200, {}, body)

    (outcome,) = deliver(receiver.url, batch(1))

    assert outcome.kind == "retry"
    assert "is no gpumon server" in outcome.reason


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("Tue, 24 Nov 2026 12:01:30 GMT", 90.0),
        ("Tue, 24 Nov 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("", None),
    ],
)
def test_retry_after_is_understood(receiver: Receiver, header: str, seconds: float | None) -> None:
    receiver.answer = (429, {"Retry-After": header}, b"{}")

    (outcome,) = deliver(receiver.url, batch(1))

    assert (outcome.kind, outcome.after_seconds) == ("retry", seconds)


def test_a_server_that_is_not_there_is_tried_again() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        (outcome,) = deliver(f"http://127.0.0.1:{taken.getsockname()[1]}/", batch(1))

    assert outcome.kind == "retry"
    assert "ConnectError" in outcome.reason


def test_a_server_that_does_not_answer_in_time_is_tried_again(receiver: Receiver) -> None:
    receiver.hold.clear()

    (outcome,) = deliver(receiver.url, batch(1), read_timeout_seconds=0.05)

    assert (outcome.kind, outcome.reason) == ("retry", f"{receiver.url}: ReadTimeout: timed out")


@contextmanager
def never_ending(head: bytes, times: Times | None = None) -> Iterator[tuple[str, list[int]]]:
    """The address of a server that answers with `head` and then goes on for as long as it is listened to, a
    second of `times` for each part; and what it could send."""
    sent: list[int] = []

    def answer() -> None:
        with listening.accept()[0] as connection, suppress(OSError):
            connection.settimeout(PATIENCE_SECONDS)
            connection.recv(65536)
            connection.sendall(head)
            while sum(sent) < 50_000_000:
                if times is None:
                    connection.sendall(b" " * 65536)
                    sent.append(65536)
                else:
                    times.seconds += 1.0
                    connection.sendall(b" ")
                    sent.append(1)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(PATIENCE_SECONDS)
        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/api", sent
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


def test_an_answer_without_an_end_is_read_no_further_than_its_beginning() -> None:
    with never_ending(b"HTTP/1.1 200 OK\r\n\r\n") as (url, sent):
        (outcome,) = deliver(url, batch(1))

    assert outcome.kind == "retry"
    assert sum(sent) < 20_000_000  # what the system's buffers took


def test_an_answer_that_drips_is_given_up_after_the_longest_wait() -> None:
    times = Times()
    with never_ending(b"HTTP/1.1 200 OK\r\n\r\n", times) as (url, _):
        (outcome,) = deliver(url, batch(1), monotonic=times.monotonic)

    assert outcome == Outcome("retry", f"{url}: ReadTimeout: the answer does not end")


def test_a_long_answer_does_not_cost_the_next_batch_its_delivery(receiver: Receiver) -> None:
    receiver.answer = (503, {}, b"x" * 200_000)

    assert [each.kind for each in deliver(receiver.url, batch(1), batch(2))] == ["retry", "retry"]
    assert [len(post.samples) for post in receiver.posts] == [1, 1]


def test_an_answer_is_asked_for_unpacked(receiver: Receiver) -> None:
    deliver(receiver.url, batch(1))

    assert receiver.posts[0].headers["Accept-Encoding"] == "identity"


def test_a_password_in_the_address_goes_to_the_server_and_into_no_message(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answer = (503, {}, b"{}")
    url = receiver.url.replace("http://", "http://user:s%40cret@") + "?token=hidden"
    with caplog.at_level(logging.DEBUG):
        (outcome,) = deliver(url, batch(1))

    assert receiver.posts[0].path == "/api/receive-data?token=hidden"
    assert b64decode(receiver.posts[0].headers["Authorization"].removeprefix("Basic ")) == b"user:s@cret"
    assert outcome.reason.startswith(f"{receiver.url}: HTTP 503")
    assert "cret" not in caplog.text + outcome.reason


def test_proxy_variables_of_the_environment_do_not_divert_samples(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")

    assert deliver(receiver.url, batch(1)) == [Outcome("delivered")]


def test_an_address_that_is_none_is_a_wrong_setting() -> None:
    with pytest.raises(SettingsError, match=r"\[SERVER\] server_host"):
        deliver("http://gpumon:8080:5000/api/receive-data", batch(1))


@pytest.mark.parametrize(
    "url",
    [
        "http://a..b:5000/api",
        f"http://{'a' * 64}:5000/api",
        "http://.:5000/api",
        "http://",
        "http://:5000/api",
        "http://user:cret@/api",
        "http://gpumon:99999/api",
        "http://gpumon:0/api",
    ],
)
def test_a_host_or_port_that_cannot_be_is_a_wrong_setting_before_anything_is_sent(url: str) -> None:
    with pytest.raises(SettingsError, match=r"\[SERVER\] server_host.*server_port") as raised:
        HttpSink(
            Destination(url),
            DeliveryCounts(),
            connect_timeout_seconds=5.0,
            read_timeout_seconds=5.0,
            compress=True,
        )

    assert "cret" not in str(raised.value)


def test_a_password_in_an_address_that_is_none_is_not_shown() -> None:
    with pytest.raises(SettingsError) as raised:
        deliver("http://user:cret:5000/api/receive-data", batch(1))

    assert "cret" not in str(raised.value)


class ClosingReceiver(Receiver):
    """It closes each connection after its answer and does not say so, as the old program after 5 s; `closed` is
    released then."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = threading.Semaphore(0)
        self._server.RequestHandlerClass.do_POST = self._closing(self._server.RequestHandlerClass.do_POST)
        shutdown_request = self._server.shutdown_request

        def shut_down(request: Any) -> None:
            shutdown_request(request)
            self.closed.release()

        self._server.shutdown_request = shut_down  # type: ignore[method-assign]

    def _closing(self, do_post: Any) -> Any:
        def do_POST(handler: Any) -> None:  # noqa: N802  the library's name
            do_post(handler)
            handler.close_connection = True

        return do_POST


def test_a_server_that_closes_idle_connections_gets_every_batch_at_the_first_try(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Waiting(Backlog):
        """The next batch comes when the connection of the one before is closed."""

        def delivered(self) -> None:
            super().delivered()
            assert receiver.closed.acquire(timeout=PATIENCE_SECONDS)

    with ClosingReceiver() as receiver:
        sink = HttpSink(
            Destination(receiver.url),
            counts := DeliveryCounts(),
            connect_timeout_seconds=5.0,
            read_timeout_seconds=5.0,
            compress=True,
        )
        backlog, times = Waiting(3), Times()
        with caplog.at_level(logging.INFO, "gpumon"):
            Delivery(
                backlog, sink, counts, delay_seconds=1.0, backoff=1.0, growths=0, monotonic=times.monotonic
            ).run(Until(times))
        sink.close()

    assert backlog.happened == ["delivered 1", "delivered 2", "delivered 3"]
    assert (counts.retries, caplog.text) == (0, "")


@contextmanager
def closing_at(connections: list[int]) -> Iterator[str]:
    """The address of a server whose n-th connection is closed without an answer at its request number
    connections[n], counted from 1."""

    def serve() -> None:
        for last in connections:
            accepted, _ = listener.accept()
            with accepted, accepted.makefile("rb") as incoming:
                for number in range(1, last + 1):
                    length = 0
                    while (line := incoming.readline()).strip():
                        if line.lower().startswith(b"content-length:"):
                            length = int(line.partition(b":")[2])
                    incoming.read(length)
                    if number < last:
                        accepted.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"success":true}')

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/api/receive-data"
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


def test_a_kept_connection_that_is_closed_in_this_moment_costs_no_retry() -> None:
    with closing_at([2, 2, 1]) as url:
        outcomes = deliver(url, batch(1), batch(2), batch(3))
    assert [outcome.kind for outcome in outcomes] == ["delivered", "delivered", "retry"]


class Backlog:
    """Batches 1, 2, 3… to deliver, `count` of them; then it is as closed."""

    def __init__(self, count: int) -> None:
        self.waiting = [batch(sequence) for sequence in range(1, count + 1)]
        self.happened: list[str] = []

    def head(self, stop: threading.Event) -> Batch | None:
        return self.waiting[0] if self.waiting else None

    def delivered(self) -> None:
        self.happened.append(f"delivered {self.waiting.pop(0).id.sequence}")

    def refused(self, reason: str) -> None:
        self.happened.append(f"refused {self.waiting.pop(0).id.sequence}: {reason}")

    def not_delivered(self) -> None:
        self.happened.append(f"kept {self.waiting[0].id.sequence}")


class Answers:
    """A sink that gives its outcomes in turn, and delivers when there are no more. `at` is when it was asked."""

    def __init__(self, times: Times, *outcomes: Outcome) -> None:
        self._times = times
        self._outcomes = list(outcomes)
        self.at: list[float] = []
        self.meanwhile = lambda: None

    def deliver(self, batch: Batch) -> Outcome:
        self.at.append(self._times.seconds)
        self.meanwhile()
        return self._outcomes.pop(0) if self._outcomes else Outcome("delivered")

    def close(self) -> None:
        pass


AWAY = Outcome("retry", "connection refused")


def run(backlog: Backlog, answers: Answers, times: Times, **settings: Any) -> DeliveryCounts:
    counts = DeliveryCounts()
    stop = settings.pop("stop", None) or Until(times)
    given: dict[str, Any] = {"delay_seconds": 4.0, "backoff": 2.0, "growths": 3, "chance": lambda: 0.0}
    clocks = {"now": times.now, "monotonic": times.monotonic}
    Delivery(backlog, answers, counts, **clocks, **(given | settings)).run(stop)
    return counts


def test_the_delay_grows_as_often_as_the_settings_say_and_starts_anew_after_a_delivery() -> None:
    times = Times()
    answers = Answers(times, *[AWAY] * 6, Outcome("delivered"), AWAY)
    counts = run(Backlog(2), answers, times)

    assert [after - before for before, after in zip(answers.at, answers.at[1:], strict=False)] == [
        4.0,
        8.0,
        16.0,
        32.0,
        32.0,
        32.0,
        0.0,
        4.0,
    ]
    assert (counts.retries, counts.batches) == (7, 2)


@pytest.mark.parametrize(("chance", "seconds"), [(0.0, 4.0), (0.5, 3.0), (1.0, 2.0)])
def test_up_to_half_of_a_delay_is_left_out_by_chance(chance: float, seconds: float) -> None:
    times = Times()
    answers = Answers(times, AWAY)
    run(Backlog(1), answers, times, chance=lambda: chance)

    assert answers.at == [0.0, seconds]


def test_no_delay_is_longer_than_the_longest() -> None:
    times = Times()
    answers = Answers(times, *[AWAY] * 5, Outcome("retry", "429", 1e9))
    run(Backlog(1), answers, times, backoff=1e300, growths=5)

    assert answers.at[-1] - answers.at[-2] == LONGEST_DELAY_SECONDS
    assert answers.at[2] - answers.at[1] == LONGEST_DELAY_SECONDS


def test_what_the_server_asks_for_is_waited_for_in_full() -> None:
    times = Times()
    answers = Answers(times, Outcome("retry", "429", 90.0), Outcome("retry", "429", 0.0))
    run(Backlog(1), answers, times, chance=lambda: 0.5)

    assert answers.at == [0.0, 91.0, 92.0]


def test_a_refused_batch_is_set_aside_and_the_next_goes_out() -> None:
    times, backlog = Times(), Backlog(2)
    counts = run(backlog, Answers(times, Outcome("poison", "422")), times)

    assert backlog.happened == ["refused 1: 422", "delivered 2"]
    assert (counts.batches, counts.samples, counts.trouble) == (1, 1, None)


def test_trouble_is_known_while_it_lasts_and_logged_when_it_starts_changes_and_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    times, known = Times(), []
    counts = DeliveryCounts()
    other = Outcome("retry", "HTTP 503")
    answers = Answers(times, AWAY, AWAY, other, other)
    answers.meanwhile = lambda: known.append(counts.trouble)
    delivery = Delivery(
        Backlog(1), answers, counts, delay_seconds=1.0, backoff=1.0, growths=0, monotonic=times.monotonic
    )
    with caplog.at_level(logging.INFO):
        delivery.run(Until(times))

    assert known == [None, "connection refused", "connection refused", "HTTP 503", "HTTP 503"]
    assert counts.trouble is None
    assert [record.getMessage().split()[0] for record in caplog.records] == ["trouble", "trouble", "recovered"]


def test_at_the_stop_it_goes_on_until_all_is_delivered() -> None:
    times, backlog, stop = Times(), Backlog(3), threading.Event()
    answers = Answers(times)
    answers.meanwhile = stop.set
    run(backlog, answers, times, stop=stop)

    assert backlog.happened == ["delivered 1", "delivered 2", "delivered 3"]


def test_at_the_stop_a_batch_that_is_not_taken_ends_it() -> None:
    times, backlog, stop = Times(), Backlog(3), threading.Event()
    answers = Answers(times, Outcome("delivered"), AWAY)
    answers.meanwhile = stop.set
    run(backlog, answers, times, stop=stop)

    assert backlog.happened == ["delivered 1", "kept 2"]


def test_a_stop_while_it_waits_gives_the_server_a_last_try() -> None:
    times, backlog = Times(), Backlog(1)
    run(backlog, Answers(times, AWAY), times, stop=Until(times, end=1.0))

    assert backlog.happened == ["kept 1", "delivered 1"]


def test_a_server_that_asked_to_wait_gets_no_last_try() -> None:
    times, backlog = Times(), Backlog(1)
    run(backlog, Answers(times, Outcome("retry", "429", 90.0)), times, stop=Until(times, end=1.0))

    assert backlog.happened == ["kept 1"]
