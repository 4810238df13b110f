"""https: by a real handshake, with a certificate renewed under a running server, and on every interface."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import trustme

from gpumon import listening
from gpumon.errors import SettingsError
from gpumon.server import tls
from gpumon.server.serve import ServerProcess
from gpumon.server.tls import Certificate
from tests.samples import sample
from tests.server.conftest import settings_for

PATIENCE_SECONDS = 20


@pytest.fixture
def ca() -> trustme.CA:
    return trustme.CA()


def write_pair(folder: Path, leaf: trustme.LeafCert) -> dict[str, str]:
    """Certificate and key as files of the [SERVER] keys, each put in its place whole."""
    folder.mkdir(exist_ok=True)
    chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
    for name, content in (("tls.crt", chain), ("tls.key", leaf.private_key_pem.bytes())):
        (folder / "new").write_bytes(content)
        (folder / "new").replace(folder / name)
    return {"tls_cert_file": str(folder / "tls.crt"), "tls_key_file": str(folder / "tls.key")}


def trusting(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    return context


@contextmanager
def running(folder: Path, **server: object) -> Iterator[int]:
    """A server's port, while it runs."""
    process = ServerProcess(settings_for(folder / "data", server=server))
    thread = threading.Thread(target=process.run, name="server-under-test")
    thread.start()
    try:
        assert process.listening.wait(PATIENCE_SECONDS)
        assert process.port is not None
        yield process.port
    finally:
        process.stop()
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


