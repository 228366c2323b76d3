"""Summarize what the masked autoencoder could not predict as a few robust numbers per image.

The same arithmetic is exported to ONNX (`perseid.model.export.folded_residual`); a test checks that
the two agree.
"""

from __future__ import annotations

import torch
from torch import Tensor

from perseid.model.config import (
    CENTROID_FLOOR,
    CENTROID_LIGHT,
    CENTROID_SIGMA,
    DIPOLE_SCALE,
    DIPOLE_SIGMA,
    FLOOR,
    THIRD_CLIP,
    WORST_PIXELS,
    moment_weights,
)


def residual_statistics(residual: Tensor, patch: int) -> Tensor:
    """Statistics of normalized residuals.

    Parameters
    ----------
    residual
        (n, bands, size, size) float32, prediction minus truth in units of the usual spread.
    patch
        Side of a patch, in pixels.

    Returns
    -------
    Tensor
        (n, 4 * bands + 6): per band, log mean square, log max, log mean of the worst pixels and
        asinh of the summed residual over its noise; then log mean square of all pixels, of the
        worst patch and of the worst band; log of the worst row and of the worst column of any band
        (|mean| over noise; detects trails and bad columns); asinh of the third moment (excess light
        versus missing light). Finite for finite input.
    """
    n, bands, size, _ = residual.shape
    absolute = residual.abs()
    square = residual * residual
    flat = absolute.reshape(n, bands, size * size)
    worst = flat.topk(WORST_PIXELS, dim=2).values
    band = square.mean(dim=(2, 3))
    grid = size // patch
    patches = square.reshape(n, bands, grid, patch, grid, patch).mean(dim=(1, 3, 5))
    lines = [residual.mean(dim=axis).abs().amax(dim=(1, 2)) * size**0.5 for axis in (3, 2)]
    third = (residual.clamp(-THIRD_CLIP, THIRD_CLIP) ** 3).mean(dim=(1, 2, 3))
    logs = [
        torch.log(band + FLOOR),
        torch.log(worst.amax(dim=2) + FLOOR),
        torch.log(worst.mean(dim=2) + FLOOR),
    ]
    wide = [band.mean(dim=1), patches.amax(dim=(1, 2)), band.amax(dim=1), *lines]
    return torch.cat(
        [
            *logs,
            torch.asinh(residual.mean(dim=(2, 3)) * size),
            torch.log(torch.stack(wide, dim=1) + FLOOR),
            torch.asinh(third)[:, None],
        ],
        dim=1,
    )


def lopsided_statistics(residual: Tensor, scaled: Tensor) -> Tensor:
    """How asymmetric the residuals are, and how far the bands' centers of light are from each
    other.

    Parameters
    ----------
    residual
        Residuals, as for `residual_statistics`.
    scaled
        (n, bands, size, size), the images as the network sees them.

    Returns
    -------
    Tensor
        (n, 2 * bands): asinh of the first moment of each band's residual about the center (detects
        second nuclei and streams); log of the distance in pixels between each band's center of
        light and that of all bands together (detects bands that are not aligned).
    """
    size = residual.shape[3]
    window = torch.from_numpy(moment_weights(size, DIPOLE_SIGMA)).to(residual)
    dipole = [(residual * window[axis]).mean(dim=(2, 3)) for axis in (1, 2)]
    window = torch.from_numpy(moment_weights(size, CENTROID_SIGMA)).to(scaled)
    light = scaled.abs() * window[0]
    band = light.mean(dim=(2, 3)) + CENTROID_LIGHT
    whole = light.mean(dim=(1, 2, 3)) + CENTROID_LIGHT
    shift = []
    for axis in (1, 2):
        moment = scaled * window[axis]
        center = moment.mean(dim=(1, 2, 3)) / whole
        shift.append(moment.mean(dim=(2, 3)) / band - center[:, None])
    return torch.cat(
        [
            torch.asinh(DIPOLE_SCALE * (dipole[0] ** 2 + dipole[1] ** 2).sqrt()),
            torch.log((shift[0] ** 2 + shift[1] ** 2).sqrt() + CENTROID_FLOOR),
        ],
        dim=1,
    )
