"""Draw docs/images/simulated-cutouts.png: plain simulated objects and every kind of anomaly.

Usage: python scripts/simulated_cutouts.py [FILE.png]
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from astropy.visualization import make_lupton_rgb

from perseid.survey.simulation import sdss
from perseid.survey.simulation.anomalies import ANOMALY_KINDS
from perseid.survey.simulation.object_rendering import object_ids, render_objects

SEED = 7
COLUMNS = 9


def rgb(image: np.ndarray) -> np.ndarray:
    """(32, 32, 3) picture of i, r, g by Lupton et al. 2004."""
    _, g, r, i, _ = image
    return make_lupton_rgb(i, r * 1.1, g * 1.5, minimum=-0.02, stretch=0.7, Q=8)


def row_picture(table: sdss.GalaxyTable, kind: int, ids: np.ndarray) -> np.ndarray:
    """One line of the picture: objects of one kind; anomalies of one band show u and z too."""
    cutouts = render_objects(SEED, ids, anomaly_rate=0.0, table=table, kinds=[kind] * len(ids))
    gap = np.full((34, 2, 3), 255, np.uint8)
    tiles = []
    for image in cutouts.images:
        tile = np.full((34, 32, 3), 255, np.uint8)
        tile[1:33] = rgb(image)[::-1]
        tiles += [tile, gap]
    return np.concatenate(tiles, axis=1)


def main() -> None:
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images/simulated-cutouts.png")
    table = sdss.load_table()
    ids = object_ids(SEED, 200, len(table))
    figure, axes = plt.subplots(len(ANOMALY_KINDS), 1, figsize=(8.2, 8.6), dpi=60)
    for kind, axis in zip(ANOMALY_KINDS, axes, strict=True):
        picked = ids[COLUMNS * kind : COLUMNS * (kind + 1)]
        axis.imshow(row_picture(table, kind, picked), interpolation="nearest")
        axis.set_ylabel(ANOMALY_KINDS[kind], rotation=0, ha="right", va="center", fontsize=10)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    figure.suptitle("Simulated cutouts, i r g as RGB (anomalies may sit in u or z)", fontsize=11)
    figure.subplots_adjust(left=0.16, right=0.99, top=0.95, bottom=0.01, hspace=0.02)
    figure.savefig(target, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main()
