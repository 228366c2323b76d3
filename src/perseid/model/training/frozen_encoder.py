"""The output of an encoder that is not trained any more, computed once and kept between epochs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from perseid.model.training.astromae import AstroMAE
from perseid.model.training.device_rows import DeviceRows, Rows

CACHE_BYTES = 1 << 30
"""Largest size in bytes up to which the outputs of a frozen encoder are kept between epochs."""
FROZEN_SYMMETRIES = 2
"""Orientations in which a frozen encoder sees an image. Its output hardly changes with a turn,
so unturned and mirrored images are enough, while the trained image branch sees all eight
orientations."""


class FrozenEncoder:
    """The pooled tokens of a model's encoder, which must not change while this is in use.

    Parameters
    ----------
    model
        The model.
    rows
        The rows of the training.
    batch
        Rows that are encoded at once.
    """

    def __init__(self, model: AstroMAE, rows: DeviceRows, batch: int) -> None:
        self._model, self._rows, self._batch = model, rows, batch
        self._cache: dict[int, Tensor] = {}

    def pooled(self, rows: Rows, symmetry: int, scaled: Tensor) -> Tensor:
        """Pooled tokens (n, width) of some rows, whose scaled images are `scaled`.

        They are kept if all fit. They are computed for all rows at once in fixed batches, so their
        bits do not depend on the order of requests, and a resumed training sees the same values.
        """
        n, width = len(self._rows.data.redshift), self._model.config.width
        if FROZEN_SYMMETRIES * n * width * 4 > CACHE_BYTES:
            return self._encode(scaled)
        symmetry %= FROZEN_SYMMETRIES
        if symmetry not in self._cache:
            parts = np.split(np.arange(n), range(self._batch, n, self._batch))
            images = (self._model.scale_image(self._rows.images(p, symmetry)) for p in parts)
            self._cache[symmetry] = torch.cat([self._encode(part) for part in images])
        kept = self._cache[symmetry]
        return kept[rows if isinstance(rows, Tensor) else torch.from_numpy(rows).to(kept.device)]

    def _encode(self, scaled: Tensor) -> Tensor:
        self._model.blocks.eval()
        with torch.no_grad():
            return self._model.encode(scaled)[:, 1:].mean(dim=1)
