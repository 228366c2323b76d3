"""Options of a training, and what it reports while it runs; no torch here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np

from perseid.errors import BadInputError
from perseid.model.config import PUBLISHED, SMALL, AstroMAEConfig
from perseid.model.training.data import TrainingSet
from perseid.survey.splits import TRAIN

CONFIGS = {
    "small": SMALL,
    "published": replace(
        PUBLISHED,
        embedding=True,
        decoder_width=96,
        softening=SMALL.softening,
        magnitude_centre=SMALL.magnitude_centre,
        magnitude_scale=SMALL.magnitude_scale,
    ),
}
"""Configurations by the name that ``perseid train --config`` takes. Unlike the published network,
``published`` has a decoder, so that it can be pre-trained and score anomalies, and scales its
inputs: from unscaled pixels the autoencoder learns nothing but the brightest ones."""
PRECISIONS = ("float32", "tf32", "bf16")
"""Precisions of matrix products; ``bf16`` applies only to the autoencoder's, and all others are
tf32."""
BY_MEMORY = 0
"""Batch size that means as many rows as fit into the GPU's memory."""


@dataclass(frozen=True)
class TrainOptions:
    """All options that, together with the data, decide the result of a training.

    Raises `BadInputError` if a value cannot be used.
    """

    config: str = "small"
    """A key of `CONFIGS`; bands, size and scaling are adapted to the survey."""
    pretrain_epochs: int = 30
    """Epochs of the masked autoencoder, on all training rows (including anomalies, as in a real
    survey)."""
    epochs: int = 25
    """Epochs of the redshift training, on plain objects with a redshift."""
    batch: int = 128
    """Rows per step; for `BY_MEMORY` see `device_rows.fitting_batch`."""
    lr: float = 2e-3
    """Peak learning rate of AdamW for the redshift: linear warm-up, then a cosine to zero."""
    pretrain_lr: float = 1e-3
    """Peak learning rate for the masked autoencoder."""
    weight_decay: float = 1e-2
    mask_ratio: float = 0.5
    """Share of the patches that the autoencoder must predict."""
    ema: float = 0.998
    """Decay of the running mean of the weights, which is kept as the result."""
    jitter: float = 1.0
    """Noise on the magnitudes, in units of `JITTER_PER_BAND`."""
    image_lr: float = 1.0
    """Learning rate of the image branches relative to `lr`."""
    frozen: bool = True
    """Whether the encoder stays as pre-trained during the redshift training, as in the published
    model."""
    magnitudes_only: bool = False
    """Train the baseline: the image branches are switched off, and everything else is the same."""
    seed: int = 0
    precision: str = "float32"
    """One of `PRECISIONS`; all but float32 need a GPU."""

    def __post_init__(self) -> None:
        if self.config not in CONFIGS:
            raise BadInputError(
                f"config {self.config!r} is not known: choose from {sorted(CONFIGS)}"
            )
        for name in ("pretrain_epochs", "epochs", "seed", "weight_decay", "jitter", "image_lr"):
            if getattr(self, name) < 0:
                raise BadInputError(f"{name} is {getattr(self, name)}: it must not be negative")
        if self.precision not in PRECISIONS:
            raise BadInputError(
                f"precision {self.precision!r} is not known: choose from {', '.join(PRECISIONS)}"
            )
        for name, least, most in (
            ("batch", 2 if self.batch != BY_MEMORY else BY_MEMORY, 1 << 16),
            ("lr", 1e-9, 1.0),
            ("pretrain_lr", 1e-9, 1.0),
            ("mask_ratio", 0.05, 0.95),
            ("ema", 0.0, 0.99999),
        ):
            if not least <= getattr(self, name) <= most:
                raise BadInputError(f"{name} is {getattr(self, name)}: use {least} to {most}")

    def to_json(self) -> dict[str, object]:
        """The options as JSON values, as stored in a checkpoint.

        A precision of float32 is left out, because earlier versions had no other one and did not
        store it.
        """
        plain = asdict(self)
        if self.precision == "float32":
            del plain["precision"]
        return plain


@dataclass(frozen=True)
class TrainEvent:
    """One step was completed, or an epoch ended."""

    phase: str
    """Phase of the training: ``pretrain`` or ``redshift``."""
    epoch: int
    """Number of the epoch, from 1."""
    epochs: int
    step: int
    """Number of the step within the epoch, from 1."""
    steps: int
    loss: float
    """Mean loss over the epoch so far."""
    validation: float | None = None
    """At the end of an epoch, the error on the validation rows: masked error, or MAE of the
    redshift."""


Report = Callable[[TrainEvent], None]
Stop = Callable[[], bool]
"""Called between steps; True ends the training with a checkpoint."""


def fitted_config(options: TrainOptions, data: TrainingSet) -> AstroMAEConfig:
    """The named configuration with the survey's bands and size and, if it scales inputs at all,
    scaling.

    Softening is twice the noise of a pixel, measured at the cutouts' border. Magnitudes are
    centered on their median and divided by their spread (a fixed value if all are equal).
    """
    base = CONFIGS[options.config]
    _, bands, height, width = data.images.shape
    if height != width:
        raise BadInputError(f"cutouts are {height} x {width} pixels: the network takes square ones")
    if base.softening is None:
        return replace(base, bands=bands, size=height)
    rows = data.rows(TRAIN, supervised=False)[:4096]
    images, magnitudes = data.images[rows], data.magnitudes[rows]
    border = np.concatenate([images[:, :, 0], images[:, :, -1]], axis=2)
    noise = 1.4826 * np.median(np.abs(border), axis=(0, 2))
    center = np.median(magnitudes, axis=0)
    spread = 1.4826 * np.median(np.abs(magnitudes - center), axis=0)
    return replace(
        base,
        bands=bands,
        size=height,
        softening=tuple(_rounded(2.0 * max(value, 1e-6)) for value in noise.tolist()),
        magnitude_centre=tuple(_rounded(value) for value in center.tolist()),
        magnitude_scale=tuple(_rounded(max(value, 1e-3)) for value in spread.tolist()),
    )


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
