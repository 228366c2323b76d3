"""The configuration of an AstroMAE network: sizes, input scaling and scoring masks; no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadModelError

CLIP = 1e6
"""Limit to which scaled pixels (image / softening) are clipped, so that asinh stays below 14.5."""
MAGNITUDE_CLIP = 10.0
"""Limit to which centered and scaled magnitudes are clipped, so that -9999 for "not measured" stays
harmless."""

FLOOR = 1e-6
"""Added under each logarithm of a residual, in units of the residuals' usual spread."""
WORST_PIXELS = 8
"""Number of worst pixels of a band whose mean is taken."""
THIRD_CLIP = 1e3
"""Limit to which residuals are clipped before the third power is taken."""
DIPOLE_SIGMA, DIPOLE_SCALE = 5.0, 5.0
"""For a residual's first moments: width in pixels of the Gaussian window about the center, and a
factor."""
CENTROID_SIGMA, CENTROID_LIGHT, CENTROID_FLOOR = 3.0, 0.005, 0.02
"""For a band's center of light: width of the window in pixels, light per pixel added so that empty
bands have a center, and pixels added under the logarithm. The last is about the noise of a faint
galaxy's center."""


@dataclass(frozen=True)
class AstroMAEConfig:
    """Sizes of the network; the defaults are those of the published network.

    Raises `BadModelError` if the sizes are inconsistent.
    """

    name: str = "astromae"
    bands: int = 5
    size: int = 32
    """Side of the image, in pixels."""
    patch: int = 8
    """Side of a patch, in pixels; must divide `size`."""
    width: int = 192
    """Number of values per token."""
    depth: int = 12
    """Number of encoder blocks."""
    heads: int = 3
    mlp_ratio: float = 4.0
    pcm_hidden: int = 768
    """Channels inside a block's convolution branch; 0 means no such branch."""
    pcm_groups: int = 48
    projection: int = 1096
    """Width of the image branches before they are joined."""
    magnitude_hidden: int = 1024
    magnitude_layers: int = 5
    """Number of linear layers in the magnitude branch."""
    head_hidden: int = 1024
    inception_stem: int = 32
    inception: tuple[int, ...] = (16, 16, 8, 8, 4)
    """Channels of each branch of the five inception blocks; a trailing odd block has no 5x5."""
    softening: tuple[float, ...] | None = None
    """Softening per band, in the image's unit: pixels enter as asinh(pixel / softening). None
    leaves pixels unchanged."""
    magnitude_centre: tuple[float, ...] | None = None
    """Center of the magnitudes per band, in mag; None leaves magnitudes unchanged."""
    magnitude_scale: tuple[float, ...] | None = None
    """Scale of the magnitudes per band, in mag; given together with `magnitude_centre`."""
    embedding: bool = False
    """Whether the exported model gives the pooled encoder tokens as features."""
    decoder_width: int = 0
    """Width of the masked autoencoder's decoder; 0 means no decoder and no residual features."""
    decoder_depth: int = 2
    decoder_heads: int = 2
    scoring: Literal["checkerboards", "quarters"] = "checkerboards"
    """Kind of fixed masks that the residual features use; see `scoring_masks`."""

    def __post_init__(self) -> None:
        for wrong, sentence in self._conflicts():
            if wrong:
                raise BadModelError(f"model {self.name!r}: {sentence}")

    def _conflicts(self) -> list[tuple[bool, str]]:
        per_band = (self.softening, self.magnitude_centre, self.magnitude_scale)
        return [
            (
                min(self.bands, self.size, self.patch, self.width, self.depth, self.heads) < 1,
                "bands, size, patch, width, depth and heads must be at least 1",
            ),
            (self.size % 8 != 0, f"size {self.size} must be a multiple of 8 (three poolings)"),
            (self.size % self.patch != 0, f"patch {self.patch} must divide size {self.size}"),
            (self.width % 4 != 0, f"width {self.width} must be a multiple of 4 (positions)"),
            (self.width % self.heads != 0, f"{self.heads} heads must divide width {self.width}"),
            (
                self.pcm_hidden > 0
                and (self.width % self.pcm_groups != 0 or self.pcm_hidden % self.pcm_groups != 0),
                f"pcm_groups {self.pcm_groups} must divide width {self.width} and pcm_hidden "
                f"{self.pcm_hidden}",
            ),
            (len(self.inception) != 5, "inception takes five channel counts"),
            (
                any(values is not None and len(values) != self.bands for values in per_band),
                f"softening and magnitude scaling take one value for each of {self.bands} bands",
            ),
            (
                (self.magnitude_centre is None) != (self.magnitude_scale is None),
                "magnitude_centre and magnitude_scale go together",
            ),
            (
                self.decoder_width % 4 != 0
                or (self.decoder_width > 0 and self.decoder_width % self.decoder_heads != 0),
                f"decoder_width {self.decoder_width} must be a multiple of 4 and of "
                f"{self.decoder_heads} heads",
            ),
            (
                self.decoder_width > 0 and self.grid % 2 != 0,
                f"scoring masks need an even grid of patches, not {self.grid}",
            ),
        ]

    @property
    def grid(self) -> int:
        """Number of patches along one side of the image."""
        return self.size // self.patch

    @property
    def tokens(self) -> int:
        """Patches of an image; the class token is not counted."""
        return self.grid**2

    @property
    def patch_pixels(self) -> int:
        """Number of values in one patch: patch * patch * bands."""
        return self.patch**2 * self.bands

    @property
    def mlp_hidden(self) -> int:
        """Hidden width of an encoder block's MLP."""
        return int(self.width * self.mlp_ratio)

    @property
    def inception_flat(self) -> int:
        """Number of values per image that leave the inception blocks."""
        return 3 * self.inception[-1] * (self.size // 8) ** 2

    @property
    def residuals(self) -> int:
        """Number of residual statistics per image; 0 without a decoder."""
        return 6 * self.bands + 6 if self.decoder_width else 0

    @property
    def feature_groups(self) -> dict[str, int]:
        """Width of each group of features, in order; empty if the model gives none."""
        groups = {"embedding": self.width if self.embedding else 0, "residual": self.residuals}
        return {name: width for name, width in groups.items() if width}

    def to_dict(self) -> dict[str, object]:
        """The settings as JSON values, for `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> AstroMAEConfig:
        """Create a configuration from JSON values; raises `BadModelError` on unknown keys or
        inconsistent sizes."""
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()
        }
        try:
            return cls(**values)
        except TypeError as error:
            raise BadModelError(f"not the sizes of an AstroMAE model: {error}") from error

    def to_json(self) -> str:
        """The JSON text stored in a weight file."""
        return json.dumps(self.to_dict(), sort_keys=True)


PUBLISHED = AstroMAEConfig()
"""The public architecture: 15,902,889 parameters."""

SMALL = AstroMAEConfig(
    name="astromae-small",
    width=96,
    depth=6,
    heads=3,
    pcm_hidden=192,
    pcm_groups=24,
    projection=192,
    magnitude_hidden=128,
    magnitude_layers=4,
    head_hidden=192,
    softening=(0.1, 0.05, 0.06, 0.1, 0.4),
    magnitude_centre=(20.0, 18.5, 17.8, 17.4, 17.2),
    magnitude_scale=(1.5, 1.5, 1.5, 1.5, 1.5),
    embedding=True,
    decoder_width=64,
    decoder_depth=2,
    decoder_heads=2,
)
"""A network smaller than 10 MB that also scores anomalies."""


def sincos_positions(width: int, grid: int, *, class_token: bool) -> NDArray[np.float32]:
    """Fixed 2-D sine-cosine positions, (tokens, width); zero for a leading class token.

    Half of the width encodes the column, the other half the row, each as sines followed by cosines
    with wavelengths from 2 pi to 10000 * 2 pi (He et al. 2022, arXiv:2111.06377).
    """
    quarter = width // 4
    rates = 10000.0 ** (-np.arange(quarter, dtype=np.float64) / quarter)
    row, column = (axis.reshape(-1, 1) * rates for axis in np.mgrid[:grid, :grid].astype(float))
    table = np.concatenate([np.sin(column), np.cos(column), np.sin(row), np.cos(row)], axis=1)
    if class_token:
        table = np.concatenate([np.zeros((1, width)), table])
    return table.astype(np.float32)


def moment_weights(size: int, sigma: float) -> NDArray[np.float32]:
    """A Gaussian window about the center, and the window times x and times y in pixels: (3, size,
    size)."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2.0
    window = np.exp(-(x**2 + y**2) / (2.0 * sigma**2))
    return np.stack([window, window * x, window * y]).astype(np.float32)


def residual_names(bands: tuple[str, ...]) -> list[str]:
    """Names of the residual statistics of a model, in the order of its features."""
    kinds = ("mean_square", "max", "worst_pixels", "mean")
    wide = ["total", "worst_patch", "worst_band", "worst_row", "worst_column", "asymmetry"]
    lopsided = [f"{kind}_{band}" for kind in ("dipole", "shift") for band in bands]
    return [f"{kind}_{band}" for kind in kinds for band in bands] + wide + lopsided


def scoring_masks(config: AstroMAEConfig) -> NDArray[np.bool_]:
    """Masks (passes, tokens), True where a patch is hidden; all patches are hidden equally often.

    ``checkerboards`` are two passes that each hide half of the patches, so each patch is predicted
    once. ``quarters`` are four passes that each show one patch of every 2x2 square, so each patch
    is predicted three times.
    """
    row, column = np.mgrid[: config.grid, : config.grid].reshape(2, -1)
    if config.scoring == "checkerboards":
        color = (row + column) % 2
        return np.stack([color == which for which in range(2)])
    square = 2 * (row % 2) + column % 2
    return np.stack([square != which for which in range(4)])
