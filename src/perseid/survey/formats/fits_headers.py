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
_AT_ONCE = 8 * _BLOCK
"""Bytes to read at once: most headers, in a single request to an object store."""
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


class HeaderChecks:
    """The checks of a file's headers, each of which is read once.

    Raises
    ------
    BadPartitionError
        One of the first two headers, which astropy may read when it opens a file, is refused.
    """

    def __init__(self, fits: Any, source: ByteSource) -> None:
        self._fits, self._source = fits, source
        self._checked = 0
        """Number of headers that are checked."""
        self._next: int | None = 0
        """The byte where the next header begins; None if there is none."""
        self._has(2)

    def checked(self, opened: Any) -> Iterator[Any]:
        """The HDUs, each once its header has been checked; astropy reads the next one on demand."""
        for number, hdu in enumerate(opened, start=1):
            yield hdu
            if not self._has(number + 1):
                return

    def _has(self, number: int) -> bool:
        """Check the headers up to this one, from 1; False if the file has fewer."""
        while self._checked < number and self._next is not None:
            self._next = self._end(self._next)
            self._checked += self._next is not None
        return self._checked >= number

    def _end(self, start: int) -> int | None:
        """Where the HDU ends whose header begins at byte `start`; None if none begins there.

        Refuses a header that states more axes or columns than FITS allows: astropy makes an object
        of each before it looks at the first, and 10^9 would take hours.
        """
        fits, source, head = self._fits, self._source, b""
        for at in range(start, min(source.size, start + _LONGEST_HEADER), _AT_ONCE):
            text = bytes(source.read(at, min(_AT_ONCE, source.size - at)))
            if at == start and not text.startswith((b"SIMPLE", b"XTENSION")):
                return None
            for place in range(0, len(text), _CARD):
                card = text[place : place + _CARD]
                keyword = card[:8].rstrip()
                if keyword in _NEEDED or keyword.startswith(b"NAXIS"):
                    head += card
                if keyword in _COUNTS:
                    _check_count(source.name, fits.Card.fromstring(card))
                if keyword == b"END":
                    end = at + (place // _BLOCK + 1) * _BLOCK
                    return end + _data_size(fits.Header.fromstring(head), source, start)
        if start < source.size:
            raise BadPartitionError(
                f"{source.name} is corrupt: the header at byte {start} has no end"
            )
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
