"""Protobuf's wire format by hand: the fields of a message, read and written; pure.

A reader asks for the fields that it knows. All others are skipped: a newer sender may say more. Bytes that are no
protobuf, or give one of the fields another type, are Malformed as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _GROUP_START, _GROUP_END, _FIXED32 = 0, 1, 2, 3, 4, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_LARGEST_TAG = 0xFFFF_FFFF


class Malformed(Exception):
    """Bytes that are not the message they should be. The text says why, in a few words."""


def known_fields(message: bytes, *numbers: int) -> Iterator[tuple[int, bytes]]:
    """(field number, value) of the fields with these numbers, which are of text or a message, in the message's
    order. Raises Malformed where one of them is of another type, and for whatever is no protobuf, in the fields
    between, too."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if number not in numbers:
            at = _skip(message, at, tag)
        elif kind == _BYTES:
            length, at = _varint(message, at)
            end = _within(message, at + length)
            yield number, message[at:end]
            at = end
        else:
            raise Malformed(f"field {number} is of another type")


def known_integer(message: bytes, wanted: int) -> int:
    """The integer in the field of this number: the last one, 0 where there is none, as proto3 has it. Raises
    Malformed."""
    at = value = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if number != wanted:
            at = _skip(message, at, tag)
        elif kind == _VARINT:
            value, at = _varint(message, at)
        else:
            raise Malformed(f"field {number} is of another type")
    return value


def as_text(value: bytes) -> str:
    """A field's value as text, with U+FFFD in the place of what is no UTF-8."""
    return value.decode("utf-8", errors="replace")


def nested(number: int, message: bytes) -> bytes:
    """A field with a message in it."""
    return _written(number << 3 | _BYTES) + _written(len(message)) + message


def text(number: int, value: str) -> bytes:
    """A field of text; none at all where it is empty, as in proto3."""
    return nested(number, value.encode()) if value else b""


def flag(number: int, value: bool) -> bytes:
    """A field that is true; none at all where it is false, as in proto3."""
    return _written(number << 3 | _VARINT) + b"\x01" if value else b""


def _skip(message: bytes, at: int, tag: int) -> int:
    """Where the field ends whose tag was read and whose value begins at `at`; a group does with its end tag."""
    groups: list[int] = []
    while True:
        number, kind = tag >> 3, tag & 7
        if number == 0 or tag > _LARGEST_TAG:
            raise Malformed("it has a field without a number that can be")
        if kind == _VARINT:
            _, at = _varint(message, at)
        elif kind == _BYTES:
            length, at = _varint(message, at)
            at = _within(message, at + length)
        elif kind in _FIXED_BYTES:
            at = _within(message, at + _FIXED_BYTES[kind])
        elif kind == _GROUP_START:
            groups.append(number)
        elif kind != _GROUP_END or not groups or groups.pop() != number:
            raise Malformed("it has a field of no type that there is")
        if not groups:
            return at
        tag, at = _varint(message, at)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The integer at `at`, of ten bytes at most, and where it ends."""
    if at < len(message) and message[at] < 0x80:  # nearly every one
        return message[at], at + 1
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise Malformed("it ends too early")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise Malformed("it has an integer that does not end")


def _within(message: bytes, end: int) -> int:
    if end > len(message):
        raise Malformed("it ends too early")
    return end


def _written(value: int) -> bytes:
    """An integer that is not negative, seven bits to a byte, the least first."""
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])
