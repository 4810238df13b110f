"""https to the server: whom the agent believes, and that a new authority needs no restart. Real TLS."""

from __future__ import annotations

import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from gpumon.agent.counts import DeliveryCounts
from gpumon.agent.ports import Outcome
from gpumon.agent.shipping.connection import Destination
from gpumon.agent.shipping.sender import HttpSink
from gpumon.errors import SettingsError
from tests.agent.doors import Receiver, batch
from tests.agent.test_sender import deliver


class TlsReceiver(Receiver):
    """A receiver that speaks https, by a certificate for 127.0.0.1 that can be changed while it runs."""

    def __init__(self, authority: trustme.CA) -> None:
        super().__init__()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.certify(authority)
        self._server.socket = self._context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client may turn away
        self.url = self.url.replace("http://", "https://")

    def certify(self, authority: trustme.CA, name: str = "127.0.0.1") -> None:
        """From the next connection on."""
        authority.issue_cert(name).configure_cert(self._context)


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def receiver(authority: trustme.CA) -> Iterator[TlsReceiver]:
    with TlsReceiver(authority) as receiver:
        yield receiver


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    file = tmp_path / "ca.crt"
    authority.cert_pem.write_to_path(str(file))
    return file


def sink_of(receiver: Receiver, ca_file: Path) -> HttpSink:
    return HttpSink(
        Destination(receiver.url, ca_file=str(ca_file)),
        DeliveryCounts(),
        connect_timeout_seconds=5.0,
        read_timeout_seconds=5.0,
        compress=True,
    )


def test_a_server_that_the_authority_vouches_for_gets_the_batch_and_the_token(
    receiver: TlsReceiver, ca_file: Path, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("t0ken")
    outcomes = deliver(Destination(receiver.url, str(token), str(ca_file)), batch(1, body=b'[{"gpu_id":0}]'))

    assert outcomes == [Outcome("delivered")]
    (post,) = receiver.posts
    assert (post.headers["Authorization"], post.samples) == ("Bearer t0ken", [{"gpu_id": 0}])


def test_a_server_of_another_authority_gets_nothing_and_is_tried_again(
    receiver: TlsReceiver, tmp_path: Path
) -> None:
    other = tmp_path / "other.crt"
    trustme.CA().cert_pem.write_to_path(str(other))
    for to in (Destination(receiver.url, ca_file=str(other)), Destination(receiver.url)):
        (outcome,) = deliver(to, batch(1))
        assert outcome.kind == "retry"
        assert "certificate verify failed" in outcome.reason

    assert receiver.posts == []


def test_a_certificate_of_another_name_is_not_believed(
    receiver: TlsReceiver, authority: trustme.CA, ca_file: Path
) -> None:
    receiver.certify(authority, "gpumon.example")
    (outcome,) = deliver(Destination(receiver.url, ca_file=str(ca_file)), batch(1))

    assert outcome.kind == "retry"
    assert "IP address mismatch" in outcome.reason


def test_a_new_authority_is_taken_up_without_a_restart(receiver: TlsReceiver, ca_file: Path) -> None:
    sink, new = sink_of(receiver, ca_file), trustme.CA()
    try:
        assert sink.deliver(batch(1)).kind == "delivered"
        new.cert_pem.write_to_path(str(ca_file))
        assert sink.deliver(batch(2)).kind == "retry", "the old certificate is not believed any more"
        receiver.certify(new)
        assert sink.deliver(batch(2)).kind == "delivered"
    finally:
        sink.close()

    assert receiver.batch_ids() == ["node-1/boot1/1", "node-1/boot1/2"]


def test_after_a_failed_handshake_the_file_is_read_again_though_it_looks_the_same(
    receiver: TlsReceiver, ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpumon.agent.shipping.connection.stamp_of", lambda _: (1, 2, 3, 4))
    sink, new = sink_of(receiver, ca_file), trustme.CA()
    try:
        receiver.certify(new)
        assert sink.deliver(batch(1)).kind == "retry"
        new.cert_pem.write_to_path(str(ca_file))
        assert sink.deliver(batch(1)).kind == "delivered"
    finally:
        sink.close()


def test_a_ca_file_that_is_spoilt_while_the_agent_runs_is_trouble_until_it_is_mended(
    receiver: TlsReceiver, ca_file: Path
) -> None:
    sink, whole = sink_of(receiver, ca_file), ca_file.read_bytes()
    try:
        assert sink.deliver(batch(1)).kind == "delivered"
        ca_file.write_bytes(b"no PEM")
        spoilt = sink.deliver(batch(2))
        assert spoilt.kind == "retry"
        assert f"[SERVER] ca_file {ca_file} has no certificate in PEM" in spoilt.reason
        ca_file.unlink()
        gone = sink.deliver(batch(2))
        assert gone.kind == "retry"
        assert f"can't read [SERVER] ca_file {ca_file}: No such file" in gone.reason
        ca_file.write_bytes(whole)
        assert sink.deliver(batch(2)).kind == "delivered"
    finally:
        sink.close()


@pytest.mark.parametrize("content", [None, b"", b"no PEM", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_ca_file_that_cannot_be_used_at_the_start_is_a_wrong_setting(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "ca.crt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match=r"\[SERVER\] ca_file"):
        deliver(Destination("https://127.0.0.1:9/", ca_file=str(file)), batch(1))


def test_a_ca_file_without_https_is_a_wrong_setting(ca_file: Path) -> None:
    with pytest.raises(SettingsError, match=r"\[SERVER\] ca_file is set, but server_host begins with http://"):
        deliver(Destination("http://127.0.0.1:9/", ca_file=str(ca_file)), batch(1))


def test_https_to_a_server_that_speaks_http_is_tried_again(ca_file: Path) -> None:
    with Receiver() as plain:
        to = Destination(plain.url.replace("http://", "https://"), ca_file=str(ca_file))
        (outcome,) = deliver(to, batch(1))

    assert outcome.kind == "retry"
    assert "SSL" in outcome.reason


def test_for_http_no_certificate_is_loaded() -> None:
    """In an interpreter of its own, where nothing else has loaded any."""
    program = """
import ssl
from gpumon.agent.counts import DeliveryCounts
from gpumon.agent.shipping.connection import Destination
from gpumon.agent.shipping.sender import HttpSink
loads = []
ssl.SSLContext.load_verify_locations = lambda *a, **k: loads.append(a)
ssl.SSLContext.load_default_certs = lambda *a, **k: loads.append(a)
settings = dict(connect_timeout_seconds=1.0, read_timeout_seconds=1.0, compress=True)
HttpSink(Destination("http://127.0.0.1:9/"), DeliveryCounts(), **settings)
assert not loads, loads
HttpSink(Destination("https://127.0.0.1:9/"), DeliveryCounts(), **settings)
assert loads
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
