"""The pieces of a training step: augmentation, learning rates, running means, losses."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from perseid.model.training.astromae import AstroMAE

SYMMETRIES = 8
"""Flips and quarter turns of a square."""
JITTER_PER_BAND = (0.03, 0.006, 0.005, 0.005, 0.01)
"""About half of SDSS' photometric errors in u, g, r, i, z at these magnitudes, mag: it keeps the
network from learning single objects by heart. Surveys with other bands use the middle value."""
LOSS_SCALE = 50.0
"""Puts |dz| of good predictions near 1, where Adam's epsilon and weight decay are harmless."""
WARM_UP = 100
"""Steps of linear warm-up, or a tenth of the training where that is less."""


def turned(images: Tensor, symmetry: int) -> Tensor:
    """(n, bands, size, size) flipped or turned; 0 is unchanged."""
    if symmetry & 1:
        images = images.flip(3)
    if symmetry & 2:
        images = images.flip(2)
    return images.transpose(2, 3) if symmetry & 4 else images


def jitter_per_band(bands: int) -> NDArray[np.float32]:
    """(bands,) mag."""
    known = len(JITTER_PER_BAND) == bands
    middle = sorted(JITTER_PER_BAND)[len(JITTER_PER_BAND) // 2]
    return np.array(JITTER_PER_BAND if known else (middle,) * bands, np.float32)


def rate(step: int, steps: int) -> float:
    """Share of the peak learning rate at `step` of `steps`: warm-up, then a cosine to zero."""
    warm = max(1, min(WARM_UP, steps // 10))
    return min(1.0, (step + 1) / warm) * 0.5 * (1.0 + math.cos(math.pi * step / max(steps, 1)))


def redshift_loss(predicted: Tensor, redshift: Tensor) -> Tensor:
    """Mean |dz| (times `LOSS_SCALE`): robust, and what the published figures are made of."""
    return LOSS_SCALE * ((predicted.squeeze(1) - redshift) / (1.0 + redshift)).abs().mean()


class WhitenedLinear(nn.Module):
    """A linear layer that sees uncorrelated inputs: ``weight @ whiten @ (x - mean) + bias``.

    Magnitudes of five bands are almost the same number; the redshift lies in their small
    differences. Whitened, they are learned in a tenth of the steps; `folded` gives the plain
    layer that does the same. `trained`: `layer` is taken to be the plain layer of a former
    training, and this one begins as the same map.
    """

    def __init__(self, layer: nn.Linear, inputs: Tensor, *, trained: bool = False) -> None:
        super().__init__()
        covariance = np.cov(inputs.double().numpy().T, ddof=0)
        values, vectors = np.linalg.eigh(covariance.reshape(inputs.shape[1], inputs.shape[1]))
        root = vectors / np.sqrt(np.maximum(values, 1e-6 * max(float(values[-1]), 1e-12)))
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.bias = nn.Parameter(layer.bias.detach().clone())
        self.register_buffer("whiten", torch.from_numpy(root.T.copy()).float())
        self.register_buffer("mean", inputs.double().mean(dim=0).float())
        self.whiten: Tensor
        self.mean: Tensor
        if trained:
            with torch.no_grad():
                weight = self.weight.double()
                self.bias.copy_(self.bias + weight @ self.mean.double())
                self.weight.copy_(weight @ torch.linalg.inv(self.whiten.double()))

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs) to (n, outputs)."""
        return nn.functional.linear((x - self.mean) @ self.whiten.T, self.weight, self.bias)

    def folded(self) -> nn.Linear:
        """The same map as an ordinary layer."""
        with torch.no_grad():
            weight = self.weight.double() @ self.whiten.double()
            bias = self.bias.double() - weight @ self.mean.double()
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        return layer


class RunningMean:
    """Exponential mean of some tensors of a model; the first steps count as a plain mean."""

    def __init__(self, decay: float, tensors: dict[str, Tensor]) -> None:
        self.decay = decay
        self.steps = 0
        self.mean = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def update(self, tensors: dict[str, Tensor]) -> None:
        """Take one step's values in."""
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10.0))
        if next(iter(tensors.values())).is_cuda:
            self._update_at_once(tensors, decay)
            return
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                self.mean[name].lerp_(tensor.detach(), 1.0 - decay)
            else:
                self.mean[name].copy_(tensor)

    def _update_at_once(self, tensors: dict[str, Tensor], decay: float) -> None:
        """On a GPU: a few launches for all tensors, where one for each would take longer than
        the step."""
        names = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
        means, values = [self.mean[n] for n in names], [tensors[n].detach() for n in names]
        torch._foreach_lerp_(means, values, 1.0 - decay)
        others = [name for name in tensors if name not in set(names)]
        if others:
            torch._foreach_copy_([self.mean[n] for n in others], [tensors[n] for n in others])


class LossSum:
    """The sum of an epoch's losses; on a GPU it stays there until it is asked for."""

    def __init__(self, value: float = 0.0) -> None:
        self._value = value
        self._waiting: Tensor | None = None

    def add(self, loss: Tensor) -> None:
        """Take one step's loss in."""
        if not loss.is_cuda:
            self._value += float(loss)
        elif self._waiting is None:
            self._waiting = loss.double()
        else:
            self._waiting += loss

    @property
    def value(self) -> float:
        """The sum so far; waits for the GPU."""
        if self._waiting is not None:
            self._value += float(self._waiting)
            self._waiting = None
        return self._value


def encoder_parameters(model: AstroMAE) -> list[nn.Parameter]:
    """What the masked autoencoder trains: the encoder and the decoder."""
    parts: list[nn.Module] = [model.patch_embed, model.blocks]
    parts += [model.decoder] if model.decoder is not None else []
    return [model.cls_token, *(p for part in parts for p in part.parameters())]


def image_parameters(model: AstroMAE) -> list[nn.Parameter]:
    """The image branches behind the encoder."""
    branches = (model.fc_norm, model.head, model.vit_block, model.inception_model.vis_inception)
    return [p for branch in branches for p in branch.parameters()]


def color_parameters(model: AstroMAE) -> list[nn.Parameter]:
    """The magnitude branch and the layers that join all branches."""
    branches = (model.inception_model.magnitude_block, model.concat_block)
    return [p for branch in branches for p in branch.parameters()]


def head_only(model: AstroMAE, magnitude: Tensor) -> Tensor:
    """Redshift (n, 1) with the image branches switched off (their outputs zero)."""
    colors = model.inception_model.magnitude_block(model.scale_magnitude(magnitude))
    images = colors.new_zeros(len(colors), 2 * model.config.projection)
    joined: Tensor = model.concat_block(torch.cat((images, colors), dim=1))
    return joined
