"""Thrift's compact protocol, as far as a Parquet file's footer and page headers need it.

A struct is a dictionary from field number to value: plain integers are i32, `I64` is i64, text and
bytes are binary, a dictionary is a struct, any other sequence a list of one of these.
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class I64(int):
    """An integer that goes as i64."""


def struct(fields: Mapping[int, object]) -> bytes:
    """The encoding of a struct; numbers of neighboring fields are less than 16 apart."""
    out, last = bytearray(), 0
    for number, value in sorted(fields.items()):
        code, data = _value(value)
        # Fields are numbered by the difference to the field before, in the upper four bits.
        out.append((number - last) << 4 | code)
        out += data
        last = number
    return bytes(out) + b"\0"


def varint(value: int) -> bytes:
    """An unsigned integer, seven bits a byte, least significant first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _value(value: object) -> tuple[int, bytes]:
    """Type code and encoding."""
    if isinstance(value, bool):  # as a field; its type says which
        return (1 if value else 2), b""
    if isinstance(value, int):
        # Negative numbers of small size stay short that way.
        zigzag = value << 1 if value >= 0 else (-value << 1) - 1
        return (6 if isinstance(value, I64) else 5), varint(zigzag)
    if isinstance(value, str | bytes):
        data = value.encode() if isinstance(value, str) else value
        return 8, varint(len(data)) + data
    if isinstance(value, Mapping):
        return 12, struct(value)
    if not isinstance(value, Sequence):
        raise TypeError(f"Thrift has no type for {value!r}")
    encoded = [_value(entry) for entry in value]
    code = encoded[0][0] if encoded else 12
    size = len(encoded)
    head = bytes([size << 4 | code]) if size < 15 else bytes([0xF0 | code]) + varint(size)
    return 9, head + b"".join(data for _, data in encoded)
