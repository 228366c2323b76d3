"""The layers of AstroMAE in PyTorch; parameters have the names of the published checkpoints.

"pcm" ViTAE blocks (Zhang et al. 2022, arXiv:2202.10108), the decoder of MAE (He et al. 2022,
arXiv:2111.06377), and the inception branch of Henghes et al. 2022 (MNRAS 512, 1696).
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from perseid.model.config import AstroMAEConfig, sincos_positions

EPS = 1e-6


class Attention(nn.Module):
    """Self-attention with biases only for queries and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (n, tokens, width); the shape stays the same."""
        n, tokens, width = x.shape
        bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias)
        q, k, v = qkv.reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q * (width // self.heads) ** -0.5) @ k.transpose(-2, -1)
        mixed = (weights.softmax(dim=-1) @ v).transpose(1, 2).reshape(n, tokens, width)
        return cast(Tensor, self.proj(mixed))


class Mlp(nn.Module):
    """Linear layer, GELU, linear layer."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (n, tokens, width); the shape stays the same."""
        return cast(Tensor, self.fc2(F.gelu(self.fc1(x))))


class TransformerBlock(nn.Module):
    """Attention, in parallel with the convolution branch on the patch tokens, followed by the MLP.

    All convolutions have kernel size 1, so the branch treats each token separately, and any subset
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
        self.PCM: nn.Module | None = None
        if pcm_hidden:
            self.PCM = nn.Sequential(
                nn.Conv2d(width, pcm_hidden, 1, groups=pcm_groups),
                nn.BatchNorm2d(pcm_hidden),
                nn.SiLU(inplace=True),
                nn.Conv2d(pcm_hidden, width, 1, groups=pcm_groups),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (n, 1 + patches, width), the class token first; the shape stays the same."""
        attended = x + self.attn(self.norm1(x))
        if self.PCM is not None:
            patches = x[:, 1:].transpose(1, 2).unsqueeze(-1)
            local = self.PCM(patches).squeeze(-1).transpose(1, 2)
            attended = torch.cat((attended[:, :1], attended[:, 1:] + local), dim=1)
        return cast(Tensor, attended + self.mlp(self.norm2(attended)))


class PatchEmbed(nn.Module):
    """Turns patches into tokens: (n, bands, size, size) to (n, tokens, width)."""

    def __init__(self, bands: int, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(bands, width, patch, stride=patch)

    def forward(self, image: Tensor) -> Tensor:
        """Apply the layer to (n, tokens, width); the shape stays the same."""
        return cast(Tensor, self.proj(image).flatten(2).transpose(1, 2))


class ConvUnit(nn.Module):
    """Convolution, BatchNorm and ReLU."""

    def __init__(self, channels: int, out: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2)
        self.bn: nn.Module = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, h, w) to (n, out, h, w)."""
        return F.relu(self.bn(self.conv(x)))


class InceptionBlock(nn.Module):
    """Four branches, concatenated. If `wide` is False, the 5x5 branch is unused, as in the
    published network.

    The unused branch still has its parameters, because the checkpoints contain them.
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
        """Map (n, channels, h, w) to (n, 4 or 3 times out, h, w)."""
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
        layers += linears([config.inception_flat, config.projection, config.projection])
        self.vis_inception = nn.Sequential(*layers)
        hidden = [config.magnitude_hidden] * config.magnitude_layers
        self.magnitude_block = nn.Sequential(*linears([config.bands, *hidden]))

    def forward(self, image: Tensor, magnitude: Tensor) -> tuple[Tensor, Tensor]:
        """Image features (n, projection) and magnitude features (n, magnitude hidden)."""
        return self.vis_inception(image), self.magnitude_block(magnitude)


def linears(widths: list[int]) -> list[nn.Module]:
    """Linear layers from width to width, with ReLU between them."""
    layers: list[nn.Module] = []
    for number in range(len(widths) - 1):
        layers += [nn.ReLU()] if number else []
        layers.append(nn.Linear(widths[number], widths[number + 1]))
    return layers


class GroupedProducts(nn.Module):
    """The convolution branch of a `TransformerBlock` whose norm is folded, as matrix products.

    One batched product computes all groups of a convolution. cuDNN computes one group after the
    other, which took a third of the network's time on an H100; so computed they take an eighth.
    """

    def __init__(self, branch: nn.Sequential) -> None:
        super().__init__()
        first, last = cast(nn.Conv2d, branch[0]), cast(nn.Conv2d, branch[-1])
        self.groups = first.groups
        self.weights = nn.ParameterList(self._by_group(conv.weight) for conv in (first, last))
        self.biases = nn.ParameterList(
            self._by_group(cast(Tensor, conv.bias)[:, None]) for conv in (first, last)
        )

    def _by_group(self, rows: Tensor) -> nn.Parameter:
        """From (out, in, ...) of a convolution to (groups, in, out of a group)."""
        split = rows.detach().reshape(self.groups, rows.shape[0] // self.groups, -1)
        return nn.Parameter(split.transpose(1, 2).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """Patch tokens (n, width, patches, 1), as the convolutions take them; the shape stays the
        same."""
        n, width, patches, _ = x.shape
        tokens = x.squeeze(-1).transpose(1, 2).reshape(n * patches, self.groups, -1).transpose(0, 1)
        hidden = F.silu(torch.baddbmm(self.biases[0], tokens, self.weights[0]), inplace=True)
        out = torch.baddbmm(self.biases[1], hidden, self.weights[1])
        return out.transpose(0, 1).reshape(n, patches, width).transpose(1, 2).unsqueeze(-1)


def fuse_for_inference(network: nn.Module) -> None:
    """Make batch norms part of the convolutions before them, and grouped convolutions batched
    products, for a network that is not trained any more: on a GPU half again as fast."""
    for module in network.modules():
        if isinstance(module, ConvUnit):
            module.conv = fuse_conv_bn_eval(module.conv, module.bn)  # type: ignore[arg-type]
            module.bn = nn.Identity()
        elif isinstance(module, TransformerBlock) and module.PCM is not None:
            branch = cast(nn.Sequential, module.PCM)
            branch[0] = fuse_conv_bn_eval(branch[0], branch[1])  # type: ignore[arg-type,type-var]
            module.PCM = GroupedProducts(branch)


class Decoder(nn.Module):
    """Predicts hidden patches from the encoder's tokens of the visible patches."""

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
        """All patches (n, tokens, patch pixels), from tokens (n, kept, width) at positions
        `keep`."""
        n, kept, _ = visible.shape
        positions = cast(Tensor, self.positions).expand(n, -1, -1)
        embedded = self.embed(self.norm_in(visible))
        index = keep[:, :, None].expand(n, kept, embedded.shape[2])
        tokens = self.mask_token.expand_as(positions)
        # Under autocast the embedded tokens have a different type than the parameter.
        x = tokens.scatter(1, index, embedded.to(tokens.dtype)) + positions
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.pixels(self.norm(x)))
