"""The token that the agent shows: read anew for each request, changed without a restart, told to nobody else."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpumon.agent.assembly import Agent
from gpumon.agent.counts import DeliveryCounts
from gpumon.agent.ports import Outcome
from gpumon.agent.settings import AgentSettings, Authentication, Network, Server, Spool, Status
from gpumon.agent.shipping.connection import Destination
from gpumon.agent.shipping.delivery import Delivery
from gpumon.agent.shipping.sender import HttpSink
from gpumon.agent.surroundings import Surroundings
from gpumon.errors import SettingsError
from tests.agent.doors import FakeLibrary, Receiver, batch, gpu
from tests.agent.test_sender import Backlog, deliver
from tests.processes import until

TOKEN = "s3cret.token-1_~+/="


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    return file


class GuardedReceiver(Receiver):
    """It takes batches from whom it is shown the token `right`."""

    @property
    def answer(self) -> tuple[int, dict[str, str], bytes]:
        if self.posts[-1].headers.get("Authorization") == "Bearer right":
            return 200, {}, b'{"success": true}'
        return 401, {}, b'{"detail": "not a token of this server"}'

    @answer.setter
    def answer(self, _: object) -> None:
        pass


def sink_of(receiver: Receiver, token_file: Path) -> HttpSink:
    return HttpSink(
        Destination(receiver.url, token_file=str(token_file)),
        DeliveryCounts(),
        connect_timeout_seconds=5.0,
        read_timeout_seconds=5.0,
        compress=True,
    )


def shown(receiver: Receiver) -> list[str | None]:
    return [post.headers.get("Authorization") for post in receiver.posts]


def test_without_a_token_file_nothing_is_shown(receiver: Receiver) -> None:
    deliver(receiver.url, batch(1))

    assert shown(receiver) == [None]


@pytest.mark.parametrize(
    "content",
    [
        f"{TOKEN}",
        f"  {TOKEN} \r\nnext-token\r\n",
        f"{TOKEN}\rnext-token\r",
        f"\n# the old one is gone\n\n{TOKEN}\nnext-token\n",
        f"\ufeff{TOKEN}\n",
    ],
    ids=["bare", "blanks around it", "lines as of old", "after a comment, before the next", "byte order mark"],
)
def test_the_first_line_that_is_no_comment_is_the_token(
    receiver: Receiver, token_file: Path, content: str
) -> None:
    token_file.write_text(content, encoding="utf-8", newline="")

    assert deliver(Destination(receiver.url, str(token_file)), batch(1)) == [Outcome("delivered")]
    assert shown(receiver) == [f"Bearer {TOKEN}"]


def test_a_new_token_is_shown_with_the_next_request_without_a_restart(
    receiver: Receiver, token_file: Path
) -> None:
    sink = sink_of(receiver, token_file)
    try:
        sink.deliver(batch(1))
        # As Kubernetes does it: the name is a link that comes to point to another file.
        other = token_file.with_name("token-2")
        other.write_text("token-2\n")
        link = token_file.with_name("link")
        link.symlink_to(other)
        link.replace(token_file)
        sink.deliver(batch(2))
    finally:
        sink.close()

    assert shown(receiver) == [f"Bearer {TOKEN}", "Bearer token-2"]


def removed(file: Path) -> None:
    file.unlink()


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def content(written: bytes) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(written) and None


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (removed, "No such file or directory"),
        (a_folder, "Is a directory"),
        (content(b""), "has no token"),
        (content(b"\n \n# nothing but a comment"), "has no token"),
        (content(b"s3cret token"), "visible ASCII"),
        (content(b"s3cret\0token\n"), "visible ASCII"),
        (content("s3crét\n".encode()), "visible ASCII"),
        (content(b"\xff\xfes\x003\x00"), "visible ASCII"),
        (content(b"s3cret-token\n" + b"#" * 65536), "is larger than 65536 bytes"),
    ],
    ids=["gone", "folder", "empty", "comment", "blank", "NUL", "accent", "UTF-16", "too large"],
)
def test_a_token_that_cannot_be_had_is_tried_again_and_nothing_is_sent_without_it(
    receiver: Receiver, token_file: Path, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(token_file)
    (outcome,) = deliver(Destination(receiver.url, str(token_file)), batch(1))

    assert outcome.kind == "retry"
    assert f"[AUTHENTICATION] token_file {token_file}" in outcome.reason and said in outcome.reason
    assert "s3c" not in outcome.reason
    assert receiver.posts == []


def test_a_token_file_may_be_as_large_as_its_limit(receiver: Receiver, token_file: Path) -> None:
    token_file.write_bytes(f"{TOKEN}\n".encode().ljust(65536, b"#"))

    assert deliver(Destination(receiver.url, str(token_file)), batch(1)) == [Outcome("delivered")]


def test_a_pipe_in_the_token_file_s_place_is_not_waited_for(receiver: Receiver, token_file: Path) -> None:
    token_file.unlink()
    os.mkfifo(token_file)
    outcomes: list[Outcome] = []
    to = Destination(receiver.url, str(token_file))
    thread = threading.Thread(target=lambda: outcomes.extend(deliver(to, batch(1))), daemon=True)
    thread.start()
    thread.join(20)
    waits = thread.is_alive()
    if waits:
        os.close(os.open(token_file, os.O_WRONLY | os.O_NONBLOCK))  # lets it go
        thread.join(20)

    assert not waits
    (outcome,) = outcomes
    assert (outcome.kind, "is no regular file" in outcome.reason) == ("retry", True)
    assert receiver.posts == []


def test_while_the_token_is_wrong_or_gone_batches_wait_and_then_all_are_delivered(token_file: Path) -> None:
    backlog, counts, stop = Backlog(2), DeliveryCounts(), threading.Event()
    with GuardedReceiver() as receiver:
        sink = sink_of(receiver, token_file)
        delivery = Delivery(backlog, sink, counts, delay_seconds=0.01, backoff=1.0, growths=0)
        thread = threading.Thread(target=delivery.run, args=(stop,))
        thread.start()
        try:
            until(lambda: "HTTP 401: not a token of this server" in (counts.trouble or ""))
            token_file.unlink()
            until(lambda: "can't read [AUTHENTICATION] token_file" in (counts.trouble or ""))
            token_file.write_text("right\n")
            thread.join(20)
        finally:
            stop.set()
            thread.join(20)
            sink.close()

    assert [told for told in backlog.happened if not told.startswith("kept")] == ["delivered 1", "delivered 2"]
    assert counts.trouble is None


def test_a_token_and_a_password_exclude_one_another(token_file: Path) -> None:
    with pytest.raises(SettingsError) as raised:
        deliver(Destination("http://user:passw0rd@gpumon:5000/", str(token_file)), batch(1))

    assert "[AUTHENTICATION] token_file" in str(raised.value) and "[SERVER] server_host" in str(raised.value)
    assert "passw0rd" not in str(raised.value)


def test_a_redirect_gets_neither_samples_nor_the_token(receiver: Receiver, token_file: Path) -> None:
    with Receiver() as elsewhere:
        receiver.answer = (307, {"Location": elsewhere.url}, b"")
        (outcome,) = deliver(Destination(receiver.url, str(token_file)), batch(1))

        assert outcome.kind == "retry"
        assert elsewhere.posts == []


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (200, {}, f"you sent Bearer {TOKEN}"),
        (200, {}, "x" * 190 + TOKEN),
        (401, {}, f'{{"detail": "{TOKEN} is no token of this server"}}'),
        (422, {}, f'{{"detail": {{"authorization": "Bearer {TOKEN}"}}}}'),
        (200, {}, f'{{"success": true, "failed_count": 1, "errors": ["{TOKEN}"]}}'),
        (307, {"Location": f"http://sso/?token={TOKEN}"}, ""),
    ],
    ids=["echo", "at the end of what is shown", "detail", "structured detail", "errors", "redirect"],
)
def test_a_server_that_repeats_the_token_does_not_bring_it_into_a_message(
    receiver: Receiver,
    token_file: Path,
    caplog: pytest.LogCaptureFixture,
    status: int,
    headers: dict[str, str],
    body: str,
) -> None:
    receiver.answer = (status, headers, body.encode())
    with caplog.at_level(logging.DEBUG, "gpumon"):
        (outcome,) = deliver(Destination(receiver.url, str(token_file)), batch(1))

    assert shown(receiver) == [f"Bearer {TOKEN}"]
    assert "s3cret" not in outcome.reason + caplog.text
    assert "***" in outcome.reason + caplog.text


def test_the_agent_s_settings_lead_to_the_file(receiver: Receiver, token_file: Path) -> None:
    sections: dict[str, Any] = {
        "authentication": Authentication(client_name="node-1", token_file=str(token_file)),
        "server": Server(server_host="http://127.0.0.1", server_port=receiver.port),
        "network": Network(batch_size=1, shutdown_seconds=0.1),
        "spool": Spool(directory=""),
        "status": Status(port=-1),
    }
    settings = AgentSettings(**sections)
    agent = Agent(settings, FakeLibrary(gpu()), Surroundings("node-1"))
    agent.start()
    try:
        assert receiver.arrived.acquire(timeout=20)
    finally:
        agent.stop()

    assert shown(receiver)[0] == f"Bearer {TOKEN}"
