"""Models of others, from their public architectures, small and with random weights: plain torch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

GZ_CLASSES = (
    "disturbed", "merging", "round smooth", "in-between round smooth", "cigar smooth",
    "barred spiral", "tight spiral", "loose spiral", "edge-on", "edge-on with bulge",
)  # fmt: skip
"""Of Galaxy10 DECaLS, in its order."""
LEVELS = (0.05, 0.16, 0.5, 0.84, 0.95)


class Residual(nn.Module):
    """A residual block of two convolutions, as in the encoders that Zoobot takes from timm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.layers(x))


class GalaxyClassifier(nn.Module):
    """An encoder and a linear head over ten classes, on three bands: logits come out."""

    def __init__(self, bands: int = 3, classes: int = len(GZ_CLASSES)) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(bands, 8, 3, stride=2, padding=1), nn.ReLU(), Residual(8),
            nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(), Residual(16),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(16, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(image))


class ViTEncoder(nn.Module):
    """A vision transformer without a head: the mean of its tokens is the embedding."""

    def __init__(self, bands: int = 3, side: int = 32, patch: int = 8, width: int = 24) -> None:
        super().__init__()
        self.patches = nn.Conv2d(bands, width, patch, stride=patch)
        self.positions = nn.Parameter(torch.randn(1, (side // patch) ** 2, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 3, 4 * width, 0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.positions
        return self.blocks(tokens).mean(dim=1)


class QuantileRedshift(nn.Module):
    """A quantile network for redshifts from magnitudes: five levels."""

    def __init__(self, bands: int = 5) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(bands, 16), nn.ReLU(), nn.Linear(16, len(LEVELS)))

    def forward(self, magnitude: torch.Tensor) -> torch.Tensor:
        return nn.functional.softplus(self.layers(magnitude - 18.0)).cumsum(dim=1)


class BinnedRedshift(nn.Module):
    """A classifier over redshift bins, as in Pasquet et al. 2019: logits of a PDF."""

    def __init__(self, bands: int = 5, bins: int = 20) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(bands, 16), nn.ReLU(), nn.Linear(16, bins))

    def forward(self, magnitude: torch.Tensor) -> torch.Tensor:
        return self.layers(magnitude - 18.0)


def export(
    model: nn.Module,
    path: Path,
    example: torch.Tensor,
    *,
    names: tuple[str, str],
    rows: bool = True,
) -> Path:
    """Export as torch does by default, weights beside the graph; `rows`: any number of them."""
    shapes = ({0: torch.export.Dim("n", min=1)},) if rows else None
    torch.onnx.export(
        model.eval(), (example,), str(path), input_names=[names[0]], output_names=[names[1]],
        dynamic_shapes=shapes, external_data=True, verbose=False,
    )  # fmt: skip
    return path
