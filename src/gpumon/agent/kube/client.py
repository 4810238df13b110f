"""Requests to the Kubernetes API: credentials, connections and TLS by the `kubernetes` package, answers as bytes.

The package is imported when a client is opened, for it costs 20 MiB; its models, another 21 MiB, are never
touched. Its hook that reads an expiring token again (a service account's is rotated) runs at every request.
Proxy variables of the environment are not followed, as elsewhere in the agent; a kubeconfig's proxy-url is.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import msgspec

from gpumon import __version__
from gpumon.agent.kube.objects import Page, read_page, read_status
from gpumon.errors import KubernetesUnavailable
from gpumon.kubeaccess import SERVICE_ACCOUNT, configuration_by

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 30.0
"""Longest silence while an answer is awaited or read; the API itself gives up a list after a minute."""
PAGE_ITEMS = 100
_ERROR_BYTES = 8192
_CHUNK_BYTES = 65536
"""The API sends each event in a chunk of its own, and what is there is given at once; but many may have come."""
_SHOWN = 200
"""Characters of the API's own words that are worth a log line."""


class HttpError(KubernetesUnavailable):
    """The API has answered with an HTTP status that is no success, or so in a watch."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """The API, for one thread; only `interrupt` may be called from others. Everything raises
    KubernetesUnavailable with what is wrong and what to do."""

    def __init__(self, configuration: Any, pool: Any) -> None:
        self._configuration = configuration
        self._pool = pool
        self._lock = threading.Lock()
        self._response: BaseHTTPResponse | None = None
        self._interrupted = False

    def get(self, path: str, query: Mapping[str, str] | None = None) -> bytes:
        """An object's JSON."""
        with self._answer(path, query or {}, ANSWER_SECONDS) as response:
            return response.read()

    def pages(self, path: str, query: Mapping[str, str]) -> Iterator[Page]:
        """A list, page by page. Raises HttpError 410 where it has changed so much that its next page can't be
        had any more."""
        query = {**query, "limit": str(PAGE_ITEMS)}
        while True:
            try:
                page = read_page(self.get(path, query))
            except msgspec.MsgspecError as error:
                raise KubernetesUnavailable(
                    f"{self._configuration.host} does not answer like a Kubernetes API ({error}); see the address"
                ) from error
            yield page
            if not page.metadata.continue_token:
                return
            query.pop("resourceVersion", None)  # the API takes either that or a page
            query["continue"] = page.metadata.continue_token

    @contextlib.contextmanager
    def lines(self, path: str, query: Mapping[str, str], silence_seconds: float) -> Iterator[Iterator[bytes]]:
        """A watch, once the API has accepted it: its lines, as they come, until the API ends it. Raises where it
        breaks, or says nothing for `silence_seconds`."""
        with self._answer(path, query, silence_seconds) as response:
            yield _lines(response)

    def interrupt(self) -> None:
        """Ends the answer that is being read, and every later request. A request that is not answered yet goes
        on until it is, or until its timeout."""
        with self._lock:
            self._interrupted = True
            self._shut_down()

    def close(self) -> None:
        """Closes the connections."""
        self._pool.clear()

    @contextlib.contextmanager
    def _answer(self, path: str, query: Mapping[str, str], silence_seconds: float) -> Iterator[BaseHTTPResponse]:
        from urllib3 import Timeout  # noqa: PLC0415  comes with the package
        from urllib3.exceptions import HTTPError  # noqa: PLC0415

        address = f"{self._configuration.host}{path}" + (f"?{urlencode(query)}" if query else "")
        response: BaseHTTPResponse | None = None
        if self._interrupted:
            raise KubernetesUnavailable("the agent is stopping")
        try:
            response = self._pool.request(
                "GET",
                address,
                headers=self._headers(),
                timeout=Timeout(connect=CONNECT_SECONDS, read=silence_seconds),
                preload_content=False,
                redirect=False,
                retries=False,
            )
            assert response is not None
            with self._lock:
                self._response = response
                if self._interrupted:
                    self._shut_down()
            if response.status != 200:
                raise _refused(response, self._configuration.host, path)
            yield response
        except (HTTPError, OSError) as error:
            raise KubernetesUnavailable(_unreachable(error, self._configuration.host)) from error
        finally:
            with self._lock:
                self._response = None
            if response is not None:
                response.close()

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json", "User-Agent": f"gpumon-agent/{__version__}"}
        try:
            given = self._configuration.auth_settings().values()
        except Exception as error:  # a token file, a plugin or an identity provider: each has its own errors
            raise KubernetesUnavailable(
                f"can't read the credentials for the Kubernetes API again: {error}"
            ) from error
        return headers | {setting["key"]: setting["value"] for setting in given if setting["value"]}

    def _shut_down(self) -> None:
        if self._response is not None:
            # It may have been read to its end in this very moment, and its connection closed.
            with contextlib.suppress(RuntimeError, ValueError, OSError):
                self._response.shutdown()


