"""The connection to the server: its address, what the agent shows to be let in, and whom it believes.

What the agent shows is either a token from a file, which is read anew for each request, so that a new token needs
no restart; or a name and password in the address, which go out as basic authentication. A file that can't be
used now is trouble of the moment (AccessTrouble): it is tried again, and nothing is lost.

With https the server must show a certificate that one of the authorities in `ca_file` vouches for. The file is
read again when it has changed and after a handshake that failed. Without it the system's file and folder hold,
in whose place SSL_CERT_FILE and SSL_CERT_DIR name others. With http no certificates are loaded: they cost memory.

Redirects are not followed, so what the agent shows goes to no other server. Proxy variables of the environment
are not followed either: in a cluster they are meant for the way out, and the server's name is rarely in NO_PROXY.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx

from gpumon import __version__
from gpumon.agent.shipping.bearer import AccessTrouble, Bearer
from gpumon.errors import SettingsError
from gpumon.filestamp import FileStamp, stamp_of

_KEEP_ALIVE_SECONDS = 60.0
"""Longer than batches are apart, so that each needs no handshake of its own; less than the server's 120 s. The old
program closes after 5 s: httpcore looks for that before it uses a connection again, and `_send` mends the rest."""
Text = TypeVar("Text", str, bytes)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where samples go. `url` may have a name and password in it. The files are "" where there is none."""

    url: str
    token_file: str = ""
    ca_file: str = ""


class CertificateTrouble(AccessTrouble):
    """It is the certificates."""


class Connection:
    """One connection at a time, used by one thread. Raises SettingsError when it is made with settings that can't
    hold together; opens nothing before it is used."""

    def __init__(self, to: Destination, *, connect_timeout_seconds: float, read_timeout_seconds: float) -> None:
        given = checked_url(to)
        self.url = given.copy_with(username="", password="")
        self._auth: httpx.Auth | None = None
        if to.token_file:
            self._auth = Bearer(to.token_file)
        elif given.userinfo:
            self._auth = httpx.BasicAuth(given.username, given.password)
        self._ca_file = to.ca_file
        self._ca_seen: FileStamp | None = None
        self._timeout = httpx.Timeout(read_timeout_seconds, connect=connect_timeout_seconds)
        self._client: httpx.Client | None = None
        self._kept = False

    def open(self) -> None:
        """Makes ready for a request, without sending anything. Raises CertificateTrouble."""
        self._ready()

    @contextmanager
    def stream(
        self, method: str, url: httpx.URL, *, content: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Iterator[httpx.Response]:
        """The answer to one request, of which the body is still to be read. Raises AccessTrouble before anything
        is sent, and httpx.HTTPError and OSError."""
        try:
            client = self._ready()
            response = self._send(client, client.build_request(method, url, content=content, headers=headers))
            try:
                yield response
            finally:
                response.close()
        except httpx.HTTPError as error:
            if is_about_tls(error):
                self.close()  # the next request reads them anew, though the file may look the same
            raise

    def close(self) -> None:
        """Closes the connection. Harmless when there is none."""
        if self._client is not None:
            self._client.close()
            self._client = None
            self._kept = False

    def _send(self, client: httpx.Client, request: httpx.Request) -> httpx.Response:
        """Sends once more at once where a connection that was kept turns out to have been closed just now: that is
        no trouble of the server's."""
        kept, self._kept = self._kept, False
        try:
            response = client.send(request, stream=True)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            if not kept:
                raise
            response = client.send(request, stream=True)
        self._kept = True
        return response

    def _ready(self) -> httpx.Client:
        if self._ca_file:
            seen = stamp_of(Path(self._ca_file))
            if seen != self._ca_seen:
                self.close()
            self._ca_seen = seen
        if self._client is None:
            self._client = self._opened()
        return self._client

    def _opened(self) -> httpx.Client:
        return httpx.Client(
            auth=self._auth,
            verify=_certificates(self._ca_file) if self.url.scheme == "https" else False,
            trust_env=False,
            follow_redirects=False,
            timeout=self._timeout,
            limits=httpx.Limits(max_connections=1, keepalive_expiry=_KEEP_ALIVE_SECONDS),
            headers={
                "User-Agent": f"gpumon-agent/{__version__}",
                "Content-Type": "application/json",
                "Accept-Encoding": "identity",
            },
        )


def checked_url(to: Destination) -> httpx.URL:
    """The address, where it can be one and goes together with the other settings. Raises SettingsError."""
    try:
        url = httpx.URL(to.url)
        url.raw_host.decode().encode("idna")  # as it is when it is looked up
    except (httpx.InvalidURL, UnicodeError) as error:
        # Neither the address nor httpx's words on it are shown: there may be a password in both.
        raise SettingsError(
            "the server's address can't be used; see [SERVER] server_host (such as http://gpumon), server_port, "
            "api_endpoint"
        ) from error
    if not url.host or (url.port is not None and not 1 <= url.port <= 65535):
        raise SettingsError(
            "the server's address must have a host and a port of 1 to 65535; see [SERVER] server_host (such as "
            "http://gpumon) and server_port"
        )
    if to.token_file and url.userinfo:
        raise SettingsError(
            "[AUTHENTICATION] token_file is set, and [SERVER] server_host has a name and password; the server can "
            "be shown only one of them: leave the other out"
        )
    if to.ca_file and url.scheme != "https":
        raise SettingsError(
            "[SERVER] ca_file is set, but server_host begins with http://, where no certificate is looked at; "
            "write https:// if the server has one, or leave ca_file empty"
        )
    return url


def is_about_tls(error: BaseException) -> bool:
    """Whether a request failed for TLS: by the certificates, or because the other end speaks no TLS."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError | CertificateTrouble):
            return True
        cause = cause.__cause__ or cause.__context__  # httpcore takes the cause away, and leaves the context
    return False


def without_secret(request: httpx.Request, said: Text) -> Text:
    """What an answer says, for people. Some servers repeat what they were shown: that is left out."""
    shown = request.headers.get("Authorization", "").partition(" ")[2]
    if not shown:
        return said
    return said.replace(shown, "***") if isinstance(said, str) else said.replace(shown.encode(), b"***")


def reason_of(error: Exception) -> str:
    """The kind of trouble and what the system says of it, the same each time it happens."""
    if isinstance(error, AccessTrouble):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _certificates(ca_file: str) -> ssl.SSLContext:
    if not ca_file:
        return _of_the_system()
    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError as error:
        raise CertificateTrouble(f"[SERVER] ca_file {ca_file} has no certificate in PEM") from error
    except OSError as error:
        raise CertificateTrouble(f"can't read [SERVER] ca_file {ca_file}: {error.strerror or error}") from error


def _of_the_system() -> ssl.SSLContext:
    """Where a variable names what can't be read, OpenSSL says nothing and believes nobody. Of several folders one
    is enough. Raises CertificateTrouble."""
    context = ssl.create_default_context()
    file, folders = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    advice = "let it name one, or take it away for the system's certificates"
    if file:
        try:
            context.load_verify_locations(file)
        except OSError as error:
            raise CertificateTrouble(
                f"the variable SSL_CERT_FILE names {file}, no readable file of certificates in PEM: {advice}"
            ) from error
    if folders and not any(os.access(Path(each, "."), os.X_OK) for each in folders.split(os.pathsep)):
        raise CertificateTrouble(f"the variable SSL_CERT_DIR names {folders}, no readable folder: {advice}")
    return context
