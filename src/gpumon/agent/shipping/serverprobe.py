"""Asks the server what it is, without giving it anything: for `gpumon doctor`.

Goes the sender's way, with its connection settings and credentials. What is posted is an empty list, which a
server refuses as such (422) once it has let the agent in; it stores nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import msgspec

from gpumon import clock
from gpumon.agent.shipping.sender import ANSWER_BYTES, SHOWN, checked_url, open_client, reason_of
from gpumon.clock import Monotonic, Now

TIMEOUT_SECONDS = 4.0
"""For each of three requests; a connection that is not there by then is trouble enough."""
_DATE_SECONDS = 0.5
"""A Date header has whole seconds: on average the server's clock is so far ahead of it."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: its status, what it says of itself in a few words, and its JSON where that is an object."""

    status: int
    said: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Clocks:
    """How far the server's clock is ahead of ours, give or take `within_seconds`."""

    ahead_seconds: float
    within_seconds: float

    @property
    def at_least_seconds(self) -> float:
        """The difference that there is for certain, without its sign."""
        return max(0.0, abs(self.ahead_seconds) - self.within_seconds)


@dataclass(frozen=True, slots=True)
class Probe:
    """What the server said to GET /, GET /health and the empty POST. `address` is where it was asked, without name
    and password. `trouble` says why there is no answer; then there are none of the others. `clocks` None: it does
    not tell the time."""

    address: str
    trouble: str | None = None
    root: Reply | None = None
    health: Reply | None = None
    post: Reply | None = None
    clocks: Clocks | None = None
    milliseconds: float = 0.0


def address_of(url: str) -> str:
    """A server's address for people, without name, password and query. Raises SettingsError where it is none."""
    return str(checked_url(url).copy_with(username="", password="", query=None))


def probe(
    url: str,
    *,
    timeout_seconds: float = TIMEOUT_SECONDS,
    now: Now = clock.now,
    monotonic: Monotonic = clock.monotonic,
) -> Probe:
    """Asks the server to which samples are posted at `url`. Raises SettingsError for an address that is none."""
    given = checked_url(url)
    base = given.copy_with(username="", password="", query=None, path="/")
    with open_client(
        given, connect_timeout_seconds=timeout_seconds, read_timeout_seconds=timeout_seconds
    ) as client:
        asker = _Asker(client, timeout_seconds, monotonic)
        try:
            asked_at, began = now(), monotonic()
            root, date = asker.ask("GET", base)
            seconds = monotonic() - began
            health, _ = asker.ask("GET", base.copy_with(path="/health"))
            post, _ = asker.ask("POST", given.copy_with(username="", password=""), b"[]")
        except (httpx.HTTPError, OSError) as error:
            return Probe(address_of(url), trouble=reason_of(error))
    return Probe(address_of(url), None, root, health, post, _clocks(date, asked_at, seconds), seconds * 1000)


class _Asker:
    def __init__(self, client: httpx.Client, timeout_seconds: float, monotonic: Monotonic) -> None:
        self._client = client
        self._timeout_seconds = timeout_seconds
        self._monotonic = monotonic

    def ask(self, method: str, url: httpx.URL, body: bytes | None = None) -> tuple[Reply, str]:
        """The answer and its Date header. Of its body the beginning is read, and no longer than the timeout."""
        with self._client.stream(method, url, content=body) as response:
            deadline = self._monotonic() + self._timeout_seconds
            answer = bytearray()
            for chunk in response.iter_raw():
                answer += chunk
                if len(answer) >= ANSWER_BYTES or self._monotonic() > deadline:
                    break
            return _reply(response, bytes(answer[:ANSWER_BYTES])), response.headers.get("Date", "")


def _reply(response: httpx.Response, body: bytes) -> Reply:
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        fields = None
    known = fields if isinstance(fields, dict) else {}
    said = known.get("detail") or known.get("reasons") or known.get("message") or ""
    if response.has_redirect_location:
        said = f"redirects to {httpx.URL(response.headers['Location']).copy_with(username='', password='')}"
    text = said if isinstance(said, str) else msgspec.json.encode(said).decode()
    return Reply(response.status_code, text[:SHOWN] or _plain(body), known)


def _plain(body: bytes) -> str:
    return " ".join(body[:SHOWN].decode("utf-8", errors="replace").split())


def _clocks(date: str, asked_at: datetime, seconds: float) -> Clocks | None:
    """The server's clock against ours in the middle of the request; half of what the request took is uncertain."""
    try:
        at = parsedate_to_datetime(date)
    except ValueError:
        return None
    ahead = (at.replace(tzinfo=at.tzinfo or UTC) - asked_at).total_seconds() + _DATE_SECONDS - seconds / 2
    return Clocks(ahead, seconds / 2 + _DATE_SECONDS)
