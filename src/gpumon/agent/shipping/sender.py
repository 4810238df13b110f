"""The door to the server: one POST per batch. `serverprobe` goes the same way.

| answer | outcome |
|---|---|
| 2xx that says `"success": true` | delivered; rows it could not take are counted and logged |
| 413, 422; 400 and 415 with a `detail` | poison: the same bytes will never be taken |
| anything else: other statuses, no connection, no answer in time, an answer nobody understands | retry |
| none, for the token or the certificates can't be read (`connection`) | retry |

A 400 or 415 without a `detail` comes from something on the way, such as a proxy that expects https: no fault
of the batch. A 422 never holds up the batches behind it, whoever sent it.
An answer is read as it is on the wire, up to ANSWER_BYTES: whatever answers, it costs no more memory or time.
Redirects are not followed: samples go where the settings say, and a redirect means that the settings are wrong.
No message has what the agent shows to be let in, nor the address's query.
"""

from __future__ import annotations

import gzip
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
import msgspec

from gpumon import clock
from gpumon.agent.counts import DeliveryCounts
from gpumon.agent.ports import Batch, Outcome
from gpumon.agent.shipping.bearer import AccessTrouble
from gpumon.agent.shipping.connection import Connection, Destination, reason_of, without_secret
from gpumon.clock import Monotonic, Now
from gpumon.errors import SettingsError
from gpumon.model.sample import BATCH_HEADER

log = logging.getLogger(__name__)

_UNACCEPTABLE = frozenset({413, 422})
_REFUSED_WITH_DETAIL = frozenset({400, 415})
ANSWER_BYTES = 65536
"""What is read of an answer; the server's longest, with the most faults that it lists, is far shorter."""
SHOWN = 200
"""Characters of an answer that are worth a log line."""
_NULL = msgspec.Raw(b"null")


class _Answer(msgspec.Struct):
    """What of the server's answer the agent reads. The old program's may have `success` alone."""

    success: bool = False
    failed_count: int | None = None
    errors: Sequence[msgspec.Raw] | None = None
    detail: msgspec.Raw = _NULL


@dataclass(frozen=True, slots=True)
class _Response:
    """An answer, of its body the beginning."""

    request: httpx.Request
    status: int
    headers: httpx.Headers
    body: bytes

    def said(self, part: bytes) -> str:
        """The beginning of a part of the body, for people."""
        return without_secret(self.request, part).decode("utf-8", errors="replace")[:SHOWN]


class HttpSink:
    """Implements `gpumon.agent.ports.BatchSink`. Used by one thread. Raises SettingsError when it is made with an
    address that is none, with settings that exclude one another, or with certificates that can't be read."""

    def __init__(
        self,
        to: Destination,
        counts: DeliveryCounts,
        *,
        connect_timeout_seconds: float,
        read_timeout_seconds: float,
        compress: bool,
        now: Now = clock.now,
        monotonic: Monotonic = clock.monotonic,
    ) -> None:
        self._connection = Connection(
            to, connect_timeout_seconds=connect_timeout_seconds, read_timeout_seconds=read_timeout_seconds
        )
        self._url = self._connection.url
        self._shown_url = str(self._url.copy_with(query=None))
        self._counts = counts
        self._compress = compress
        self._read_timeout_seconds = read_timeout_seconds
        self._now = now
        self._monotonic = monotonic
        try:
            self._connection.open()
        except AccessTrouble as error:
            raise SettingsError(str(error)) from error

    def deliver(self, batch: Batch) -> Outcome:
        """Tries once."""
        headers = {BATCH_HEADER: str(batch.id)}
        body = batch.body
        if self._compress:
            body = gzip.compress(body, compresslevel=1, mtime=0)
            headers["Content-Encoding"] = "gzip"
        try:
            response = self._post(body, headers)
        except (AccessTrouble, httpx.HTTPError, OSError) as error:
            return Outcome("retry", f"{self._shown_url}: {reason_of(error)}")
        self._counts.sent_bytes += len(body)
        return self._outcome(batch, response)

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def _post(self, body: bytes, headers: dict[str, str]) -> _Response:
        """Reads the answer until it ends or is too long. httpx's timeout is for each read, and an answer that
        drips never meets it; so the rest has `read_timeout_seconds` from the first lines on."""
        with self._connection.stream("POST", self._url, content=body, headers=headers) as response:
            deadline = self._monotonic() + self._read_timeout_seconds
            answer = bytearray()
            for chunk in response.iter_raw():
                answer += chunk
                if len(answer) >= ANSWER_BYTES:
                    break
                if self._monotonic() > deadline:
                    raise httpx.ReadTimeout("the answer does not end")
            return _Response(
                response.request, response.status_code, response.headers, bytes(answer[:ANSWER_BYTES])
            )

    def _outcome(self, batch: Batch, response: _Response) -> Outcome:
        answer = _read(response.body)
        if httpx.codes.is_success(response.status):
            if answer is None or not answer.success:
                said = response.said(response.body)
                return Outcome("retry", f"{self._shown_url} answers, but is no gpumon server: {said!r}")
            self._note_rejected(batch, answer, response)
            return Outcome("delivered")
        has_detail = answer is not None and bytes(answer.detail) != b"null"
        said = response.said(_plain(answer.detail) if answer is not None and has_detail else response.body)
        location = response.headers.get("Location")
        if httpx.codes.is_redirect(response.status) and location is not None:
            said = f"redirects to {response.said(location.encode())}; set [SERVER] server_host to where it is"
        reason = f"{self._shown_url}: HTTP {response.status}" + (f": {said}" if said else "")
        if response.status in _UNACCEPTABLE or (response.status in _REFUSED_WITH_DETAIL and has_detail):
            return Outcome("poison", reason)
        return Outcome("retry", reason, _retry_after(response.headers, self._now()))

    def _note_rejected(self, batch: Batch, answer: _Answer, response: _Response) -> None:
        rejected = answer.failed_count or 0
        if rejected > 0:
            self._counts.rejected_samples += rejected
            log.error(
                "samples_rejected batch=%s rejected=%d of=%d first=%r",
                batch.id,
                rejected,
                batch.samples,
                response.said(b", ".join(map(bytes, (answer.errors or ())[:3]))),
            )


def _read(body: bytes) -> _Answer | None:
    try:
        return msgspec.json.decode(body, type=_Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _plain(detail: msgspec.Raw) -> bytes:
    """Its text, or where it is no text, its JSON."""
    try:
        return msgspec.json.decode(detail, type=str).encode()
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return bytes(detail)


def _retry_after(headers: httpx.Headers, now: datetime) -> float | None:
    """Seconds from a Retry-After header, which has seconds or an HTTP date; None where it says nothing."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds())