def open_client(kubeconfig: str, *, service_account: Path = SERVICE_ACCOUNT) -> Client:
    """A client by a kubeconfig file, or where that is empty, by the service account of this pod. Connects to
    nothing yet. Raises KubernetesUnavailable where there are no credentials."""
    try:
        from kubernetes.client.rest import RESTClientObject  # noqa: PLC0415  see the top
    except ImportError as error:
        raise KubernetesUnavailable(
            f"can't import the kubernetes package ({error}); install gpumon[agent], or set [KUBERNETES] "
            "pod_metadata to off"
        ) from error
    try:
        configuration = configuration_by(kubeconfig, service_account)
        configuration.keep_alive = True  # a peer that is gone is noticed before a watch's time is up
        configuration.connection_pool_maxsize = 1
        return Client(configuration, RESTClientObject(configuration).pool_manager)
    except Exception as error:  # what is wrong with such a file, the package tells by errors of every kind
        where = f"the kubeconfig {kubeconfig}" if kubeconfig else "the service account of this pod"
        raise KubernetesUnavailable(
            f"no credentials for the Kubernetes API by {where}: {error}; set [KUBERNETES] kubeconfig to a file "
            "that can be read, or in a cluster automountServiceAccountToken to true, or pod_metadata to off"
        ) from error


def _lines(response: BaseHTTPResponse) -> Iterator[bytes]:
    """What has come of a line when the answer ends is given, too: its reader finds that it is cut."""
    rest = b""
    for chunk in response.stream(_CHUNK_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line for line in lines if line.strip())
    if rest.strip():
        yield rest


def _refused(response: BaseHTTPResponse, host: str, path: str) -> HttpError:
    body = response.read(_ERROR_BYTES)
    try:
        said = read_status(body).message
    except msgspec.MsgspecError:
        said = body.decode("utf-8", errors="replace")
    said = said.strip()[:_SHOWN]
    status = response.status
    resource = "nodes" if "/nodes/" in path else path.rpartition("/")[2]
    advice = {
        401: "its token has expired or is for another cluster: mount the service account's token, or renew the "
        "kubeconfig",
        403: f"its service account lacks a right on {resource}: deploy the chart with agent.podMetadata on, "
        "which grants it, or switch pod metadata off",
        429: "the API is overloaded; the agent comes back",
    }.get(
        status, "see the API server's log" if status >= 500 else "see that the address is that of a Kubernetes API"
    )
    return HttpError(
        f"{host} refuses this agent's request for {resource} (HTTP {status}: {said}); {advice}", status
    )


def _unreachable(error: Exception, host: str) -> str:
    from urllib3 import exceptions  # noqa: PLC0415

    cause: BaseException = error
    while cause.__cause__ is not None or (cause.args and isinstance(cause.args[0], BaseException)):
        cause = cause.__cause__ or cause.args[0]
    if isinstance(error, exceptions.LocationValueError):
        return f"{host} can't be asked ({cause}); see the server's address in the kubeconfig"
    if isinstance(error, exceptions.NameResolutionError):
        return f"the name of {host} can't be resolved; see the cluster's DNS and the address of the API"
    if isinstance(error, exceptions.SSLError | ssl.SSLError):
        return f"no TLS connection to {host} ({cause}); see the cluster's certificate authority and the address"
    if isinstance(error, exceptions.NewConnectionError):
        return f"no connection to {host} ({cause}); see that the API server runs, network policies and the address"
    if isinstance(error, exceptions.ConnectTimeoutError):  # a NewConnectionError is one, too
        return (
            f"{host} does not accept a connection in {CONNECT_SECONDS:g} s; see network policies and the address"
        )
    if isinstance(error, exceptions.ReadTimeoutError):
        return f"{host} has fallen silent; see the API server and what lies between"
    return f"the connection to {host} has broken ({cause}); see the API server and what lies between"
