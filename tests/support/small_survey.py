"""A small survey to train on: round blobs whose size and color tell the redshift, two files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from perseid.survey import Cutouts, write_cutouts


def blobs(folder: Path, n: int = 240) -> Path:
    rng = np.random.default_rng(0)
    z = rng.uniform(0.02, 0.3, n).astype(np.float32)
    y, x = np.mgrid[:32, :32] - 15.5
    shape = np.exp(-(x**2 + y**2) / (2 * (1 + 10 * z[:, None, None]) ** 2))
    colors = np.stack([17 + 2 * z, 17 + z, 16.5 + 0 * z, 16.4 - z, 16.3 - 2 * z], axis=1)
    magnitudes = (colors + 0.01 * rng.normal(size=(n, 5))).astype(np.float32)
    flux = 10 ** (-0.4 * (magnitudes - 17))
    images = flux[:, :, None, None] * shape[:, None] + 0.05 * rng.normal(size=(n, 5, 32, 32))
    whole = Cutouts(images.astype(np.float32), magnitudes, z, np.arange(n))
    for number in range(2):
        part = whole[number * n // 2 : (number + 1) * n // 2]
        write_cutouts(part, folder / f"{number + 1}.npz")
    return folder
