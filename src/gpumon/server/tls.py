"""https: a certificate and its key, read again when their files change, without a restart.

What is read anew counts for connections that begin from then on. A new pair that does not fit is logged, and the
one before goes on to hold.
"""

from __future__ import annotations

import logging
import ssl
import threading
from pathlib import Path

from gpumon.errors import SettingsError
from gpumon.filestamp import FileStamp, stamp_of
from gpumon.logs import Trouble

log = logging.getLogger(__name__)

LOOK_SECONDS = 10.0


class Certificate:
    """The server's certificate. `context` is what listens; it stays the same one. Raises SettingsError when it is
    made with files that can't be used."""

    def __init__(self, cert_file: Path, key_file: Path) -> None:
        self._files = (cert_file, key_file)
        self._seen = self._look()
        self._newest = self.context = self._load()
        self.context.sni_callback = self._choose
        self._trouble = Trouble(log, "tls_certificate")

    @classmethod
    def named(cls, cert_file: str, key_file: str) -> Certificate | None:
        """The certificate that [SERVER] names; None where it names none. Raises SettingsError where it can't be
        used."""
        if not cert_file and not key_file:
            return None
        if not cert_file or not key_file:
            given, absent = ("tls_key_file", "tls_cert_file") if key_file else ("tls_cert_file", "tls_key_file")
            raise SettingsError(f"[SERVER] {given} is set, but {absent} is not; https needs both, http neither")
        return cls(Path(cert_file), Path(key_file))

    def refresh(self) -> None:
        """Reads the files again if they have changed, or could not be used at the last look."""
        seen = self._look()
        if seen == self._seen:
            return
        try:
            self._newest = self._load()
        except SettingsError as error:
            self._trouble.occurred(str(error), do="the certificate before goes on to hold")
            self._seen = []  # also files that look the same later are read again
            return
        self._seen = seen
        self._trouble.ended()
        log.info("tls_certificate_read_again file=%s", self._files[0])

    def watch(self, stop: threading.Event) -> None:
        """Looks at the files every LOOK_SECONDS, until stopped."""
        while not stop.wait(LOOK_SECONDS):
            self.refresh()

    def _choose(
        self, connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _context: ssl.SSLContext
    ) -> None:
        """Called in each handshake, also where the client names no host: gives it the newest certificate.

        Loading it into the context that listens would be shorter; but a pair that does not fit would leave that
        one without a key."""
        connection.context = self._newest

    def _look(self) -> list[FileStamp | None]:
        return [stamp_of(file) for file in self._files]

    def _load(self) -> ssl.SSLContext:
        cert_file, key_file = self._files
        for key, file in (("tls_cert_file", cert_file), ("tls_key_file", key_file)):
            try:
                file.open("rb").close()
            except OSError as error:
                raise SettingsError(
                    f"can't read [SERVER] {key} {file}: {error.strerror or error}; let it name a PEM file that "
                    "the server may read"
                ) from error
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            # A password is never asked for: nobody sits there.
            context.load_cert_chain(cert_file, key_file, password=lambda: "")
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise SettingsError(
                f"[SERVER] tls_cert_file {cert_file} and tls_key_file {key_file} can't be used together "
                f"({getattr(error, 'reason', None) or error}); give a certificate in PEM, the chain below it, and "
                "the private key that belongs to it, without a password"
            ) from error
        return context
