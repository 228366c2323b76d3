"""AstroMAE in PyTorch: the public architecture, smaller ones, and the masked autoencoder.

Names of parameters are those of the published checkpoints (without ``module.``), so that their
weights load as they are. Layers: `perseid.model.config.AstroMAEConfig`. The encoder follows
"pcm" ViTAE blocks (Zhang et al. 2022, arXiv:2202.10108) and MAE (He et al. 2022,
arXiv:2111.06377); the inception branch Henghes et al. 2022 (MNRAS 512, 1696).
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
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
from perseid.model.training.residuals import lopsided_statistics, residual_statistics
from perseid.model.weights import Weights

EPS = 1e-6


class Attention(nn.Module):
    """Self-attention with biases for queries and values only."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, width) to the same."""
        n, tokens, width = x.shape
        bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias)
        q, k, v = qkv.reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q * (width // self.heads) ** -0.5) @ k.transpose(-2, -1)
        mixed = (weights.softmax(dim=-1) @ v).transpose(1, 2).reshape(n, tokens, width)
        return cast(Tensor, self.proj(mixed))


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, width) to the same."""
        return cast(Tensor, self.fc2(F.gelu(self.fc1(x))))


class TransformerBlock(nn.Module):
    """Attention, beside it the convolution branch on the patch tokens, then the MLP.

    All convolutions have kernel 1, so a token's branch does not see other tokens and any subset
    of the patches may be given.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, pcm_hidden: int, pcm_groups: int
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = Mlp(width, hidden)
        self.PCM: nn.Sequential | None = None
        if pcm_hidden:
            self.PCM = nn.Sequential(
                nn.Conv2d(width, pcm_hidden, 1, groups=pcm_groups),
                nn.BatchNorm2d(pcm_hidden),
                nn.SiLU(inplace=True),
                nn.Conv2d(pcm_hidden, width, 1, groups=pcm_groups),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (n, 1 + patches, width) to the same, the class token first."""
        attended = x + self.attn(self.norm1(x))
        if self.PCM is not None:
            patches = x[:, 1:].transpose(1, 2).unsqueeze(-1)
            local = self.PCM(patches).squeeze(-1).transpose(1, 2)
            attended = torch.cat((attended[:, :1], attended[:, 1:] + local), dim=1)
        return cast(Tensor, attended + self.mlp(self.norm2(attended)))


class PatchEmbed(nn.Module):
    """Patches to tokens: (n, bands, size, size) to (n, tokens, width)."""

    def __init__(self, bands: int, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(bands, width, patch, stride=patch)

    def forward(self, image: Tensor) -> Tensor:
        """Apply it to (n, tokens, width); the same shape comes out."""
        return cast(Tensor, self.proj(image).flatten(2).transpose(1, 2))


class ConvUnit(nn.Module):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, channels: int, out: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) to (n, out, h, w)."""
        return F.relu(self.bn(self.conv(x)))


class InceptionBlock(nn.Module):
    """Four branches joined; `wide` False leaves the 5x5 branch unused, as published.

    The unused branch still has its parameters: the checkpoints hold them.
    """

    def __init__(self, channels: int, out: int, *, wide: bool) -> None:
        super().__init__()
        self.wide = wide
        self.branch1 = ConvUnit(channels, out, 1)
        self.branch2 = nn.Sequential(ConvUnit(channels, out, 1), ConvUnit(out, out, 3))
        self.branch3 = nn.Sequential(ConvUnit(channels, out, 1), ConvUnit(out, out, 5))
        pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.branch4 = nn.Sequential(pool, ConvUnit(channels, out, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) to (n, 4 or 3 times out, h, w)."""
        branches = [self.branch1, self.branch2, self.branch3, self.branch4]
        if not self.wide:
            del branches[2]
        return torch.cat([branch(x) for branch in branches], dim=1)


class InceptionModel(nn.Module):
    """The image's inception branch and the magnitude branch."""

    def __init__(self, config: AstroMAEConfig) -> None:
        super().__init__()
        self.conv2d_init = nn.Conv2d(config.bands, config.inception_stem, 1)
        layers: list[nn.Module] = [self.conv2d_init, nn.AvgPool2d(2)]
        channels = config.inception_stem
        for number, out in enumerate(config.inception):
            wide = number < 4
            layers.append(InceptionBlock(channels, out, wide=wide))
            channels = 4 * out if wide else 3 * out
            if number % 2 == 1:
                layers.append(nn.AvgPool2d(2))
        layers.append(nn.Flatten())
        layers += _linears([config.inception_flat, config.projection, config.projection])
        self.vis_inception = nn.Sequential(*layers)
        hidden = [config.magnitude_hidden] * config.magnitude_layers
        self.magnitude_block = nn.Sequential(*_linears([config.bands, *hidden]))

    def forward(self, image: Tensor, magnitude: Tensor) -> tuple[Tensor, Tensor]:
        """Image features (n, projection) and magnitude features (n, magnitude hidden)."""
        return self.vis_inception(image), self.magnitude_block(magnitude)


def _linears(widths: list[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for number in range(len(widths) - 1):
        layers += [nn.ReLU()] if number else []
        layers.append(nn.Linear(widths[number], widths[number + 1]))
    return layers


class Decoder(nn.Module):
    """Predicts hidden patches from the encoder's tokens of the visible ones."""

    def __init__(self, config: AstroMAEConfig) -> None:
        super().__init__()
        width = config.decoder_width
        self.norm_in = nn.LayerNorm(config.width, eps=EPS)
        self.embed = nn.Linear(config.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        positions = sincos_positions(width, config.grid, class_token=False)
        self.register_buffer("positions", torch.from_numpy(positions)[None])
        self.blocks = nn.ModuleList(
            TransformerBlock(width, config.decoder_heads, 4 * width, 0, 1)
            for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.pixels = nn.Linear(width, config.patch_pixels)
        self.register_buffer("residual_scale", torch.ones(config.bands))
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, visible: Tensor, keep: Tensor) -> Tensor:
        """All patches (n, tokens, patch pixels) from tokens (n, kept, width) at rows `keep`."""
        n, kept, _ = visible.shape
        positions = cast(Tensor, self.positions).expand(n, -1, -1)
        embedded = self.embed(self.norm_in(visible))
        index = keep[:, :, None].expand(n, kept, embedded.shape[2])
        tokens = self.mask_token.expand_as(positions)
        # Under autocast the embedded tokens have another type than the parameter.
        x = tokens.scatter(1, index, embedded.to(tokens.dtype)) + positions
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.pixels(self.norm(x)))


class AstroMAE(nn.Module):
    """Redshift from image and magnitudes; features where the config has them.

    ``forward(image (n, bands, size, size), magnitude (n, bands)) -> (n, 1)``.
    """

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
        self.vit_block = nn.Sequential(*_linears([width, projection, projection]))
        joined = 2 * projection + config.magnitude_hidden
        self.concat_block = nn.Sequential(*_linears([joined, config.head_hidden, 1]))
        self.decoder = Decoder(config) if config.decoder_width else None
        nn.init.normal_(self.cls_token, std=0.02)

    def scale_image(self, image: Tensor) -> Tensor:
        """Pixels as the network sees them: asinh(pixel / softening) a band, or unchanged."""
        if self.config.softening is None:
            return image
        softening = image.new_tensor(self.config.softening)[:, None, None]
        return torch.asinh((image / softening).clamp(-CLIP, CLIP))

    def scale_magnitude(self, magnitude: Tensor) -> Tensor:
        """Float32, centered and scaled where the config says so."""
        magnitude = magnitude.float()
        if self.config.magnitude_centre is None:
            return magnitude
        center = magnitude.new_tensor(self.config.magnitude_centre)
        scale = magnitude.new_tensor(self.config.magnitude_scale)
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
        """The mean of the encoder's patch tokens, (n, width), of raw images."""
        return self.encode(self.scale_image(image))[:, 1:].mean(dim=1)

    def forward(self, image: Tensor, magnitude: Tensor) -> Tensor:
        """Redshift (n, 1) of raw images and magnitudes."""
        scaled = self.scale_image(image)
        pooled = self.encode(scaled)[:, 1:].mean(dim=1)
        return self.redshift(scaled, pooled, magnitude)

    def redshift(self, scaled: Tensor, pooled: Tensor, magnitude: Tensor) -> Tensor:
        """(n, 1) from scaled images, the pooled tokens of `embed` and raw magnitudes.

        With a frozen encoder `pooled` may be computed once and kept between epochs.
        """
        seen = self.vit_block(self.head(self.fc_norm(pooled)))
        shapes, colors = self.inception_model(scaled, self.scale_magnitude(magnitude))
        return cast(Tensor, self.concat_block(torch.cat((seen, shapes, colors), dim=1)))

    def predict_with_features(self, image: Tensor, magnitude: Tensor) -> tuple[Tensor, Tensor]:
        """Redshift (n, 1) and features (n, sum of the config's groups), as exported."""
        scaled = self.scale_image(image)
        pooled = self.encode(scaled)[:, 1:].mean(dim=1)
        groups = [pooled] if self.config.embedding else [pooled[:, :0]]
        if self.decoder is not None:
            residual = MaskedAutoencoder(self).scoring_residual(scaled)
            groups.append(residual_statistics(residual, self.config.patch))
            groups.append(lopsided_statistics(residual, scaled))
        return self.redshift(scaled, pooled, magnitude), torch.cat(groups, dim=1)


class MaskedAutoencoder(nn.Module):
    """Pre-training and scoring around the encoder and decoder of `model` (which has a decoder).

    ``forward(image, mask_ratio, generator) -> loss``: mean squared error of the hidden patches
    in scaled pixels. Train its parameters with ``model.concat_block`` and the like left alone.
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

        They may be the ``share`` of a larger ``batch``, for which the masks are then drawn.
        """
        scaled = self.model.scale_image(image)
        masks = self.random_masks(batch or len(image), mask_ratio, generator, image.device)
        keep, hidden = (mask[share] for mask in masks)
        error = (self.reconstruct(scaled, keep) - self.patchify(scaled)) ** 2
        return (error.mean(dim=2) * hidden).sum() / hidden.sum()

    def random_masks(
        self,
        n: int,
        ratio: float,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> tuple[Tensor, Tensor]:
        """Patches to show (n, kept), int64, and a float mask (n, tokens), 1 where hidden."""
        tokens = self.model.config.tokens
        kept = min(max(round(tokens * (1 - ratio)), 1), tokens - 1)
        drawn = torch.device("cpu") if generator is None else generator.device
        order = torch.rand(n, tokens, generator=generator, device=drawn).argsort(dim=1).to(device)
        keep = order[:, :kept]
        return keep, torch.ones(n, tokens, device=device).scatter(1, keep, 0.0)

    def reconstruct(self, scaled: Tensor, keep: Tensor) -> Tensor:
        """All patches (n, tokens, patch pixels) predicted from those at `keep`."""
        tokens = self.model.encode(scaled, keep)[:, 1:]
        return cast(Tensor, self.decoder(tokens, keep))

    def patchify(self, scaled: Tensor) -> Tensor:
        """(n, tokens, bands * patch * patch), bands outermost within a patch."""
        config = self.model.config
        n, grid, patch = len(scaled), config.grid, config.patch
        split = scaled.reshape(n, config.bands, grid, patch, grid, patch)
        return split.permute(0, 2, 4, 1, 3, 5).reshape(n, config.tokens, config.patch_pixels)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """(n, bands, size, size) from (n, tokens, patch pixels)."""
        config = self.model.config
        n, grid, patch = len(patches), config.grid, config.patch
        split = patches.reshape(n, grid, grid, config.bands, patch, patch)
        return split.permute(0, 3, 1, 4, 2, 5).reshape(n, config.bands, config.size, config.size)

    def scoring_residual(self, scaled: Tensor, *, normalized: bool = True) -> Tensor:
        """Prediction minus truth (n, bands, size, size) with the fixed masks of the config.

        Every patch is predicted from others only, as a mean over the passes that hide it; in
        units of ``decoder.residual_scale`` (bands,) where `normalized`.
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
        """Set ``decoder.residual_scale`` to the median |residual| * 1.4826 a band; returns it.

        `images` (n, bands, size, size), raw; medians, so that a few anomalies do not matter.
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
    """The model's config and arrays (copies, float32), for `perseid.model.weights.save_weights`."""
    arrays = {
        name: tensor.detach().cpu().float().numpy().copy()
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    return Weights(model.config, arrays)


def from_weights(weights: Weights) -> AstroMAE:
    """A model in evaluation mode with these weights."""
    model = AstroMAE(weights.config)
    tensors = {name: torch.from_numpy(np.array(a)) for name, a in weights.arrays.items()}
    missing = model.load_state_dict(tensors, strict=False)
    left = [n for n in missing.missing_keys if not n.endswith("num_batches_tracked")]
    if left or missing.unexpected_keys:
        raise BadModelError(f"the weights and the network differ: {left + missing.unexpected_keys}")
    return model.eval()
