"""A Kubernetes API that knows one thing: TokenReview of authentication.k8s.io/v1, over real HTTP or HTTPS.

with ReviewApi() as api:
    api.tokens[TOKEN] = Known("system:serviceaccount:monitoring:gpumon-agent")
    review = open_review(api.kubeconfig(tmp_path / "config"), "gpumon")
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
SERVERS_TOKEN = "token-of-the-server-itself"
USER = "system:serviceaccount:monitoring:gpumon-agent"


def jwt(name: str) -> str:
    """Something in the shape of a service account's token."""
    return f"eyJhbGciOiJSUzI1NiJ9.{name}.c2lnbmF0dXJl"


@dataclass(frozen=True)
class Known:
    """Whose a token is, and for whom it was made. None: the API does not know audiences, so it names none."""

    user: str = USER
    audiences: tuple[str, ...] | None = ("gpumon",)


class ReviewApi:
    """Answers by `tokens`, or where `status` is set, with that status and `message`."""

    def __init__(self, certificate: Callable[[ssl.SSLContext], None] | None = None) -> None:
        self.tokens: dict[str, Known] = {}
        self.status: int | None = None
        self.message = "no"
        self.body: bytes | None = None
        self.reviewed: list[str] = []
        self.waiting = threading.Semaphore(0)
        self._go = threading.Event()
        self._go.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.scheme = "http"
        if certificate is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            certificate(context)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self.scheme = "https"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="review-api")

    def __enter__(self) -> ReviewApi:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._go.set()
        self._server.shutdown()
        self._thread.join(20)
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self._server.server_address[1]}"

    def hold(self) -> None:
        """Requests wait from now on, each after a release of `waiting`, until `let_go`."""
        self._go.clear()

    def let_go(self) -> None:
        self._go.set()

    def kubeconfig(self, path: Path, *, ca_file: Path | None = None, token: str = SERVERS_TOKEN) -> str:
        """The path of a kubeconfig for this API. JSON is YAML."""
        cluster: dict[str, Any] = {"server": self.url}
        if ca_file is not None:
            cluster["certificate-authority"] = str(ca_file)
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "c", "cluster": cluster}],
                    "users": [{"name": "u", "user": {"token": token}}],
                    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                    "current-context": "x",
                }
            )
        )
        return str(path)

    def answer(self, review: dict[str, Any], authorization: str) -> tuple[int, dict[str, Any]]:
        token = review["spec"]["token"]
        self.reviewed.append(token)
        if authorization.lower() != f"bearer {SERVERS_TOKEN}":
            return 401, _status(401, "Unauthorized")
        if self.status is not None:
            return self.status, _status(self.status, self.message)
        assert review["apiVersion"] == "authentication.k8s.io/v1", review
        assert review["kind"] == "TokenReview", review
        known = self.tokens.get(token)
        wanted = review["spec"]["audiences"]
        status: dict[str, Any] = {"user": {}, "error": "[invalid bearer token, token lookup failed]"}
        if known is not None:
            common = [audience for audience in wanted if audience in (known.audiences or ())]
            if common or known.audiences is None:
                user = {"username": known.user, "uid": "uid-1", "groups": ["system:serviceaccounts"]}
                status = {"authenticated": True, "user": user} | ({"audiences": common} if common else {})
            else:
                status["error"] = (
                    f"[token audiences {known.audiences} is invalid for the target audiences {wanted}]"
                )
        return 201, review | {"metadata": {}, "status": status}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path == PATH, self.path
                api.waiting.release()
                api._go.wait(30)
                status, answer = api.answer(asked, self.headers.get("Authorization", ""))
                body = json.dumps(answer).encode() if api.body is None else api.body
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    if status in (301, 307):
                        self.send_header("Location", "/elsewhere")
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:  # who asked has given up
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def _status(code: int, message: str) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
