"""Tokens in a file, also while it changes under load, and refusals that are counted by address."""

from __future__ import annotations

import csv
import logging
import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpumon.errors import SettingsError
from gpumon.server.auth import failures as failures_module
from gpumon.server.auth.failures import Failures
from gpumon.server.auth.refusal import Reason, Right
from gpumon.server.auth.rights import open_rights
from gpumon.server.auth.tokens import TokenFile
from gpumon.server.settings import Auth
from tests.samples import sample
from tests.server.conftest import Serve

OLD, NEW = "old-token-0123456789abcdef", "new-token-0123456789abcdef"
PATH = "/api/receive-data"


def replace(file: Path, text: str) -> None:
    """As tools that are careful write: beside it, then in its place."""
    beside = file.with_name(file.name + ".new")
    beside.write_text(text)
    beside.replace(file)


def opened(file: Path, text: str) -> TokenFile:
    file.write_text(text)
    return TokenFile.open(str(file), "token_file")


def events_of(caplog: pytest.LogCaptureFixture, module: str) -> list[str]:
    return [record.getMessage().split()[0] for record in caplog.records if record.name == module]


def test_each_line_is_a_token_but_blank_ones_and_comments(tmp_path: Path) -> None:
    tokens = opened(tmp_path / "token", f"# of the agents\n\n{OLD}\r\n  {NEW}  \n#{'c' * 20}\n")
    assert tokens.lets_in(OLD.encode())
    assert tokens.lets_in(NEW.encode())
    for wrong in (b"", b"c" * 20, b"#" + b"c" * 20, OLD[:-1].encode(), OLD.encode() + b" ", OLD.upper().encode()):
        assert not tokens.lets_in(wrong)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no token in it"),
        ("# nothing yet\n\n", "has no token in it"),
        (f"{OLD}\nshort-secret-15\n", "line 2: the token is shorter than 16 characters"),
        ("two words of a secret\n", "line 1: the token has a space in it"),
        ("geheimnis-aus-münchen\n", "line 1: the token has other characters than visible ASCII"),
        (None, "can't read"),
        (f"{OLD}\n# secret\n" + f"#{'c' * 1023}\n" * 1024, "is larger than 1 MiB"),
    ],
)
@pytest.mark.parametrize("key", ["token_file", "read_token_file"])
def test_a_file_that_gives_no_good_token_is_refused_at_the_start(
    tmp_path: Path, text: str | None, says: str, key: str
) -> None:
    file = tmp_path / "token"
    if text is not None:
        file.write_text(text)
    auth = Auth(mode="token", token_file=str(file)) if key == "token_file" else Auth(read_token_file=str(file))
    with pytest.raises(SettingsError) as caught:
        open_rights(auth)
    assert f"[AUTH] {key} {file}" in str(caught.value)
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "geheim" not in str(caught.value)


def test_a_file_of_1_mib_is_taken_whole(tmp_path: Path) -> None:
    assert opened(tmp_path / "token", NEW.rjust(1 << 20, "\n")).lets_in(NEW.encode())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
def test_a_pipe_or_a_folder_is_no_file_of_tokens(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", tmp_path):
        with pytest.raises(SettingsError, match=r"\[AUTH\] token_file .* is no regular file"):
            TokenFile.open(str(file), "token_file")


def test_a_mode_that_needs_a_file_says_so() -> None:
    with pytest.raises(SettingsError, match=r"\[AUTH\] mode=token needs token_file"):
        open_rights(Auth(mode="token"))


def test_without_any_guard_there_are_no_rights() -> None:
    assert open_rights(Auth()) is None


def test_a_token_file_that_nobody_looks_at_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_rights(Auth(token_file=str(tmp_path / "token")))
    assert any("token_file_unused" in record.getMessage() for record in caplog.records)


def test_a_file_that_is_replaced_or_rewritten_counts_at_once(tmp_path: Path) -> None:
    file = tmp_path / "token"
    tokens = opened(file, OLD)
    replace(file, NEW)  # of the same length
    assert [tokens.lets_in(token.encode()) for token in (OLD, NEW)] == [False, True]
    file.write_text(f"{OLD}\n{NEW}\n")
    assert [tokens.lets_in(token.encode()) for token in (OLD, NEW)] == [True, True]


def test_a_secret_that_kubernetes_renews_counts_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for name, token in (("..1", OLD), ("..2", NEW)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "token").write_text(token)
        os.utime(tmp_path / name / "token", (1_800_000_000, 1_800_000_000))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "token").symlink_to("..data/token")
    tokens = TokenFile.open(str(tmp_path / "token"), "token_file")
    assert tokens.lets_in(OLD.encode())
    (tmp_path / "..data_tmp").symlink_to("..2")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    assert [tokens.lets_in(token.encode()) for token in (OLD, NEW)] == [False, True]
    assert events_of(caplog, "gpumon.server.auth.tokens") == ["tokens_read_again"]


