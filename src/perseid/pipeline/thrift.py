"""Thrift's compact protocol, as far as a Parquet file's footer and page headers need it.

A struct is a dictionary from field number to value: plain integers become i32, `I64` becomes i64,
text and bytes become binary, a dictionary a struct, and any other sequence a list of one of these.
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class I64(int):
    """An integer that is encoded as i64."""


def struct(fields: Mapping[int, object]) -> bytes:
    """Encode a struct; the numbers of neighboring fields must differ by less than 16."""
    out, last = bytearray(), 0
    for number, value in sorted(fields.items()):
        code, data = _value(value)
        # The upper four bits hold the difference from the previous field's number.
        out.append((number - last) << 4 | code)
        out += data
        last = number
    return bytes(out) + b"\0"


def varint(value: int) -> bytes:
    """Encode an unsigned integer with seven bits per byte, least significant first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _value(value: object) -> tuple[int, bytes]:
    """The type code and the encoding of a value."""
    if isinstance(value, bool):  # a boolean field has no bytes: its type code is the value
        return (1 if value else 2), b""
    if isinstance(value, int):
        # Zigzag encoding keeps negative numbers of small magnitude short.
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
