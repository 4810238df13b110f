"""Tokens in a file, one a line; read again when the file changes, so that they are rotated without a restart.

What the file says is looked at whenever a token is (one `stat`). A file that can't be used any more changes
nothing: the tokens known last go on to hold, and the log says what is wrong.
"""

from __future__ import annotations

import hmac
import logging
import os
import stat
from hashlib import sha256
from pathlib import Path

from gpumon.errors import SettingsError
from gpumon.filestamp import FileStamp, stamp_of, stamped
from gpumon.logs import Trouble
from gpumon.server.auth.refusal import Reason, Refusal
from gpumon.tokenfile import fits_a_header, tokens_in

log = logging.getLogger(__name__)

LEAST_CHARACTERS = 16
"""A shorter token can be guessed."""
_FILE_BYTES = 1 << 20


class TokenFile:
    """Implements `gpumon.server.auth.refusal.Holders`: whoever has one of the tokens."""

    def __init__(self, file: Path, key: str) -> None:
        self._file = file
        self._key = key
        self._digests: list[bytes] = []
        self._seen: FileStamp | None = None
        self._trouble = Trouble(log, f"tokens key={key}")

    @classmethod
    def open(cls, file: str, key: str) -> TokenFile:
        """The tokens of the file that the setting `key` of [AUTH] names. Raises SettingsError."""
        tokens = cls(Path(file), key)
        tokens._digests, tokens._seen = tokens._read()
        return tokens

    def lets_in(self, token: bytes) -> bool:
        """Whether it is one of the tokens. Takes as long for a wrong one as for a right one."""
        self._refresh()
        shown, found = sha256(token).digest(), False
        for digest in self._digests:
            found |= hmac.compare_digest(digest, shown)
        return found

    def worth_asking(self, token: bytes, *, limited: bool, under_way: int) -> bool:
        """Whether its address is not limited: the file has said all there is to know."""
        return not limited

    async def ask(self, token: bytes) -> Refusal | None:
        """Refuses, for a token that is not let in is wrong."""
        return Refusal(
            Reason.UNKNOWN,
            f"this token is none of those in the server's [AUTH] {self._key}; send one of them, or add it there",
        )

    def _refresh(self) -> None:
        seen = stamp_of(self._file)
        if seen == self._seen and seen is not None:
            return
        try:
            digests, read = self._read()
        except SettingsError as error:
            self._trouble.occurred(str(error), do="the tokens known before go on to hold")
            self._seen = None  # also a file that looks the same later is read again
            return
        self._trouble.ended()
        log.info("tokens_read_again key=%s tokens=%d", self._key, len(digests))
        self._digests, self._seen = digests, read

    def _read(self) -> tuple[list[bytes], FileStamp]:
        """The tokens' digests, and the stamp of the file that they were read from."""
        named = f"[AUTH] {self._key} {self._file}"
        try:
            if not stat.S_ISREG(self._file.stat().st_mode):  # opening a pipe would wait for somebody who writes
                raise SettingsError(f"{named} is no regular file; let it name one with a token on each line")
            with self._file.open("rb") as opened:
                stamp = stamped(os.fstat(opened.fileno()))
                content = opened.read(_FILE_BYTES + 1)
        except OSError as error:
            raise SettingsError(
                f"can't read {named}: {error.strerror or error}; let it name a file that the server may read, "
                "with a token on each line"
            ) from error
        if len(content) > _FILE_BYTES:
            raise SettingsError(
                f"{named} is larger than {_FILE_BYTES >> 20} MiB; let it name a file with a token on each line, "
                "and nothing else"
            )
        digests = []
        for number, token in tokens_in(content):
            if fault := _fault(token):
                raise SettingsError(f"{named}, line {number}: the token {fault}")
            digests.append(sha256(token).digest())
        if not digests:
            raise SettingsError(
                f"{named} has no token in it; write one on a line of its own, such as what `openssl rand -hex 32` "
                "prints"
            )
        return digests, stamp


def _fault(token: bytes) -> str:
    """What is wrong with a token, without the token; "" where nothing is."""
    if len(token.split()) > 1:
        return "has a space in it; write one token a line, and comments on lines of their own"
    if not fits_a_header(token):
        return "has other characters than visible ASCII in it; an HTTP header can't carry it, so take another"
    if len(token) < LEAST_CHARACTERS:
        return f"is shorter than {LEAST_CHARACTERS} characters and can be guessed; take a longer one"
    return ""
