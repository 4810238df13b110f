"""The door to the server: one POST per batch. The only importer of httpx in the agent's way to the server.

| answer | outcome |
|---|---|
| 2xx that says `"success": true` | delivered; rows it could not take are counted and logged |
| 413; 400, 415, 422 with a `detail` | poison: the same bytes will never be taken |
| anything else: other statuses, no connection, no answer in time, an answer nobody understands | retry |

A 400 without a `detail` comes from something on the way, such as a proxy that expects https: no fault of the
batch.
Redirects are not followed: samples go where the settings say, and a redirect means that the settings are wrong.
Proxy variables of the environment are not followed either: in a cluster they are meant for the way out, and
the server's name is rarely in NO_PROXY. For https, SSL_CERT_FILE and SSL_CERT_DIR do hold.
"""

from __future__ import annotations

import gzip
import logging
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import msgspec

from gpumon import __version__, clock
from gpumon.agent.counts import DeliveryCounts
from gpumon.agent.ports import Batch, Outcome
from gpumon.clock import Now
from gpumon.errors import SettingsError
from gpumon.model.sample import BATCH_HEADER

log = logging.getLogger(__name__)

_TOO_LARGE = 413
_REFUSED = frozenset({400, 415, 422})
_KEEP_ALIVE_SECONDS = 2.0
"""Less than the 5 s after which uvicorn closes an idle connection: no request meets one that is closing."""
_SHOWN = 300
"""Characters of an answer that are worth a log line."""


class _Answer(msgspec.Struct):
    """What of the server's answer the agent reads. The old program's may have `success` alone."""

    success: bool = False
    failed_count: int = 0
    errors: Sequence[Any] = ()
    detail: Any = None


class HttpSink:
    """Implements `gpumon.agent.ports.BatchSink`. Used by one thread. Raises SettingsError when it is made with
    an address that is none."""

    def __init__(
        self,
        url: str,
        counts: DeliveryCounts,
        *,
        connect_timeout_seconds: float,
        read_timeout_seconds: float,
        compress: bool,
        now: Now = clock.now,
    ) -> None:
        self._url = _checked(url)
        self._counts = counts
        self._compress = compress
        self._now = now
        self._client = httpx.Client(
            # Certificates cost memory and are not needed for http.
            verify=_certificates() if self._url.scheme == "https" else False,
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(read_timeout_seconds, connect=connect_timeout_seconds),
            limits=httpx.Limits(max_connections=1, keepalive_expiry=_KEEP_ALIVE_SECONDS),
            headers={"User-Agent": f"gpumon-agent/{__version__}", "Content-Type": "application/json"},
        )

    def deliver(self, batch: Batch) -> Outcome:
        """Tries once."""
        headers = {BATCH_HEADER: str(batch.id)}
        body = batch.body
        if self._compress:
            body = gzip.compress(body, compresslevel=1, mtime=0)
            headers["Content-Encoding"] = "gzip"
        try:
            response = self._client.post(self._url, content=body, headers=headers)
        except (httpx.HTTPError, OSError) as error:
            return Outcome("retry", f"{self._url}: {_reason(error)}")
        self._counts.sent_bytes += len(body)
        return self._outcome(batch, response)

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def _outcome(self, batch: Batch, response: httpx.Response) -> Outcome:
        answer = _read(response)
        if response.is_success:
            if answer is None or not answer.success:
                return Outcome("retry", f"{self._url} answers, but is no gpumon server: {_text(response)}")
            self._note_rejected(batch, answer)
            return Outcome("delivered")
        detail = None if answer is None else answer.detail
        said = _text(response) if detail is None else str(detail)[:_SHOWN]
        if response.is_redirect:
            said = f"redirects to {response.headers.get('Location')}; set [SERVER] server_host to where it is"
        reason = f"{self._url}: HTTP {response.status_code}: {said}"
        if response.status_code == _TOO_LARGE or (response.status_code in _REFUSED and detail is not None):
            return Outcome("poison", reason)
        return Outcome("retry", reason, _retry_after(response, self._now()))

    def _note_rejected(self, batch: Batch, answer: _Answer) -> None:
        if answer.failed_count > 0:
            self._counts.rejected_samples += answer.failed_count
            log.error(
                "samples_rejected batch=%s rejected=%d of=%d first=%s",
                batch.id,
                answer.failed_count,
                batch.samples,
                str(list(answer.errors[:3]))[:_SHOWN],
            )


def _checked(url: str) -> httpx.URL:
    try:
        return httpx.URL(url)
    except httpx.InvalidURL as error:
        raise SettingsError(
            f"{url} is no address ({error}); see [SERVER] server_host (such as http://gpumon), server_port, "
            "api_endpoint"
        ) from error


def _certificates() -> ssl.SSLContext:
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        raise SettingsError(
            f"can't read the certificates that SSL_CERT_FILE or SSL_CERT_DIR name: {error}"
        ) from error


def _read(response: httpx.Response) -> _Answer | None:
    try:
        return msgspec.json.decode(response.content, type=_Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _text(response: httpx.Response) -> str:
    return repr(response.content[:_SHOWN].decode("utf-8", errors="replace"))


def _reason(error: Exception) -> str:
    """The kind of trouble and what the system says of it, the same each time it happens."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _retry_after(response: httpx.Response, now: datetime) -> float | None:
    """Seconds from a Retry-After header, which has seconds or an HTTP date; None where it says nothing."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds())
