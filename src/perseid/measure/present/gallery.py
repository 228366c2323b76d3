"""Pictures of the most anomalous cutouts, in color.

Composites after Lupton et al. 2004 (astropy's ``make_lupton_rgb``): one stretch for all three
channels keeps the colors of bright pixels.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadPartitionError, PerseidError
from perseid.libraries import library_error
from perseid.measure.sources.catalogue_columns import CatalogueColumns
from perseid.plaintext import counted
from perseid.storage import Storage
from perseid.survey.kinds import label_name
from perseid.survey.read_options import PLAIN, ReadOptions
from perseid.survey.reader import PartitionReader, open_partition

RGB_BANDS = (3, 2, 1)
"""Indices of the bands that are shown as red, green and blue: i, r, g among u g r i z."""
NOISE_LEVEL, PEAK_LEVEL = 1 / 15, 0.9
"""Brightness of the noise and of the brightest pixels of a cutout, from 0 (black) to 1."""


@dataclass(frozen=True)
class Picture:
    """One object of the gallery."""

    rank: int
    """Anomaly rank; 1 for the most anomalous object."""
    title: str
    """Id of the object, or its partition and row if the survey has no ids."""
    partition: str
    """Key of its partition."""
    row: int
    """Row in the partition."""
    score: float
    """Anomaly score."""
    z_pred: float
    """Predicted redshift; NaN without one."""
    z_spec: float
    """Spectroscopic redshift; NaN if unknown."""
    label: str | None
    """Name of its label; None if it has none."""
    image: str | None
    """The picture as a ``data:`` URL; None if its partition cannot be read."""
    bands: tuple[int, ...] = ()
    """Bands that are shown as red, green and blue, counted from 0; empty without a picture."""
    band_count: int = 0
    """Number of bands of the cutout; 0 without a picture."""


def gallery(
    catalogue: CatalogueColumns,
    data_url: str,
    names: Mapping[int, str],
    count: int = 24,
    options: ReadOptions = PLAIN,
) -> list[Picture]:
    """The most anomalous objects with their pictures, whose rows are read from the partitions.

    Objects of a partition that is gone or cannot be read have no picture. Raises
    `NotInstalledError` if astropy is missing.

    Parameters
    ----------
    names
        Names of the survey's labels.
    options
        How the survey's files are read.
    """
    chosen = catalogue.most_anomalous(count)
    images: dict[int, NDArray[np.float32]] = {}
    with suppress(PerseidError):  # the data may be out of reach, the catalogue is not
        images = _cutouts(catalogue, chosen, Storage(data_url), options)
    return [_picture(catalogue, int(i), images.get(int(i)), names) for i in chosen]


def _cutouts(
    catalogue: CatalogueColumns, chosen: NDArray[np.int64], data: Storage, options: ReadOptions
) -> dict[int, NDArray[np.float32]]:
    """Images by row of the catalogue; those of unreadable partitions are missing."""
    images: dict[int, NDArray[np.float32]] = {}
    # Each partition is opened only once.
    for key in sorted({str(k) for k in catalogue.partition[chosen]}):
        wanted = [int(i) for i in chosen if catalogue.partition[i] == key]
        with suppress(PerseidError), open_partition(data, key, options=options) as reader:
            for index in wanted:
                images[index] = _image(reader, int(catalogue.row[index]))
    return images


def _image(reader: PartitionReader, row: int) -> NDArray[np.float32]:
    if row >= reader.rows:
        # The partition was replaced by a shorter one after the run.
        raise BadPartitionError(
            f"{reader.name} has {counted(reader.rows, 'row')}, and the catalogue names {row}"
        )
    return np.array(reader.rows_at(row, row + 1).images[0])


def _picture(
    catalogue: CatalogueColumns,
    index: int,
    image: NDArray[np.float32] | None,
    names: Mapping[int, str],
) -> Picture:
    key, row = str(catalogue.partition[index]), int(catalogue.row[index])
    object_id = None if catalogue.object_id is None else catalogue.object_id[index]
    unlabeled = catalogue.label is None or np.ma.is_masked(catalogue.label[index])
    label = None if unlabeled or catalogue.label is None else int(catalogue.label[index])
    return Picture(
        rank=int(catalogue.rank[index]),
        title=f"{key} row {row}" if object_id is None else str(object_id),
        partition=key,
        row=row,
        score=float(catalogue.score[index]),
        z_pred=float(catalogue.z_pred[index]),
        z_spec=float(catalogue.z_spec[index]),
        label=None if label is None else label_name(label, names),
        image=None if image is None else png_url(lupton(image)),
        bands=() if image is None else shown_bands(image.shape[0]),
        band_count=0 if image is None else image.shape[0],
    )


def shown_bands(count: int) -> tuple[int, int, int]:
    """Bands to show as red, green and blue for a cutout with `count` bands, counted from 0.

    i, r, g of the five bands of SDSS; with fewer than four, the last, the middle and the first.
    """
    return RGB_BANDS if count > max(RGB_BANDS) else (count - 1, count // 2, 0)


def lupton(
    image: NDArray[np.float32],
    bands: tuple[int, int, int] | None = None,
    brightness: float = 1.0,
) -> NDArray[np.uint8]:
    """A color composite (height, width, 3) of an image (bands, height, width).

    The bands are those of `shown_bands` unless others are given. The stretch adapts to the cutout:
    the sky (the median) appears a little above black, the noise of the mean of the three bands at a
    fifteenth of full brightness (times `brightness`), and the 99.5 % quantile near full brightness.

    Raises `NotInstalledError` if astropy is missing.
    """
    try:
        from astropy.visualization import make_lupton_rgb
    except ImportError as error:
        raise library_error(
            error, "color composites need astropy: pip install 'perseid[report]'"
        ) from error
    planes = [_clean(image[band]) for band in bands or shown_bands(image.shape[0])]
    sky = [float(np.median(plane)) for plane in planes]
    mean = np.mean([plane - level for plane, level in zip(planes, sky, strict=True)], axis=0)
    # The median absolute deviation, scaled to the standard deviation of normal noise: bright
    # sources barely change it.
    noise = 1.4826 * float(np.median(np.abs(mean - np.median(mean))))
    # At least five times the noise, so that an empty cutout does not show its noise as bright.
    peak = max(float(np.quantile(mean, 0.995)), 5 * noise, 1e-9)
    # A galaxy that fills the cutout looks like noise, so the stretch is limited by the peak; a
    # blank cutout has no noise at all.
    stretch = (min(noise / NOISE_LEVEL, peak / 2) or peak / 2) / brightness
    softening = _softening(peak / stretch)
    # Black is below the sky, so that faint outskirts stay visible.
    black = [level - noise for level in sky]
    with np.errstate(invalid="ignore", divide="ignore"):  # astropy divides by 0 at black pixels
        rgb = make_lupton_rgb(*planes, minimum=black, stretch=stretch, Q=softening)
    # The first row of an astronomical image is at the bottom, that of a picture at the top.
    return np.asarray(rgb[::-1], np.uint8)


def _softening(peak: float) -> float:
    """Find Lupton's Q for which `peak` (in units of the stretch) appears at `PEAK_LEVEL`.

    The curve is 0.1 asinh(Q x) / asinh(0.1 Q), as in astropy; its value falls as Q grows.
    """
    # Bisection on a logarithmic scale: nine decades, far below a visible error after 60 steps.
    low, high = 1e-3, 1e6
    for _ in range(60):
        middle = math.sqrt(low * high)
        if 0.1 * math.asinh(middle * peak) / math.asinh(0.1 * middle) > PEAK_LEVEL:
            low = middle
        else:
            high = middle
    return low


def _clean(plane: NDArray[np.float32]) -> NDArray[np.float64]:
    # Non-finite pixels would spread through medians and quantiles.
    return np.nan_to_num(np.asarray(plane, np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def png_url(rgb: NDArray[np.uint8]) -> str:
    """A picture (height, width, 3) as a ``data:`` URL."""
    return "data:image/png;base64," + base64.b64encode(png(rgb)).decode()


def png(rgb: NDArray[np.uint8]) -> bytes:
    """A picture (height, width, 3) as PNG: 8 bits per channel, no filter (RFC 2083).

    Written here, so that pictures need no imaging library.
    """
    height, width, _ = rgb.shape
    # Each row begins with its filter type: 0 is no filter.
    rows = b"".join(b"\0" + np.ascontiguousarray(row).tobytes() for row in rgb)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body
