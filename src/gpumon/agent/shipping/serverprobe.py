"""Asks the server what it is, without giving it anything: for `gpumon doctor`.

Goes the sender's way, with its connection, token and certificates. What is posted is an empty list, which a server
refuses as such (422) once it has let the agent in; it stores nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import msgspec

from gpumon import clock
from gpumon.agent.shipping.bearer import AccessTrouble, TokenTrouble, read_token
from gpumon.agent.shipping.connection import (
    Connection,
    Destination,
    checked_url,
    is_about_tls,
    reason_of,
    without_secret,
)
from gpumon.agent.shipping.sender import ANSWER_BYTES, SHOWN
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
    and password. `trouble` says why there is no answer, then there are none of the others; `about_tls`: it is for
    TLS. `no_token` says why the token can't be had; then nothing is posted. `shows`: the agent shows a token, or a
    name and password. `clocks` None: the server does not tell the time."""

    address: str
    trouble: str | None = None
    root: Reply | None = None
    health: Reply | None = None
    post: Reply | None = None
    clocks: Clocks | None = None
    milliseconds: float = 0.0
    about_tls: bool = False
    no_token: str | None = None
    shows: bool = False


def address_of(to: Destination) -> str:
    """A server's address for people, without name, password and query. Raises SettingsError as `checked_url`."""
    return str(checked_url(to).copy_with(username="", password="", query=None))


def probe(
    to: Destination,
    *,
    timeout_seconds: float = TIMEOUT_SECONDS,
    now: Now = clock.now,
    monotonic: Monotonic = clock.monotonic,
) -> Probe:
    """Asks the server to which samples are posted. Raises SettingsError as `checked_url`."""
    no_token = _token_trouble(to.token_file)
    shows = bool(to.token_file or checked_url(to).userinfo)
    connection = Connection(
        to if no_token is None else replace(to, token_file=""),
        connect_timeout_seconds=timeout_seconds,
        read_timeout_seconds=timeout_seconds,
    )
    base = connection.url.copy_with(query=None, path="/")
    with closing(connection):
        asker = _Asker(connection, timeout_seconds, monotonic)
        try:
            asked_at, began = now(), monotonic()
            root, date = asker.ask("GET", base)
            seconds = monotonic() - began
            health, _ = asker.ask("GET", base.copy_with(path="/health"))
            post = None if no_token is not None else asker.ask("POST", connection.url, b"[]")[0]
        except (AccessTrouble, httpx.HTTPError, OSError) as error:
            return Probe(
                address_of(to), reason_of(error), about_tls=is_about_tls(error), no_token=no_token, shows=shows
            )
    return Probe(
        address_of(to),
        root=root,
        health=health,
        post=post,
        clocks=_clocks(date, asked_at, seconds),
        milliseconds=seconds * 1000,
        no_token=no_token,
        shows=shows,
    )


def _token_trouble(token_file: str) -> str | None:
    """Why there is no token, where there should be one."""
    try:
        if token_file:
            read_token(token_file)
    except TokenTrouble as error:
        return str(error)
    return None


class _Asker:
    def __init__(self, connection: Connection, timeout_seconds: float, monotonic: Monotonic) -> None:
        self._connection = connection
        self._timeout_seconds = timeout_seconds
        self._monotonic = monotonic

    def ask(self, method: str, url: httpx.URL, body: bytes | None = None) -> tuple[Reply, str]:
        """The answer and its Date header. Of its body the beginning is read, and no longer than the timeout."""
        with self._connection.stream(method, url, content=body) as response:
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
    text = text or " ".join(body.decode("utf-8", errors="replace").split())
    return Reply(response.status_code, without_secret(response.request, text)[:SHOWN], known)


def _clocks(date: str, asked_at: datetime, seconds: float) -> Clocks | None:
    """The server's clock against ours in the middle of the request; half of what the request took is uncertain."""
    try:
        at = parsedate_to_datetime(date)
    except ValueError:
        return None
    ahead = (at.replace(tzinfo=at.tzinfo or UTC) - asked_at).total_seconds() + _DATE_SECONDS - seconds / 2
    return Clocks(ahead, seconds / 2 + _DATE_SECONDS)
