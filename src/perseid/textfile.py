"""Text that other tools wrote: byte-order marks, UTF-16, Windows code pages, CRLF, gzip, ``;``.

Every request, price list, history, table and log that a user gives is read through here, so that
all of them accept the same files.
"""

from __future__ import annotations

import io
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from perseid import jsontext
from perseid.errors import BadInputError

MAX_BYTES = 1 << 30
"""Longest text that is read from a file, or unpacked from a compressed one."""
MAX_UNPACKED, MAX_RATIO = 64 << 20, 200
"""Longest text that any compressed file may hold, and beyond that the most bytes of text for each
byte of the file: logs reach 50, a kilobyte that unpacks to a gigabyte a million."""
MAX_LAYERS = 4
"""How often gzip is unpacked: there are files that unpack to themselves."""
_GZIP_MAGIC = b"\x1f\x8b"
_MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
"""Byte-order marks (Unicode standard, 2.6); the longer ones first."""
_SAMPLE = 4096
_UNPRINTABLE = bytes({*range(32)} - set(b"\t\n\r\f\b\x1b"))
_DELIMITERS = ",;\t|"


def is_file(path: str | Path) -> bool:
    """Whether there is such a file; a name that no file system takes (too long) is not there."""
    return os.path.isfile(path)  # noqa: PTH113 - pathlib raises an OSError for such a name


def is_there(path: str | Path) -> bool:
    """Whether there is such a file or folder; see `is_file`."""
    return os.path.exists(path)  # noqa: PTH110


def read_text(path: str | Path, what: str = "the file") -> str:
    """The text of a file, whatever tool wrote it; lines end in ``\\n``.

    Parameters
    ----------
    what
        What the file is to the user, for the error's sentence.

    Raises
    ------
    BadInputError
        The file cannot be read, or is not text.
    """
    where = f"{what} {path}".strip()
    try:
        with open(path, "rb") as file:
            # Bounded: a device or a pipe may never end.
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadInputError(f"{where} cannot be read: {reason}") from error
    if len(data) > MAX_BYTES:
        raise BadInputError(f"{where} is too long for such a file: more than {MAX_BYTES >> 30} GiB")
    return decode(data, where)


def decode(data: bytes, where: str) -> str:
    """The text of some bytes: gzip is unpacked, the encoding found, lines end in ``\\n``.

    The encoding is that of the byte-order mark; without one UTF-16 is told by its zero bytes, and
    what is not UTF-8 is taken for Windows-1252. Single broken bytes in UTF-8 become U+FFFD.

    Raises
    ------
    BadInputError
        The bytes are a damaged gzip file, or not text; the sentence begins with `where`.
    """
    # Some tools compress what was compressed already.
    most = min(MAX_BYTES, max(MAX_UNPACKED, MAX_RATIO * len(data)))
    for _ in range(MAX_LAYERS):
        if data.startswith(_GZIP_MAGIC):
            data = _unpacked(data, where, most)
    return _characters(data, where).replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str, where: str, *, once: bool = False) -> object:
    """The value of a JSON text; raises `BadInputError` naming `where` and what is wrong with it.

    `once`: a key that stands twice in one object is an error, where otherwise the later one wins.
    """
    try:
        value: object = jsontext.parse_json(text, once=once)
    except ValueError as error:
        raise BadInputError(f"{where} is not JSON: {error}") from error
    return value


def read_object(path: str | Path, what: str) -> dict[str, object]:
    """The keys and values of a file with one JSON object.

    Parameters
    ----------
    what
        What the file is to the user, e.g. ``"the request"``.

    Raises
    ------
    BadInputError
        The file cannot be read, or holds no JSON object, or a key of it stands there twice.
    """
    where = f"{what} {path}"
    value = parse_json(read_text(path, what), where, once=True)
    if not isinstance(value, dict):
        raise BadInputError(f"{where} must be a JSON object, not a {type(value).__name__}")
    return value


def csv_rows(text: str, where: str) -> Iterator[dict[str, str]]:
    """Rows of a table with a head, by column name; ``,``, ``;``, tab or ``|`` between the cells.

    A line ``sep=;`` above the head, as spreadsheets write it, is obeyed, and empty lines there are
    passed over. Missing cells are empty.

    Raises
    ------
    BadInputError
        The text is not such a table; the sentence names `where`.
    """
    import csv  # not at the top: a worker imports this module and reads no tables

    csv.field_size_limit(16 << 20)  # CloudWatch messages are larger than the module's default
    text, chosen = _without_blank(text), None
    first, _, rest = text.partition("\n")
    if first.lower().startswith("sep=") and len(first) >= 5:
        chosen, text = first[4], _without_blank(rest)
    head = text.partition("\n")[0]
    # Of the head alone: in further lines, commas may be decimal.
    delimiter = chosen or max(_DELIMITERS, key=head.count)
    try:
        lines = csv.reader(io.StringIO(text), delimiter=delimiter)
        names = [name.strip() for name in next(lines, [])]
        for cells in lines:
            if any(cell.strip() for cell in cells):
                padded = [*cells, *[""] * (len(names) - len(cells))]
                yield dict(zip(names, padded, strict=False))
    except csv.Error as error:
        raise BadInputError(f"{where} is not a table: {error}") from error


def _without_blank(text: str) -> str:
    """A table from its first line on in which a cell has anything."""
    return re.sub(rf"\A(?:[ {_DELIMITERS}]*\n)+", "", text)


def decimal(text: str) -> float:
    """A number as people write it: ``1234.5``, ``1234,5``, ``1.234,5`` or ``1,234.5``.

    Raises `ValueError` if it is not one.
    """
    text = text.strip()
    comma, point = text.rfind(","), text.rfind(".")
    if comma > point:
        text = text.replace(".", "").replace(",", ".")
    elif comma >= 0:
        text = text.replace(",", "")
    return float(text)


def _unpacked(data: bytes, where: str, most: int) -> bytes:
    import gzip

    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            # One byte more than allowed shows that there is more, without unpacking all of it.
            text = file.read(most + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise BadInputError(f"{where} is a damaged gzip file ({error}): fetch it again") from error
    if len(text) > most:
        raise BadInputError(
            f"{where} is more than {most >> 20:,} MiB of text when unpacked, the most that is read "
            "of a compressed file of its size: unpack it with `gunzip`"
        )
    return text


def _characters(data: bytes, where: str) -> str:
    for mark, codec in _MARKS:
        if data.startswith(mark):
            return data.decode(codec, "replace")
    unmarked = _utf16(data[:_SAMPLE])
    if unmarked is not None:
        return data.decode(unmarked, "replace")
    sample = data[:_SAMPLE]
    if len(sample) - len(sample.translate(None, _UNPRINTABLE)) > len(sample) // 20:
        raise BadInputError(f"{where} is not text")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    whole = sum(character > "\x7f" for character in text) - broken
    return text if whole >= broken else data.decode("cp1252", "replace")


def _utf16(sample: bytes) -> str | None:
    """The byte order of UTF-16 without a mark: every other byte of Latin text is zero."""
    pairs = len(sample) // 2
    if pairs and sample[1::2].count(0) > 0.4 * pairs and sample[::2].count(0) < 0.1 * pairs:
        return "utf-16-le"
    if pairs and sample[::2].count(0) > 0.4 * pairs and sample[1::2].count(0) < 0.1 * pairs:
        return "utf-16-be"
    return None
