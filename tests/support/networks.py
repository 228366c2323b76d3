"""Networks with random weights and random norm statistics, for the tests of folding and export."""

from __future__ import annotations

import numpy as np
import torch

from perseid.model.config import AstroMAEConfig
from perseid.model.training.astromae import AstroMAE


def random_network(config: AstroMAEConfig, seed: int = 0) -> AstroMAE:
    """No weight, bias, scale, shift or running statistic is left at a value that hides errors."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = AstroMAE(config)

    def normal(tensor: torch.Tensor, spread: float) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator) * spread

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("norm", ".bn.", "PCM.1.")):
                parameter.add_(normal(parameter, 0.2))
            elif name.endswith("bias"):
                parameter.add_(normal(parameter, 0.1))
        for name, buffer in model.named_buffers():
            if "running_mean" in name:
                buffer.copy_(normal(buffer, 0.3))
            elif "running_var" in name or "residual_scale" in name:
                buffer.copy_(normal(buffer, 1.0).abs() + 0.3)
    return model.eval()


def random_rows(n: int, config: AstroMAEConfig, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Images with a blob in the middle of noise, and magnitudes (float64)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: config.size, : config.size] - config.size / 2
    width = rng.uniform(1.5, 4, (n, 1, 1, 1))
    blob = np.exp(-(x**2 + y**2) / (2 * width**2)) * rng.lognormal(0, 1, (n, config.bands, 1, 1))
    noise = rng.standard_normal((n, config.bands, config.size, config.size)) * 0.1
    magnitudes = 18 + 1.5 * rng.standard_normal((n, config.bands))
    return (blob + noise).astype(np.float32), magnitudes
