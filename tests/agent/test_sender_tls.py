"""https to the server: whom the agent believes, and that a new authority needs no restart. Real TLS."""

from __future__ import annotations

import hashlib
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import trustme
from cryptography import x509

from gpumon.agent.counts import DeliveryCounts
from gpumon.agent.ports import Outcome
from gpumon.agent.settings import Network
from gpumon.agent.shipping.connection import Destination
from gpumon.agent.shipping.sender import HttpSink
from gpumon.errors import SettingsError
from gpumon.server.serve import KEEP_ALIVE_SECONDS
from tests.agent.doors import Receiver, Times, batch
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
        self.handshakes = 0
        self._context.sni_callback = self._begun
        self.url = self.url.replace("http://", "https://")

    def _begun(self, *_: object) -> None:
        self.handshakes += 1

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


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)


@pytest.mark.usefixtures("no_variables")
def test_without_a_ca_file_the_system_s_authorities_are_believed(
    receiver: TlsReceiver, ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's store is the one that OpenSSL was built with; here the authority is installed there."""
    monkeypatch.setattr(
        ssl.SSLContext, "set_default_verify_paths", lambda context: context.load_verify_locations(ca_file)
    )

    assert deliver(Destination(receiver.url), batch(1)) == [Outcome("delivered")]


def hashed(authority: trustme.CA) -> str:
    """The name under which OpenSSL looks for an authority in a folder."""
    subject = x509.load_pem_x509_certificate(authority.cert_pem.bytes()).subject
    canonical = x509.Name([x509.NameAttribute(each.oid, str(each.value).lower()) for each in subject])
    digest = hashlib.sha1(canonical.public_bytes()[2:]).digest()
    return f"{int.from_bytes(digest[:4], 'little'):08x}.0"


@pytest.mark.usefixtures("no_variables")
@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_without_a_ca_file_those_that_the_variables_name_are_believed(
    receiver: TlsReceiver,
    authority: trustme.CA,
    ca_file: Path,
    variable: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ca_file.with_name(hashed(authority)).write_bytes(ca_file.read_bytes())
    assert deliver(Destination(receiver.url), batch(1))[0].kind == "retry"
    folders = os.pathsep.join(["/nonexistent", str(ca_file.parent)])
    monkeypatch.setenv(variable, str(ca_file) if variable == "SSL_CERT_FILE" else folders)

    assert deliver(Destination(receiver.url), batch(1)) == [Outcome("delivered")]


@pytest.mark.usefixtures("no_variables")
@pytest.mark.parametrize(
    ("variable", "named"),
    [
        ("SSL_CERT_FILE", "none.crt"),
        ("SSL_CERT_FILE", "."),
        ("SSL_CERT_FILE", "text"),
        ("SSL_CERT_DIR", "none"),
        ("SSL_CERT_DIR", "text"),
    ],
)
def test_a_variable_that_names_no_certificates_is_a_wrong_setting(
    tmp_path: Path, variable: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").write_text("no PEM")
    monkeypatch.setenv(variable, str(tmp_path / named))
    with pytest.raises(SettingsError, match=f"{variable} names {tmp_path / named}, no readable"):
        deliver("https://127.0.0.1:9/", batch(1))


def test_batches_share_a_handshake_and_none_comes_when_the_server_may_be_closing(
    receiver: TlsReceiver, ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = Times()
    monkeypatch.setattr("httpcore._sync.http11.time", SimpleNamespace(monotonic=times.monotonic))
    sink, handshakes = sink_of(receiver, ca_file), []
    try:
        for seconds in (0.0, Network().batch_interval, KEEP_ALIVE_SECONDS - 1.0):
            times.seconds += seconds
            assert sink.deliver(batch(1)) == Outcome("delivered")
            handshakes.append(receiver.handshakes)
    finally:
        sink.close()

    assert handshakes == [1, 1, 2]


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
