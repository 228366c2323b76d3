"""FITS images: an HDU of (n, bands, height, width), plain or tile-compressed (``.fits.fz``).

An image of three axes is one cutout. A table with the same number of rows in the same file provides
the other columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadPartitionError, PerseidError
from perseid.survey.bytesource import LARGEST_READ, ByteSource, corrupt
from perseid.survey.cutouts import Cutouts
from perseid.survey.file_columns import as_cutouts, check_columns
from perseid.survey.file_table import Table
from perseid.survey.read_options import ReadOptions

_DTYPES = {8: "u1", 16: "i2", 32: "i4", 64: "i8", -32: "f4", -64: "f8"}
"""By ``BITPIX``."""


def image_hdu(fits: Any, hdus: Any) -> Any:
    """The first image of three or four axes; None if there is none."""
    kinds = (fits.PrimaryHDU, fits.ImageHDU, fits.CompImageHDU)
    return next((h for h in hdus if isinstance(h, kinds) and len(h.shape) in (3, 4)), None)


class ImageTable(Table):
    """Cutouts stored in an image HDU, read by rows; the columns of `small` are in memory.

    Parameters
    ----------
    source, hdus, hdu
        The file, astropy's list of its HDUs (closed with the table), and the HDU of the image.
    small, sources
        Columns of a table in the same file, and their names in it, as `pick_columns` returned them.
    options
        Image layout.
    """

    def __init__(
        self,
        source: ByteSource,
        hdus: Any,
        hdu: Any,
        small: dict[str, NDArray[Any]],
        sources: dict[str, str],
        options: ReadOptions,
    ) -> None:
        self._hdus, self._hdu, self._single = hdus, hdu, len(hdu.shape) == 3
        shape = (1, *hdu.shape) if self._single else tuple(hdu.shape)
        scaled = (hdu.header.get("BSCALE", 1), hdu.header.get("BZERO", 0)) != (1, 0)
        dtype = np.dtype("f8" if scaled else _DTYPES[int(hdu.header["BITPIX"])])
        found = {name: (array.dtype, array.shape) for name, array in small.items()}
        columns = check_columns(
            source.name, {"image": (dtype, shape), **found}, {"image": "image", **sources}, options
        )
        super().__init__(source, columns)
        self._small = {n: columns.column(n, small[n], source.name) for n in columns.stored}

    def read(self, start: int, stop: int) -> Cutouts:
        if (stop - start) * self.columns.image_bytes > LARGEST_READ:
            raise BadPartitionError(f"{self.source.name}: image is too large for one read")
        try:
            part = self._hdu.section[:] if self._single else self._hdu.section[start:stop]
            images = np.asarray(part).reshape(-1, *self._hdu.shape[-3:])[: stop - start]
        except PerseidError:
            raise
        except Exception as error:  # astropy raises many kinds on corrupt tiles
            raise corrupt(self.source, "astropy", error) from error
        arrays = {name: column[start:stop] for name, column in self._small.items()}
        arrays["image"] = self.columns.column("image", images, self.source.name)
        return as_cutouts(arrays)

    def close(self) -> None:
        self._hdus.close()
        super().close()
