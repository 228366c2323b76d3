"""Convert rows of a survey to the layout, pixel type and scale that a model takes, in reused
buffers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.model.inputs import ImageInput
from perseid.model.runtime.graph_ports import Ports
from perseid.model.signature import ModelSignature
from perseid.survey.read_options import CHANNELS_LAST


class ImageBuffer:
    """Reusable memory for one micro-batch of images in the form that the model takes.

    Parameters
    ----------
    signature
        Signature of the model; if it has no bands, the buffer is empty.
    rows
        Number of rows of a micro-batch.
    """

    def __init__(self, signature: ModelSignature, rows: int) -> None:
        self._as_is = (signature.image.dtype, signature.image.layout) == (
            ImageInput.dtype, ImageInput.layout,
        ) and not (signature.image.scale or signature.image.offset)  # fmt: skip
        self._image, self._rows = signature.image, rows
        shape = signature.shape
        if signature.image.layout == CHANNELS_LAST:
            shape = (*shape[1:], shape[0])
        self._buffer = np.zeros((rows, *shape), signature.image.dtype)

    def put(self, images: NDArray[np.float32]) -> NDArray[Any]:
        """Convert up to one micro-batch of images (n, bands, height, width), padded with zeros.

        A full micro-batch that already has the model's form is not copied.
        """
        count = len(images)
        good = images.flags.c_contiguous and images.flags.aligned
        if self._as_is and count == self._rows and good:
            return images
        self._buffer[:count] = images if self._as_is else as_wanted(images, self._image)
        self._buffer[count:] = 0
        return self._buffer


class FeedBuffers:
    """Reusable memory for all inputs of one micro-batch."""

    def __init__(self, signature: ModelSignature, ports: Ports) -> None:
        self._ports = ports
        self._images = ImageBuffer(signature, ports.batch)
        self._columns = {
            name: np.zeros((ports.batch, *((c.width,) if c.width else ())), c.dtype)
            for name, c in ports.columns
        }

    def put(
        self, images: NDArray[np.float32] | None, given: Mapping[str, NDArray[Any]], rows: slice
    ) -> dict[str, NDArray[Any]]:
        """Prepare one micro-batch: rows are passed in place if possible, otherwise copied and
        padded."""
        feed: dict[str, NDArray[Any]] = {}
        if self._ports.image and images is not None:
            feed[self._ports.image] = self._images.put(images[rows])
        for name, column in self._ports.columns:
            buffer, count = self._columns[name], rows.stop - rows.start
            buffer[:count] = given[column.column][rows].reshape(count, *buffer.shape[1:])
            buffer[count:] = 0
            feed[name] = buffer
        return feed


def as_wanted(images: NDArray[np.float32], image: ImageInput) -> NDArray[Any]:
    """Images (n, bands, height, width) converted to the scale, type and layout of an input."""
    values: NDArray[Any] = images
    for name, combine in (("scale", np.multiply), ("offset", np.add)):
        factor = getattr(image, name)
        if factor:
            values = combine(values, np.asarray(factor, np.float32)[:, None, None])
    kind = np.dtype(image.dtype)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        values = np.clip(np.rint(np.nan_to_num(values)), limits.min, limits.max)
    with np.errstate(over="ignore"):
        values = values.astype(kind, copy=False)
    return np.moveaxis(values, 1, -1) if image.layout == CHANNELS_LAST else values
