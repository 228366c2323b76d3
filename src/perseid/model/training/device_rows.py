"""Where the rows of a training are stored: in arrays for a CPU, or on the GPU.

On a CPU rows are selected from the arrays, with the same bits in every version. On a GPU images (if
they fit), magnitudes and redshifts are in its memory, and random numbers are drawn there, so that a
step copies nothing and waits for nothing.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perseid.errors import BadInputError
from perseid.model.config import AstroMAEConfig
from perseid.model.training.data import TrainingSet
from perseid.model.training.steps import jitter_per_band, turned
from perseid.plaintext import counted, option

IMAGE_SHARE = 0.5
"""Share of a GPU's free memory that the survey's images may take; larger surveys stay in the host's
memory."""
STEP_SHARE = 0.5
"""Share of the remaining free memory that one step may take."""
BATCHES = (128, 4096)
"""Smallest and largest batch that is chosen by memory."""
STEPS_AN_EPOCH = 128
"""Least number of steps per epoch; a larger batch would learn too little in an epoch. Measured with
28,800 rows: at a batch of 2,048, 14 steps per epoch, the NMAD was 21 % above that at 512."""
VALUES_A_TOKEN = 40
"""Values per token of a block that are kept for the backward pass, in units of the network's width:
attention, convolution branch, MLP."""

Rows = NDArray[np.int64] | Tensor
"""Row numbers: an array, or a tensor on the GPU."""


class DeviceRows:
    """The rows of a training on a CPU.

    Parameters
    ----------
    data
        The survey.
    device
        Device on which the network computes.
    """

    def __init__(self, data: TrainingSet, device: torch.device) -> None:
        self.data, self.device = data, device

    def order(self, rows: NDArray[np.int64]) -> Rows:
        """The rows of an epoch in their order, of which slices are passed to `images` and the other
        methods."""
        return rows

    def images(self, rows: Rows, symmetry: int) -> Tensor:
        """Images (n, bands, height, width), flipped or turned."""
        return turned(torch.from_numpy(self.data.images[_array(rows)]), symmetry).to(self.device)

    def magnitudes(self, rows: Rows) -> Tensor:
        """Magnitudes (n, bands)."""
        return torch.from_numpy(self.data.magnitudes[_array(rows)]).to(self.device)

    def redshift(self, rows: Rows) -> Tensor:
        """Redshifts (n,)."""
        return torch.from_numpy(self.data.redshift[_array(rows)]).to(self.device)

    def jittered(self, rows: Rows, jitter: float, random: np.random.Generator) -> Tensor:
        """Magnitudes with added noise of `jitter` times the survey's errors."""
        magnitudes = self.data.magnitudes[_array(rows)]
        spread = jitter * jitter_per_band(magnitudes.shape[1])
        noise = random.standard_normal(magnitudes.shape).astype(np.float32) * spread
        return torch.from_numpy(magnitudes + noise).to(self.device)

    def generator(self, seed: int) -> torch.Generator:
        """A random generator for the masks of one step."""
        return torch.Generator().manual_seed(seed)


class GpuRows(DeviceRows):
    """The rows of a training in a GPU's memory."""

    def __init__(self, data: TrainingSet, device: torch.device) -> None:
        super().__init__(data, device)
        self._magnitudes = torch.from_numpy(data.magnitudes).to(device)
        self._redshift = torch.from_numpy(data.redshift).to(device)
        self._spread = torch.from_numpy(jitter_per_band(data.magnitudes.shape[1])).to(device)
        free, _ = torch.cuda.mem_get_info(device)
        self._images: Tensor | None = None
        if data.images.nbytes <= IMAGE_SHARE * free:
            self._images = torch.from_numpy(np.ascontiguousarray(data.images)).to(device)

    def order(self, rows: NDArray[np.int64]) -> Rows:
        """The rows of an epoch in their order, as a tensor on the GPU."""
        return torch.from_numpy(rows).to(self.device)

    def images(self, rows: Rows, symmetry: int) -> Tensor:
        """Images, selected on the GPU if the survey fits there, otherwise copied from pinned
        memory."""
        if self._images is not None:
            return turned(self._images[self._index(rows)], symmetry)
        picked = torch.from_numpy(self.data.images[_array(rows)]).pin_memory()
        return turned(picked.to(self.device, non_blocking=True), symmetry)

    def magnitudes(self, rows: Rows) -> Tensor:
        """Magnitudes, selected on the GPU."""
        return self._magnitudes[self._index(rows)]

    def redshift(self, rows: Rows) -> Tensor:
        """Redshifts, selected on the GPU."""
        return self._redshift[self._index(rows)]

    def jittered(self, rows: Rows, jitter: float, random: np.random.Generator) -> Tensor:
        """Magnitudes with noise that is drawn on the GPU, from a seed that `random` gives."""
        magnitudes = self.magnitudes(rows)
        generator = self.generator(int(random.integers(1 << 62)))
        noise = torch.randn(magnitudes.shape, generator=generator, device=self.device)
        return magnitudes + jitter * self._spread * noise

    def generator(self, seed: int) -> torch.Generator:
        """A random generator on the GPU for the masks of one step."""
        return torch.Generator(self.device).manual_seed(seed)

    def _index(self, rows: Rows) -> Tensor:
        return rows if isinstance(rows, Tensor) else torch.from_numpy(rows).to(self.device)


def rows_on(data: TrainingSet, device: torch.device) -> DeviceRows:
    """The rows of a training on this device."""
    return GpuRows(data, device) if device.type == "cuda" else DeviceRows(data, device)


def fitting_batch(config: AstroMAEConfig, rows: int, device: torch.device) -> int:
    """Rows per step that fit a GPU's memory, a power of two; on a CPU the smallest of `BATCHES`.

    Raises
    ------
    BadInputError
        Not even the smallest batch fits.
    """
    least, most = BATCHES
    if device.type != "cuda":
        return least
    free, _ = torch.cuda.mem_get_info(device)
    images = 4 * rows * config.bands * config.size**2
    left = STEP_SHARE * (free - min(images, IMAGE_SHARE * free))
    row = 4 * VALUES_A_TOKEN * config.depth * (config.tokens + 1) * config.width
    if least * row > left:
        raise BadInputError(
            f"the GPU has {free / 1e9:.1f} GB free, too little for a batch of "
            f"{counted(least, 'row')}: give "
            f"{option('batch')}, or {option('device', 'cpu')}"
        )
    wanted = min(most, left / row, max(least, rows / STEPS_AN_EPOCH))
    return 1 << (int(wanted).bit_length() - 1)


def _array(rows: Rows) -> NDArray[np.int64]:
    return rows.cpu().numpy() if isinstance(rows, Tensor) else rows
