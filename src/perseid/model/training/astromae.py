"""AstroMAE in PyTorch: the public architecture, smaller ones, and the masked autoencoder.

Parameters have the names of the published checkpoints (without ``module.``), so that those weights
load unchanged. Layers: `perseid.model.config.AstroMAEConfig`. The encoder follows "pcm" ViTAE
blocks (Zhang et al. 2022, arXiv:2202.10108) and MAE (He et al. 2022, arXiv:2111.06377); the
inception branch Henghes et al. 2022 (MNRAS 512, 1696).
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from perseid.errors import BadModelError
from perseid.model.config import (
    CLIP,
    MAGNITUDE_CLIP,
    AstroMAEConfig,
    scoring_masks,
    sincos_positions,
)
from perseid.model.training.layers import (
    EPS,
    Decoder,
    InceptionModel,
    PatchEmbed,
    TransformerBlock,
    linears,
)
from perseid.model.training.residuals import lopsided_statistics, residual_statistics
from perseid.model.weights import Weights


class AstroMAE(nn.Module):
    """Predicts redshifts from images and magnitudes, and gives features if the configuration has
    them.

    ``forward(image (n, bands, size, size), magnitude (n, bands)) -> (n, 1)``.
    """

    _softening: Tensor | None
    _magnitude_centre: Tensor | None
    _magnitude_scale: Tensor | None

    def __init__(self, config: AstroMAEConfig) -> None:
        super().__init__()
        self.config = config
        width, projection = config.width, config.projection
        self.fc_norm = nn.LayerNorm(width, eps=EPS)
        self.head = nn.Linear(width, width)
        self.inception_model = InceptionModel(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        positions = sincos_positions(width, config.grid, class_token=True)
        self.pos_embed = nn.Parameter(torch.from_numpy(positions)[None], requires_grad=False)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                width, config.heads, config.mlp_hidden, config.pcm_hidden, config.pcm_groups
            )
            for _ in range(config.depth)
        )
        self.patch_embed = PatchEmbed(config.bands, config.patch, width)
        self.vit_block = nn.Sequential(*linears([width, projection, projection]))
        joined = 2 * projection + config.magnitude_hidden
        self.concat_block = nn.Sequential(*linears([joined, config.head_hidden, 1]))
        self.decoder = Decoder(config) if config.decoder_width else None
        nn.init.normal_(self.cls_token, std=0.02)
        # Buffers, because a tensor made of numbers in a step would have to be copied to the GPU,
        # which waits for it; in float64, so that they are rounded only to the image's type.
        for name in ("softening", "magnitude_centre", "magnitude_scale"):
            values = getattr(config, name)
            tensor = None if values is None else torch.tensor(values, dtype=torch.float64)
            self.register_buffer(f"_{name}", tensor, persistent=False)

    def scale_image(self, image: Tensor) -> Tensor:
        """Pixels as the network takes them: asinh(pixel / softening) per band, or unchanged."""
        if self._softening is None:
            return image
        softening = self._softening.to(image)[:, None, None]
        return torch.asinh((image / softening).clamp(-CLIP, CLIP))

    def scale_magnitude(self, magnitude: Tensor) -> Tensor:
        """Magnitudes in float32, centered and scaled if the configuration says so."""
        magnitude = magnitude.float()
        if self._magnitude_centre is None or self._magnitude_scale is None:
            return magnitude
        center = self._magnitude_centre.to(magnitude)
        scale = self._magnitude_scale.to(magnitude)
        return ((magnitude - center) / scale).clamp(-MAGNITUDE_CLIP, MAGNITUDE_CLIP)

    def encode(self, scaled: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens (n, 1 + kept, width) of scaled images, the class token first.

        `keep` (n, kept), int64, names the patches to show; None shows all.
        """
        x = self.patch_embed(scaled) + self.pos_embed[:, 1:]
        if keep is not None:
            x = x.gather(1, keep[:, :, None].expand(-1, -1, x.shape[2]))
        start = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        x = torch.cat((start, x), dim=1)
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, x)

    def embed(self, image: Tensor) -> Tensor:
        """The mean of the encoder's patch tokens (n, width), for raw images."""
        return self.encode(self.scale_image(image))[:, 1:].mean(dim=1)

    def forward(self, image: Tensor, magnitude: Tensor) -> Tensor:
        """Redshifts (n, 1) from raw images and magnitudes."""
        scaled = self.scale_image(image)
        pooled = self.encode(scaled)[:, 1:].mean(dim=1)
        return self.redshift(scaled, pooled, magnitude)

    def redshift(self, scaled: Tensor, pooled: Tensor, magnitude: Tensor) -> Tensor:
        """Redshifts (n, 1) from scaled images, the pooled tokens of `embed` and raw magnitudes.

        With a frozen encoder `pooled` may be computed once and kept between epochs.
        """
        seen = self.vit_block(self.head(self.fc_norm(pooled)))
        shapes, colors = self.inception_model(scaled, self.scale_magnitude(magnitude))
        return cast(Tensor, self.concat_block(torch.cat((seen, shapes, colors), dim=1)))

    def predict_with_features(self, image: Tensor, magnitude: Tensor) -> tuple[Tensor, Tensor]:
        """Redshifts (n, 1) and features (n, sum of the configuration's groups), as the exported
        model gives them."""
        scaled = self.scale_image(image)
        pooled = self.encode(scaled)[:, 1:].mean(dim=1)
        groups = [pooled] if self.config.embedding else [pooled[:, :0]]
        if self.decoder is not None:
            residual = MaskedAutoencoder(self).scoring_residual(scaled)
            groups.append(residual_statistics(residual, self.config.patch))
            groups.append(lopsided_statistics(residual, scaled))
        return self.redshift(scaled, pooled, magnitude), torch.cat(groups, dim=1)


