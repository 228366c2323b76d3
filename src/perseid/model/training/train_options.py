"""What a training is told, and what it reports while it runs; no torch here."""

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
"""Networks by the name that ``perseid train --config`` takes; the published one with a decoder,
which its checkpoints lack, so that it can be pre-trained and score anomalies, and with inputs that
are scaled: of pixels as they are, the autoencoder learns nothing but the brightest ones."""
PRECISIONS = ("float32", "tf32", "bf16")
"""Precisions of matrix products; with bf16 only the autoencoder's, all others in tf32."""
BY_MEMORY = 0
"""Batch: as many rows as the GPU's memory has room for."""


@dataclass(frozen=True)
class TrainOptions:
    """All that decides the result of a training, beside the data.

    Raises `BadInputError` where a value cannot be used.
    """

    config: str = "small"
    """A key of `CONFIGS`; bands, size and scaling are fitted to the survey."""
    pretrain_epochs: int = 30
    """Epochs of the masked autoencoder, on all training rows (including anomalies, as in
    reality)."""
    epochs: int = 25
    """Epochs of the redshift training, on plain objects with a redshift."""
    batch: int = 128
    """Rows a step; `BY_MEMORY`: see `device_rows.fitting_batch`."""
    lr: float = 2e-3
    """Peak rate of AdamW for the redshift: linear warm-up, then a cosine to zero."""
    pretrain_lr: float = 1e-3
    """Peak rate for the masked autoencoder."""
    weight_decay: float = 1e-2
    mask_ratio: float = 0.5
    """Share of the patches that the autoencoder must predict."""
    ema: float = 0.998
    """Decay of the running mean of the weights that is kept as the result."""
    jitter: float = 1.0
    """Noise on the magnitudes, in units of `JITTER_PER_BAND`."""
    image_lr: float = 1.0
    """Rate of the image branches relative to `lr`."""
    frozen: bool = True
    """Whether the encoder stays as pre-trained while the redshift is learned, as published."""
    magnitudes_only: bool = False
    """The baseline: the image branches are switched off, everything else is the same."""
    seed: int = 0
    precision: str = "float32"
    """One of `PRECISIONS`; others than float32 need a GPU."""

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
        """The options as JSON values, as a checkpoint holds them.

        Without the precision where it is float32: there was no other one in earlier versions.
        """
        plain = asdict(self)
        if self.precision == "float32":
            del plain["precision"]
        return plain


@dataclass(frozen=True)
class TrainEvent:
    """One step was done, or an epoch ended."""

    phase: str
    """``pretrain`` or ``redshift``."""
    epoch: int
    """From 1."""
    epochs: int
    step: int
    """From 1, within the epoch."""
    steps: int
    loss: float
    """Mean over the epoch so far."""
    validation: float | None = None
    """At the end of an epoch: masked error, or MAE of the redshift."""


Report = Callable[[TrainEvent], None]
Stop = Callable[[], bool]
"""Asked between steps; True ends the training with a checkpoint."""


def fitted_config(options: TrainOptions, data: TrainingSet) -> AstroMAEConfig:
    """The named config with the survey's bands, size and, where it scales at all, scaling.

    Softening is twice the noise of a pixel (from the cutouts' border), magnitudes are centered
    on their median and divided by their spread (a fixed one where all are equal).
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