def shown(port: int, *, name: str | None = "localhost", versions: Callable[[ssl.SSLContext], None] = id) -> bytes:
    """The certificate (DER) that a new connection is shown."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    versions(context)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as link,
        context.wrap_socket(link, server_hostname=name) as secured,
    ):
        certificate = secured.getpeercert(binary_form=True)
        assert certificate is not None
        return certificate


def der(leaf: trustme.LeafCert) -> bytes:
    return ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_samples_come_and_answers_go_by_https(
    tmp_path: Path, ca: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pair = write_pair(tmp_path / "tls", ca.issue_cert("localhost", "127.0.0.1"))
    with running(tmp_path, **pair) as port:
        url = f"https://localhost:{port}"
        with httpx.Client(base_url=url, verify=trusting(ca), trust_env=False, timeout=PATIENCE_SECONDS) as client:
            assert client.post("/api/receive-data", json=[sample()]).status_code == 200
            assert client.get("/api/gpus").status_code == 200
        with (
            httpx.Client(verify=ssl.create_default_context(), trust_env=False) as stranger,
            pytest.raises(httpx.ConnectError, match="certificate verify failed"),
        ):
            stranger.get(f"{url}/health")
        with httpx.Client(trust_env=False) as plain, pytest.raises(httpx.HTTPError):
            plain.get(f"http://localhost:{port}/health")
    assert f"server_listening host=127.0.0.1 port={port} scheme=https" in caplog.text


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_older_than_tls_1_2_is_refused(tmp_path: Path, ca: trustme.CA) -> None:
    def only(version: ssl.TLSVersion) -> Callable[[ssl.SSLContext], None]:
        def choose(context: ssl.SSLContext) -> None:
            context.set_ciphers("DEFAULT@SECLEVEL=0")
            context.minimum_version = context.maximum_version = version

        return choose

    leaf = ca.issue_cert("localhost")
    with running(tmp_path, **write_pair(tmp_path / "tls", leaf)) as port:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            assert shown(port, versions=only(version)) == der(leaf)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            shown(port, versions=only(ssl.TLSVersion.TLSv1_1))


def test_a_renewed_certificate_needs_no_restart(
    tmp_path: Path, ca: trustme.CA, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(tls, "LOOK_SECONDS", 0.01)
    old, new = ca.issue_cert("localhost"), ca.issue_cert("localhost")
    with (
        running(tmp_path, **write_pair(tmp_path / "tls", old)) as port,
        httpx.Client(base_url=f"https://localhost:{port}", verify=trusting(ca), trust_env=False) as kept,
    ):
        assert kept.get("/health").status_code == 200
        assert shown(port) == der(old)
        write_pair(tmp_path / "tls", new)
        wait_until(lambda: shown(port) == der(new))
        assert shown(port, name=None) == der(new)  # also for clients that name no host
        assert kept.get("/health").status_code == 200
    assert "tls_certificate_read_again" in caplog.text


def test_a_renewal_that_does_not_fit_leaves_the_certificate_before(
    tmp_path: Path, ca: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    old, other, new = (ca.issue_cert("localhost") for _ in range(3))
    pair = write_pair(tmp_path / "tls", old)
    certificate = Certificate.named(**{name.removeprefix("tls_"): file for name, file in pair.items()})
    assert certificate is not None

    def handshake() -> bytes:
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def serve() -> None:
                link, _ = listener.accept()
                with certificate.context.wrap_socket(link, server_side=True) as secured:
                    secured.recv(1)

            thread = threading.Thread(target=serve)
            thread.start()
            try:
                return shown(listener.getsockname()[1])
            finally:
                thread.join(PATIENCE_SECONDS)

    for spoil in (
        lambda: (tmp_path / "tls" / "tls.key").write_bytes(other.private_key_pem.bytes()),
        lambda: (tmp_path / "tls" / "tls.crt").write_text("not yet"),
        (tmp_path / "tls" / "tls.crt").unlink,
    ):
        spoil()
        for _ in range(3):
            certificate.refresh()
            assert handshake() == der(old)
    write_pair(tmp_path / "tls", new)
    for _ in range(3):
        certificate.refresh()
        assert handshake() == der(new)
    events = [record.getMessage().split()[0] for record in caplog.records if record.name == tls.__name__]
    assert events == ["trouble", "trouble", "trouble", "recovered", "tls_certificate_read_again"]


def test_files_that_could_not_be_used_are_tried_again_though_they_look_the_same(
    tmp_path: Path, ca: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    """As when the server was not let read them."""
    caplog.set_level(logging.INFO)
    pair = write_pair(tmp_path / "tls", ca.issue_cert("localhost"))
    certificate = Certificate.named(**{name.removeprefix("tls_"): file for name, file in pair.items()})
    assert certificate is not None
    write_pair(tmp_path / "tls", ca.issue_cert("localhost"))
    file = Path(pair["tls_cert_file"])
    good, times = file.read_bytes(), (1_800_000_000, 1_800_000_000)
    for content in (b"x" * len(good), good):
        file.write_bytes(content)
        os.utime(file, times)
        certificate.refresh()
    events = [record.getMessage().split()[0] for record in caplog.records if record.name == tls.__name__]
    assert events == ["trouble", "recovered", "tls_certificate_read_again"]


@pytest.mark.parametrize("key", ["tls_cert_file", "tls_key_file"])
def test_one_of_the_two_files_alone_is_refused(tmp_path: Path, ca: trustme.CA, key: str) -> None:
    pair = write_pair(tmp_path / "tls", ca.issue_cert("localhost"))
    with pytest.raises(SettingsError, match=r"https needs both, http neither"):
        ServerProcess(settings_for(tmp_path / "data", server={key: pair[key]}))


def test_files_that_can_not_be_used_are_refused_at_the_start(tmp_path: Path, ca: trustme.CA) -> None:
    pair = write_pair(tmp_path / "tls", ca.issue_cert("localhost"))
    other = write_pair(tmp_path / "other", ca.issue_cert("localhost"))
    (tmp_path / "text").write_text("hello")
    locked = tmp_path / "locked.key"
    locked.write_bytes(_with_password(Path(pair["tls_key_file"]).read_bytes()))
    for changed, says in (
        ({"tls_key_file": other["tls_key_file"]}, "can't be used together"),
        ({"tls_cert_file": str(tmp_path / "text")}, "can't be used together"),
        ({"tls_key_file": str(tmp_path / "text")}, "can't be used together"),
        ({"tls_key_file": str(locked)}, "without a password"),
        ({"tls_cert_file": str(tmp_path / "absent")}, r"can't read \[SERVER\] tls_cert_file .*No such file"),
        ({"tls_key_file": str(tmp_path)}, r"can't read \[SERVER\] tls_key_file .*directory"),
    ):
        with pytest.raises(SettingsError, match=says):
            ServerProcess(settings_for(tmp_path / "data", server=pair | changed))


def _with_password(key: bytes) -> bytes:
    from cryptography.hazmat.primitives import serialization as forms

    return forms.load_pem_private_key(key, None).private_bytes(
        forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.BestAvailableEncryption(b"secret")
    )


def test_every_interface_is_ipv4_and_where_there_is_any_ipv6(tmp_path: Path) -> None:
    with running(tmp_path, host="*") as port:
        for address in ["127.0.0.1"] + (["[::1]"] if socket.has_dualstack_ipv6() else []):
            with httpx.Client(trust_env=False, timeout=PATIENCE_SECONDS) as client:
                assert client.get(f"http://{address}:{port}/health").status_code == 200


@pytest.mark.parametrize("known", [False, True])
def test_every_interface_is_ipv4_where_ipv6_is_switched_off(monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    """The kernel has it or not; either way, no address of it can be had."""
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: known)
    real = socket.create_server

    def without_ipv6(address: tuple[str, int], **options: object) -> socket.socket:
        if ":" in address[0]:
            raise OSError(99, "Cannot assign requested address")
        return real(address, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "create_server", without_ipv6)
    with listening.listen("*", 0, 5) as listener:
        assert listener.family == socket.AF_INET
        assert listener.getsockname()[0] == "0.0.0.0"


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_a_port_that_is_taken_is_no_reason_to_listen_on_ipv4_alone() -> None:
    with (
        socket.create_server(("::1", 0), family=socket.AF_INET6) as taken,
        pytest.raises(OSError, match="in use"),
    ):
        listening.listen("*", taken.getsockname()[1], 5)


def test_a_taken_port_is_a_wrong_setting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = ServerProcess(settings_for(tmp_path / "data", server={"port": taken.getsockname()[1]}))
        with pytest.raises(SettingsError, match=r"can't listen on 127.0.0.1:.*\[SERVER\] host and port"):
            process.run()
