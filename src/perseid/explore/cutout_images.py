"""Cutouts as pictures, read by row when they are needed, in any band, stretch and color.

Readers of recent partitions stay open, so that a page with objects of one partition opens it once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadInputError, BadPartitionError
from perseid.measure.present.gallery import lupton, png, shown_bands
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.model_inputs import chosen_bands, with_bands
from perseid.pipeline.survey_columns import read_options
from perseid.plaintext import counted
from perseid.storage import Storage
from perseid.survey.reader import PartitionReader, open_partition

OPEN_READERS = 8
"""Maximum number of partitions that stay open."""
KEPT_BYTES = 64 << 20
"""Memory for recently read images, in bytes."""
SIGMAS = 6.0
"""Residual, in units of its usual spread, that gets the full color."""
BELOW, ABOVE = np.array([27, 98, 165.0]), np.array([196, 78, 12.0])
"""Colors of too little and too much light in a residual: blue and orange, which people with any
kind of color vision can tell apart."""


@dataclass(frozen=True)
class PictureOptions:
    """How a cutout is drawn."""

    bands: tuple[int, ...] = ()
    """Bands counted from 0: one for gray, three for red, green and blue; empty for the default."""
    brightness: float = 1.0
    """Factor of the stretch; values above 1 bring out faint light."""
    linear: bool = False
    """Whether gray runs linearly from the darkest to the brightest pixel, without asinh."""

    @classmethod
    def parse(cls, bands: str, brightness: str, stretch: str) -> PictureOptions:
        """Parse the values of an address, such as ``3,2,1``, ``2`` and ``linear``."""
        try:
            chosen = tuple(int(band) for band in bands.split(",") if band)
            factor = float(brightness or 1)
        except ValueError as error:
            raise BadInputError(f"a picture of bands {bands!r} cannot be drawn") from error
        # Bounds, since the values come from an address.
        if len(chosen) not in (0, 1, 3) or not 1e-3 <= factor <= 1e3:
            raise BadInputError(
                "a picture shows one band or three, with a stretch of 0.001 to 1000"
            )
        return cls(chosen, factor, stretch == "linear")


class CutoutImages:
    """The images of a run's survey, by partition and row.

    Parameters
    ----------
    manifest
        Manifest of the run, which says where its data are and how their columns are named.
    model_bands
        Returns the names of the model's bands; only these bands of the survey are shown.
    """

    def __init__(
        self, manifest: Manifest, model_bands: Callable[[], Sequence[str]] = tuple
    ) -> None:
        self._data_url, self._model_bands = manifest.data_url, model_bands
        # A set: each request is checked against it, and a run may have thousands of partitions.
        self._keys = {ref.key for ref in manifest.partitions}
        self._options = read_options(manifest.settings)
        self._readers: OrderedDict[str, PartitionReader] = OrderedDict()
        self._images: OrderedDict[tuple[str, int], NDArray[np.float32]] = OrderedDict()
        self._magnitudes: dict[tuple[str, int], NDArray[np.floating] | None] = {}
        self._lock = threading.Lock()

    def image(self, partition: str, row: int) -> NDArray[np.float32]:
        """The image of one object, (bands, height, width).

        Raises
        ------
        PerseidError
            The partition does not belong to the run, is missing, or cannot be read.
        """
        with self._lock:
            found = self._images.get((partition, row))
            if found is None:
                found = self._read(partition, row)
            # The order is that of use, so that the image dropped first is the one unused for
            # longest.
            self._images.move_to_end((partition, row))
            return found

    def magnitudes(self, partition: str, row: int) -> NDArray[np.floating] | None:
        """Magnitudes of one object, (bands,), or None if there are none. Raises as `image`."""
        self.image(partition, row)
        return self._magnitudes.get((partition, row))

    def _read(self, partition: str, row: int) -> NDArray[np.float32]:
        # No other file at the location of the data may be read.
        if partition not in self._keys:
            raise BadInputError(f"{partition!r} is not a partition of this run")
        reader = self._reader(partition)
        if not 0 <= row < reader.rows:
            raise BadPartitionError(
                f"{reader.name} has {counted(reader.rows, 'row')}, and the catalogue names {row}"
            )
        bands = self._model_bands()
        places = chosen_bands(bands, reader.shape[0], reader.bands) if bands else None
        cutout = with_bands(reader.rows_at(row, row + 1), places)
        found = np.array(cutout.images[0])
        key = (partition, row)
        self._images[key] = found
        magnitudes = cutout.magnitudes
        self._magnitudes[key] = None if magnitudes is None else np.array(magnitudes[0])
        # By size, since cutouts of surveys range from kilobytes to megabytes.
        while len(self._images) > max(1, KEPT_BYTES // max(1, found.nbytes)):
            gone, _ = self._images.popitem(last=False)
            self._magnitudes.pop(gone, None)
        return found

    def _reader(self, partition: str) -> PartitionReader:
        reader = self._readers.get(partition)
        if reader is None:
            reader = open_partition(Storage(self._data_url), partition, options=self._options)
            self._readers[partition] = reader
        self._readers.move_to_end(partition)
        while len(self._readers) > OPEN_READERS:
            self._readers.popitem(last=False)[1].close()
        return reader

    def close(self) -> None:
        """Close the open partitions."""
        with self._lock:
            while self._readers:
                self._readers.popitem()[1].close()


def draw(image: NDArray[np.float32], options: PictureOptions) -> bytes:
    """A cutout (bands, height, width) as PNG; raises `BadInputError` for a missing band."""
    count = image.shape[0]
    chosen = options.bands or shown_bands(count)
    if any(not 0 <= band < count for band in chosen):
        raise BadInputError(
            f"the cutouts have {counted(count, 'band')}, counted from 0: there is no {chosen}"
        )
    if len(chosen) == 1:
        return png(_gray(image[chosen[0]], options))
    return png(lupton(image, (chosen[0], chosen[1], chosen[2]), options.brightness))


def _gray(plane: NDArray[np.float32], options: PictureOptions) -> NDArray[np.uint8]:
    """Gray picture, (height, width, 3), from a little below the sky to the brightest pixel."""
    # Cutouts may have missing pixels, and a single NaN would blacken the whole picture.
    values = np.nan_to_num(np.asarray(plane, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if not options.linear:
        sky = float(np.median(values))
        # The median absolute deviation, times 1.4826, is the standard deviation of Gaussian noise.
        noise = 1.4826 * float(np.median(np.abs(values - sky))) or (high - low) / 100 or 1.0
        low = max(low, sky - 2 * noise)
        values = np.arcsinh(np.clip(values - low, 0, None) / (2 * noise))
        low, high = 0.0, float(values.max())
    share = (values - low) / (high - low) if high > low else np.zeros_like(values)
    level = np.clip(255 * share * options.brightness, 0, 255).astype(np.uint8)
    # The first row of an astronomical image is the lowest.
    return np.repeat(level[::-1, :, None], 3, axis=2)


def draw_residual(residual: NDArray[np.float32]) -> bytes:
    """A residual (height, width), in units of its usual spread, as PNG.

    Light that the model did not expect is orange; light that it expected in vain is blue.
    """
    # Clipped, so that one hot pixel does not turn all others white.
    strength = np.clip(np.nan_to_num(np.asarray(residual, np.float64)) / SIGMAS, -1, 1)[
        ::-1, :, None
    ]
    color = np.where(strength > 0, ABOVE, BELOW)
    # 247, a nearly white gray, is a residual of zero.
    shown = 247 + np.abs(strength) * (color - 247)
    return png(shown.astype(np.uint8))
