"""The pieces of a training step: augmentation, learning rates, running means, losses."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from perseid.model.training.astromae import AstroMAE

SYMMETRIES = 8
"""Number of flips and quarter turns of a square."""
JITTER_PER_BAND = (0.03, 0.006, 0.005, 0.005, 0.01)
"""About half of SDSS's photometric errors in u, g, r, i, z at these magnitudes, in mag. The noise
keeps the network from memorizing single objects. Surveys with other bands use the middle value."""
LOSS_SCALE = 50.0
"""Factor that makes |dz| of good predictions about 1, where Adam's epsilon and weight decay do no
harm."""
WARM_UP = 100
"""Steps of linear warm-up; a tenth of the training if that is less."""


def turned(images: Tensor, symmetry: int) -> Tensor:
    """Images (n, bands, size, size), flipped or turned; `symmetry` 0 leaves them unchanged."""
    if symmetry & 1:
        images = images.flip(3)
    if symmetry & 2:
        images = images.flip(2)
    return images.transpose(2, 3) if symmetry & 4 else images


def jitter_per_band(bands: int) -> NDArray[np.float32]:
    """Noise (bands,) in mag."""
    known = len(JITTER_PER_BAND) == bands
    middle = sorted(JITTER_PER_BAND)[len(JITTER_PER_BAND) // 2]
    return np.array(JITTER_PER_BAND if known else (middle,) * bands, np.float32)


def rate(step: int, steps: int) -> float:
    """Share of the peak learning rate at `step` of `steps`: a warm-up, then a cosine to zero."""
    warm = max(1, min(WARM_UP, steps // 10))
    return min(1.0, (step + 1) / warm) * 0.5 * (1.0 + math.cos(math.pi * step / max(steps, 1)))


def redshift_loss(predicted: Tensor, redshift: Tensor) -> Tensor:
    """Mean |dz| times `LOSS_SCALE`: robust, and the quantity that the published figures report."""
    return LOSS_SCALE * ((predicted.squeeze(1) - redshift) / (1.0 + redshift)).abs().mean()


class WhitenedLinear(nn.Module):
    """A linear layer on decorrelated inputs: ``weight @ whiten @ (x - mean) + bias``.

    The magnitudes of five bands are almost equal, and the redshift depends on their small
    differences. Whitened magnitudes need a tenth of the training steps; `folded` gives the
    equivalent plain layer. If `trained`, `layer` is the plain layer of an earlier training, and
    this one starts as the same map.
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
        """Map (n, inputs) to (n, outputs)."""
        return nn.functional.linear((x - self.mean) @ self.whiten.T, self.weight, self.bias)

    def folded(self) -> nn.Linear:
        """The same map as a plain linear layer."""
        with torch.no_grad():
            weight = self.weight.double() @ self.whiten.double()
            bias = self.bias.double() - weight @ self.mean.double()
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        return layer


class RunningMean:
    """Exponential running mean of a model's tensors; over the first steps it is a plain mean."""

    def __init__(self, decay: float, tensors: dict[str, Tensor]) -> None:
        self.decay = decay
        self.steps = 0
        self.mean = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self._floats = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
        self._others = [name for name, tensor in tensors.items() if not tensor.is_floating_point()]

    @torch.no_grad()
    def update(self, tensors: dict[str, Tensor]) -> None:
        """Include the values of one step."""
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
        """On a GPU, update all tensors in a few kernel launches: one launch per tensor would take
        longer than the step."""
        means = [self.mean[name] for name in self._floats]
        torch._foreach_lerp_(means, [tensors[n].detach() for n in self._floats], 1.0 - decay)
        if self._others:
            others = [self.mean[name] for name in self._others]
            torch._foreach_copy_(others, [tensors[name] for name in self._others])


class LossSum:
    """The sum of an epoch's losses. On a GPU it stays there until its value is requested."""

    def __init__(self, value: float = 0.0) -> None:
        self._value = value
        self._waiting: Tensor | None = None

    def add(self, loss: Tensor) -> None:
        """Add the loss of one step."""
        if not loss.is_cuda:
            self._value += float(loss)
        elif self._waiting is None:
            self._waiting = loss.double()
        else:
            self._waiting += loss

    @property
    def value(self) -> float:
        """The sum so far; waits for the GPU to finish."""
        if self._waiting is not None:
            self._value += float(self._waiting)
            self._waiting = None
        return self._value


def encoder_parameters(model: AstroMAE) -> list[nn.Parameter]:
    """The parameters that the masked autoencoder trains: those of encoder and decoder."""
    parts: list[nn.Module] = [model.patch_embed, model.blocks]
    parts += [model.decoder] if model.decoder is not None else []
    return [model.cls_token, *(p for part in parts for p in part.parameters())]


def image_parameters(model: AstroMAE) -> list[nn.Parameter]:
    """The parameters of the image branches behind the encoder."""
    branches = (model.fc_norm, model.head, model.vit_block, model.inception_model.vis_inception)
    return [p for branch in branches for p in branch.parameters()]


def color_parameters(model: AstroMAE) -> list[nn.Parameter]:
    """The parameters of the magnitude branch and of the layers that join all branches."""
    branches = (model.inception_model.magnitude_block, model.concat_block)
    return [p for branch in branches for p in branch.parameters()]


def head_only(model: AstroMAE, magnitude: Tensor) -> Tensor:
    """Redshifts (n, 1) with the image branches switched off (their outputs are zero)."""
    colors = model.inception_model.magnitude_block(model.scale_magnitude(magnitude))
    images = colors.new_zeros(len(colors), 2 * model.config.projection)
    joined: Tensor = model.concat_block(torch.cat((images, colors), dim=1))
    return joined