@pytest.mark.parametrize("spoilt", [None, "", "too short\n"])
def test_a_file_that_is_spoilt_later_leaves_the_tokens_known_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoilt: str | None
) -> None:
    caplog.set_level(logging.INFO)
    file = tmp_path / "token"
    tokens = opened(file, OLD)
    if spoilt is None:
        file.unlink()
    else:
        file.write_text(spoilt)
    for _ in range(3):
        assert tokens.lets_in(OLD.encode())
        assert not tokens.lets_in(NEW.encode())
    replace(file, NEW)
    assert [tokens.lets_in(token.encode()) for token in (OLD, NEW)] == [False, True]
    assert events_of(caplog, "gpumon.server.auth.tokens") == ["trouble", "recovered", "tokens_read_again"]
    assert OLD not in caplog.text
    assert NEW not in caplog.text


def test_a_file_that_comes_back_as_it_was_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    file = tmp_path / "token"
    tokens = opened(file, OLD)
    file.rename(tmp_path / "away")
    assert tokens.lets_in(OLD.encode())
    (tmp_path / "away").rename(file)
    assert tokens.lets_in(OLD.encode())
    assert events_of(caplog, "gpumon.server.auth.tokens") == ["trouble", "recovered", "tokens_read_again"]


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_an_address_is_limited_until_its_minute_is_over() -> None:
    clock = Clock()
    failures = Failures(3, monotonic=clock)
    for _ in range(3):
        assert failures.limited_seconds("10.0.0.1") is None
        failures.note("10.0.0.1", Right.SEND, Reason.UNKNOWN)
        clock.now += 10
    assert failures.limited_seconds("10.0.0.1") == 30
    assert failures.limited_seconds("::ffff:10.0.0.1") == 30  # it came by an IPv6 socket
    assert failures.limited_seconds("10.0.0.2") is None
    clock.now += 30
    assert failures.limited_seconds("10.0.0.1") is None
    failures.note("10.0.0.1", Right.SEND, Reason.UNKNOWN)
    assert failures.limited_seconds("10.0.0.1") is None  # a new minute begins with one
    clock.now += 15
    for _ in range(2):
        failures.note("10.0.0.1", Right.SEND, Reason.UNKNOWN)
    assert failures.limited_seconds("10.0.0.1") == 45


def test_of_ipv6_the_64_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    failures = Failures(3, monotonic=Clock())
    for peer in ("2001:db8::1", "2001:db8::ffff:0:0:2", "2001:db8:0:0:9::"):
        failures.note(peer, Right.SEND, Reason.UNKNOWN)
    assert failures.limited_seconds("2001:db8::77") == 60
    assert failures.limited_seconds("2001:db8:0:1::1") is None
    assert [record.getMessage() for record in caplog.records] == [
        "refusing address=2001:db8::/64 right=send reason=unknown"
    ]
    failures.note("fe80::1%eth0", Right.SEND, Reason.UNKNOWN)
    assert "address=fe80::/64" in caplog.text


def test_addresses_beyond_the_bound_share_one_count() -> None:
    failures = Failures(2, addresses=3, monotonic=Clock())
    for number in range(100):
        failures.note(f"10.0.0.{number}", Right.READ, Reason.MISSING)
    assert len(failures._addresses) == 4
    assert failures.limited_seconds("10.0.0.1") is None
    assert failures.limited_seconds("10.9.9.9") == 60


def test_refusals_are_logged_when_they_start_change_and_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    failures = Failures(3, monotonic=clock)
    for _ in range(20):
        failures.note("::ffff:10.0.0.1", Right.SEND, Reason.MISSING)
        failures.note("10.0.0.1", Right.SEND, Reason.UNKNOWN)
        clock.now += 61
        failures.sweep()
    clock.now += failures_module._QUIET_SECONDS
    failures.sweep()
    assert [record.getMessage() for record in caplog.records] == [
        "refusing address=10.0.0.1 right=send reason=missing",
        "refusing address=10.0.0.1 right=send reason=unknown",
        "refusals_ended address=10.0.0.1 times=40 after_seconds=1159",
    ]
    assert failures._addresses == {}