class MaskedAutoencoder(nn.Module):
    """Pre-training and scoring with the encoder and decoder of `model`, which must have a decoder.

    ``forward(image, mask_ratio, generator) -> loss``: mean squared error of the hidden patches in
    scaled pixels. Train its parameters; those of ``model.concat_block`` and other layers that it
    does not use get no gradients.
    """

    def __init__(self, model: AstroMAE) -> None:
        super().__init__()
        if model.decoder is None:
            raise ValueError("a masked autoencoder needs a config with decoder_width > 0")
        self.model = model
        self.decoder: Decoder = model.decoder

    def forward(
        self,
        image: Tensor,
        mask_ratio: float = 0.5,
        generator: torch.Generator | None = None,
        batch: int | None = None,
        share: slice = slice(None),
    ) -> Tensor:
        """The loss of one batch of raw images (n, bands, size, size).

        If the images are the ``share`` of a larger ``batch``, the masks are drawn for that whole
        batch.
        """
        scaled = self.model.scale_image(image)
        masks = self.random_masks(batch or len(image), mask_ratio, generator, image.device)
        keep, hidden = (mask[share] for mask in masks)
        return self.masked_error(scaled, keep, hidden)

    def masked_error(self, scaled: Tensor, keep: Tensor, hidden: Tensor) -> Tensor:
        """Mean squared error of the hidden patches of scaled images; masks are those of
        `random_masks`."""
        error = (self.reconstruct(scaled, keep) - self.patchify(scaled)) ** 2
        return (error.mean(dim=2) * hidden).sum() / hidden.sum()

    def random_masks(
        self,
        n: int,
        ratio: float,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> tuple[Tensor, Tensor]:
        """Patches to show (n, kept) as int64, and a float mask (n, tokens) that is 1 for hidden
        patches."""
        tokens = self.model.config.tokens
        kept = min(max(round(tokens * (1 - ratio)), 1), tokens - 1)
        drawn = torch.device("cpu") if generator is None else generator.device
        order = torch.rand(n, tokens, generator=generator, device=drawn).argsort(dim=1).to(device)
        keep = order[:, :kept]
        return keep, torch.ones(n, tokens, device=device).scatter(1, keep, 0.0)

    def reconstruct(self, scaled: Tensor, keep: Tensor) -> Tensor:
        """All patches (n, tokens, patch pixels), predicted from those at `keep`."""
        tokens = self.model.encode(scaled, keep)[:, 1:]
        return cast(Tensor, self.decoder(tokens, keep))

    def patchify(self, scaled: Tensor) -> Tensor:
        """Split images into patches (n, tokens, bands * patch * patch), bands outermost within a
        patch."""
        config = self.model.config
        n, grid, patch = len(scaled), config.grid, config.patch
        split = scaled.reshape(n, config.bands, grid, patch, grid, patch)
        return split.permute(0, 2, 4, 1, 3, 5).reshape(n, config.tokens, config.patch_pixels)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Join patches (n, tokens, patch pixels) to images (n, bands, size, size)."""
        config = self.model.config
        n, grid, patch = len(patches), config.grid, config.patch
        split = patches.reshape(n, grid, grid, config.bands, patch, patch)
        return split.permute(0, 3, 1, 4, 2, 5).reshape(n, config.bands, config.size, config.size)

    def scoring_residual(self, scaled: Tensor, *, normalized: bool = True) -> Tensor:
        """Prediction minus true image (n, bands, size, size), with the fixed masks of the
        configuration.

        Every patch is predicted only from others, as a mean over the passes that hide it. If
        `normalized`, the unit is ``decoder.residual_scale`` (bands,).
        """
        hidden = scoring_masks(self.model.config)
        total = torch.zeros_like(self.patchify(scaled))
        for mask in hidden:
            predicted = self.reconstruct(scaled, _rows(~mask, scaled))
            total = total + predicted * torch.from_numpy(mask).to(scaled)[:, None]
        residual = self.unpatchify(total / int(hidden[:, 0].sum())) - scaled
        if not normalized:
            return residual
        return residual / cast(Tensor, self.decoder.residual_scale)[:, None, None]

    @torch.no_grad()
    def measure_residual_scale(self, images: Tensor, batch: int = 256) -> Tensor:
        """Set ``decoder.residual_scale`` to the median of |residual| * 1.4826 per band, and return
        it.

        `images` are raw, (n, bands, size, size). Medians are used so that a few anomalies have no
        effect.
        """
        parts = [
            self.scoring_residual(self.model.scale_image(part), normalized=False)
            for part in torch.split(images, batch)
        ]
        spread = torch.cat(parts).abs().transpose(0, 1).flatten(1).median(dim=1).values * 1.4826
        scale = cast(Tensor, self.decoder.residual_scale)
        scale.copy_(spread.clamp_min(1e-3))
        return scale


def _rows(show: NDArray[np.bool_], like: Tensor) -> Tensor:
    rows = torch.from_numpy(np.flatnonzero(show)).to(like.device)
    return rows[None].expand(len(like), -1)


def to_weights(model: AstroMAE) -> Weights:
    """The model's configuration and arrays (float32 copies), for
    `perseid.model.weights.save_weights`."""
    arrays = {
        name: tensor.detach().cpu().float().numpy().copy()
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    return Weights(model.config, arrays)


def from_weights(weights: Weights) -> AstroMAE:
    """A model with these weights, in evaluation mode."""
    model = AstroMAE(weights.config)
    tensors = {name: torch.from_numpy(np.array(a)) for name, a in weights.arrays.items()}
    missing = model.load_state_dict(tensors, strict=False)
    left = [n for n in missing.missing_keys if not n.endswith("num_batches_tracked")]
    if left or missing.unexpected_keys:
        raise BadModelError(f"the weights and the network differ: {left + missing.unexpected_keys}")
    return model.eval()
