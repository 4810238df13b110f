"""The format of token files, the same for agent and server: a token a line; blank lines and # lines are none."""

from __future__ import annotations

from collections.abc import Iterator


def tokens_in(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The tokens of a file with the numbers of their lines, whatever characters they have."""
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        token = line.strip()
        if token and not token.startswith(b"#"):
            yield number, token


def fits_a_header(token: bytes) -> bool:
    """Whether HTTP can carry it: visible ASCII, no blank."""
    return all(0x21 <= byte <= 0x7E for byte in token)
