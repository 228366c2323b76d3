"""What the masked autoencoder could not predict, as a few robust numbers an image.

The same arithmetic is exported to ONNX (`perseid.model.fold`); a test holds them together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from perseid.model.config import FLOOR, THIRD_CLIP, WORST_PIXELS


def residual_names(bands: tuple[str, ...]) -> list[str]:
    """Names of the statistics, in the order of the output."""
    kinds = ("mean_square", "max", "worst_pixels", "mean")
    wide = ["total", "worst_patch", "worst_band", "worst_row", "worst_column", "asymmetry"]
    return [f"{kind}_{band}" for kind in kinds for band in bands] + wide


def residual_statistics(residual: Tensor, patch: int) -> Tensor:
    """Statistics of normalised residuals.

    Parameters
    ----------
    residual
        (n, bands, size, size) float32, prediction minus truth in units of the usual spread.
    patch
        Pixels a side of a patch.

    Returns
    -------
    Tensor
        (n, 4 * bands + 6): per band log mean square, log max, log mean of the worst pixels and
        asinh of the summed residual over its noise; then log mean square of all pixels, of the
        worst patch and of the worst band; log of the worst row and column (|mean| over noise, any
        band: trails and bad columns); asinh of the third moment (light that should not be there
        against light that is missing). Finite for finite input.
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