def test_what_a_proxy_calls_a_client_can_not_forge_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    Failures(3).note("x\n2026 ERROR all is lost " + "x" * 1000, Right.SEND, Reason.UNKNOWN)
    assert len(caplog.records[0].getMessage()) < 200
    assert "\n" not in caplog.records[0].getMessage()


ROWS = 2


class Agents:
    """Post batch after batch, and keep each until it is acknowledged; each request has the token of their file."""

    def __init__(self, url: httpx.URL, token_file: Path, count: int) -> None:
        self._url = url
        self._token_file = token_file
        self._stop = threading.Event()
        self.answers: Counter[tuple[int, int]] = Counter()
        self.acknowledged: list[tuple[int, int]] = []
        self._pool = ThreadPoolExecutor(count)
        self._running = [self._pool.submit(self._run, agent) for agent in range(count)]

    def until(self, more: int, status: int) -> None:
        """Waits until each agent has so many more answers with a status. The first may be to a request that had
        been under way, the second is not."""
        before = self.answers.copy()
        agents = range(len(self._running))
        while any(self.answers[agent, status] < before[agent, status] + more for agent in agents):
            assert not any(future.done() for future in self._running), "an agent has met something else"
            self._stop.wait(0.005)

    def stopped(self) -> set[tuple[int, int]]:
        """Ends them; every (agent, batch) that there was."""
        self._stop.set()
        with self._pool:
            return {(agent, number) for agent, end in enumerate(self._running) for number in range(end.result(60))}

    def _run(self, agent: int) -> int:
        number = 0
        with httpx.Client(base_url=self._url, timeout=20, trust_env=False) as link:
            while not self._stop.is_set():
                while not self._delivered(link, agent, number):
                    pass
                number += 1
        return number

    def _delivered(self, link: httpx.Client, agent: int, number: int) -> bool:
        answer = link.post(
            PATH,
            json=[sample(client_name=f"node-{agent}", gpu_id=row, memory_used=number) for row in range(ROWS)],
            headers={
                "Gpumon-Batch": f"node-{agent}/boot/{number}",
                "Authorization": f"Bearer {self._token_file.read_text()}",
            },
        )
        assert answer.status_code in (200, 401), answer.text
        if answer.status_code == 200:
            self.acknowledged.append((agent, number))
        self.answers[agent, answer.status_code] += 1
        return answer.status_code == 200


def test_tokens_change_under_load_and_nothing_is_lost(serve: Serve, tmp_path: Path) -> None:
    """They are rotated in the documented order, and then in a wrong one that keeps agents out for a while."""
    servers, theirs = tmp_path / "servers", tmp_path / "agents"
    servers.write_text(OLD)
    theirs.write_text(OLD)
    client = serve(auth={"mode": "token", "token_file": str(servers), "failures_per_minute": 1_000_000})
    agents = Agents(client.base_url, theirs, 6)
    try:
        agents.until(5, 200)
        replace(servers, f"{OLD}\n{NEW}\n")
        agents.until(5, 200)
        replace(theirs, NEW)
        agents.until(5, 200)
        replace(servers, NEW)
        agents.until(5, 200)
        assert {status for _, status in agents.answers} == {200}  # in this order, nobody is ever refused
        replace(servers, OLD)
        agents.until(5, 401)
        replace(theirs, OLD)
        agents.until(5, 200)
    finally:
        replace(servers, theirs.read_text())
        sent = agents.stopped()
    assert Counter(agents.acknowledged) == Counter(sent)
    found: Counter[tuple[str, int, int]] = Counter()
    for path in (tmp_path / "data").glob("gpu_metrics*.csv"):
        with path.open(newline="") as file:
            found.update(
                (row["client_name"], int(row["memory_used"]), int(row["gpu_id"])) for row in csv.DictReader(file)
            )
    assert found == Counter((f"node-{agent}", number, row) for agent, number in sent for row in range(ROWS))


def test_a_spoilt_file_under_a_running_server_keeps_agents_in(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(OLD)
    client = serve(auth={"mode": "token", "token_file": str(file)})

    def post() -> Any:
        return client.post(PATH, json=[sample()], headers={"Authorization": f"Bearer {OLD}"}).status_code

    assert post() == 200
    file.unlink()
    assert post() == 200
