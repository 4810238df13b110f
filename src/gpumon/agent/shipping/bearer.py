"""The token that an agent shows: from a file, read anew for each request, so that a new one needs no restart."""

from __future__ import annotations

import os
import stat
from collections.abc import Generator

import httpx

from gpumon.tokenfile import fits_a_header, tokens_in

_TOKEN_FILE_BYTES = 65536
"""More than a token file ever has; a service account's token takes some 1000."""


class AccessTrouble(Exception):
    """A file without which the server is not to be asked can't be used now. The message names the file and its
    setting, never what is in it."""


class TokenTrouble(AccessTrouble):
    """It is the token."""


class Bearer(httpx.Auth):
    """Shows the token that is in the file now."""

    def __init__(self, file: str) -> None:
        self._file = file

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Raises TokenTrouble."""
        request.headers["Authorization"] = f"Bearer {read_token(self._file)}"
        yield request


def read_token(file: str) -> str:
    """The first token of the file; the server takes each of its own. Raises TokenTrouble."""
    named = f"[AUTHENTICATION] token_file {file}"
    try:
        # Without O_NONBLOCK a pipe would be waited for until somebody writes to it.
        with open(
            file, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
        ) as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise TokenTrouble(f"{named} is no regular file; write the token to one")
            content = opened.read(_TOKEN_FILE_BYTES + 1)
    except OSError as error:
        raise TokenTrouble(f"can't read {named}: {error.strerror or error}") from error
    if len(content) > _TOKEN_FILE_BYTES:
        raise TokenTrouble(f"{named} is larger than {_TOKEN_FILE_BYTES} bytes; write nothing but tokens to it")
    _, token = next(tokens_in(content), (0, b""))
    if not token:
        raise TokenTrouble(f"{named} has no token; write it to the first line")
    if not fits_a_header(token):
        raise TokenTrouble(
            f"{named}: its first line has other characters than visible ASCII in it, such as a blank or a letter "
            "with an accent; an HTTP header can't carry it, so write a token there"
        )
    return token.decode("ascii")
