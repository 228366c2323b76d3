"""Check the headers of a FITS file before astropy reads them.

astropy believes what a header states: it makes an object for each column and axis, and looks for
the next header wherever the stated sizes lead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from perseid.errors import BadPartitionError
from perseid.survey.bytesource import ByteSource

_BLOCK = 2880
"""Bytes of a FITS block; every header is a whole number of blocks."""
_CARD = 80
"""Bytes of a line of a header."""
_LONGEST_HEADER = 16 << 20
"""Bytes of a header, about 200,000 lines; a longer one has no end."""
_COUNTS = (b"NAXIS", b"ZNAXIS", b"TFIELDS")
"""Keywords that say how many axes or columns there are."""
_NEEDED = (b"BITPIX", b"PCOUNT", b"GCOUNT", b"GROUPS")
"""Keywords that, with the axes, say how many bytes follow a header (FITS 4.0, section 4.4.1)."""
_MOST_COUNTED = 999
"""Most axes and columns of a FITS file (FITS 4.0, sections 4.4.1 and 7.3.1)."""


def check_first(fits: Any, source: ByteSource) -> None:
    """Check what astropy may read when it opens a file: the first two headers."""
    second = _after(fits, source, 0)
    if second is not None:
        _after(fits, source, second)


def checked_hdus(fits: Any, opened: Any, source: ByteSource) -> Iterator[Any]:
    """The HDUs, each once its header has been checked; astropy reads the next one on demand."""
    at = _after(fits, source, 0)
    for hdu in opened:
        yield hdu
        at = None if at is None else _after(fits, source, at)
        if at is None:
            return


def _after(fits: Any, source: ByteSource, start: int) -> int | None:
    """Where the HDU ends whose header begins at byte `start`; None if none begins there.

    Refuses a header that states more axes or columns than FITS allows: astropy makes an object of
    each before it looks at the first, and 10^9 would take hours.
    """
    head = b""
    for at in range(start, min(source.size, start + _LONGEST_HEADER), _BLOCK):
        block = bytes(source.read(at, min(_BLOCK, source.size - at)))
        if at == start and not block.startswith((b"SIMPLE", b"XTENSION")):
            return None
        for card in (block[i : i + _CARD] for i in range(0, len(block), _CARD)):
            if card[:8].rstrip() in _NEEDED or card[:5] == b"NAXIS":
                head += card
            if card[:8].rstrip() in _COUNTS:
                _check_count(source.name, fits.Card.fromstring(card))
            if card[:8].rstrip() == b"END":
                return at + _BLOCK + _data_size(fits.Header.fromstring(head), source, start)
    if start < source.size:
        raise BadPartitionError(f"{source.name} is corrupt: the header at byte {start} has no end")
    return None


def _data_size(header: Any, source: ByteSource, start: int) -> int:
    size = int(header.data_size_padded)
    axes = [header[keyword] for keyword in header if keyword.startswith("NAXIS")]
    if min(size, *axes) < 0:  # the next header could be this one again, without end
        raise BadPartitionError(
            f"{source.name} is corrupt: the header at byte {start} states a negative size"
        )
    return size


def _check_count(where: str, card: Any) -> None:
    stated = card.value
    if not isinstance(stated, int | float) or not 0 <= stated <= _MOST_COUNTED:
        raise BadPartitionError(
            f"{where} is corrupt: a header states {card.keyword} = {str(stated)[:20]}, and FITS "
            f"allows 0 to {_MOST_COUNTED}"
        )
