"""The arithmetic of the folded graph: the same function as the torch network, in fewer and larger
operations.

The algebra is exact and in float64 until the constants are stored:

- BatchNorm into the convolution before it; LayerNorm's scale and shift into the linear after it.
- The query's scale into its weights; the key's shift dropped (softmax over keys does not see it);
  the value's shift through the attention (its weights sum to 1) into the projection's bias.
- Linear layers with no activation between them multiplied: head with the first projection, the
  last layer of each of the three branches with the joined head.
- The stem's 1x1 convolution commuted with the average pool behind it and multiplied into the
  first block's 1x1 convolutions; parallel 1x1 convolutions of a block merged into one.
- The mean over tokens commuted with the last MLP's second linear.
- The convolution branch's many small groups joined to fewer block-diagonal ones.
- Positions, class token and biases added as one constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perseid.model.config import AstroMAEConfig
from perseid.model.weights import Weights
from perseid.science.fixed_order import product

LN_EPS = 1e-6
BN_EPS = 1e-5
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Affine:
    """y = weight @ x + bias; for convolutions, the weight is (out, in / groups, k, k)."""

    weight: Array
    bias: Array

    def after(self, first: Affine) -> Affine:
        """The composition: this map applied to the output of `first` (both are linear)."""
        weight = product(self.weight, first.weight)
        return Affine(weight, product(self.weight, first.bias[:, None])[:, 0] + self.bias)


class Folder:
    """Reads a weight file's arrays as float64 affine maps and folds normalizations into them."""

    def __init__(self, weights: Weights) -> None:
        self.config: AstroMAEConfig = weights.config
        self._arrays = weights.arrays

    def array(self, name: str) -> Array:
        """One array of the weights, as float64."""
        return np.asarray(self._arrays[name], np.float64)

    def linear(self, name: str) -> Affine:
        """A linear layer or convolution without any folding."""
        return Affine(self.array(f"{name}.weight"), self.array(f"{name}.bias"))

    def normed(self, norm: str, linear: Affine) -> Affine:
        """`linear` for input that is only normalized: the LayerNorm's scale and shift are folded
        in."""
        scale, shift = self.array(f"{norm}.weight"), self.array(f"{norm}.bias")
        moved = product(linear.weight, shift[:, None])[:, 0]
        return Affine(linear.weight * scale, moved + linear.bias)

    def batch_normed(self, conv: Affine, norm: str) -> Affine:
        """The convolution `conv` with the following BatchNorm folded in."""
        spread = np.sqrt(self.array(f"{norm}.running_var") + BN_EPS)
        scale = self.array(f"{norm}.weight") / spread
        shift = self.array(f"{norm}.bias") - self.array(f"{norm}.running_mean") * scale
        weight = conv.weight * scale.reshape(-1, *[1] * (conv.weight.ndim - 1))
        return Affine(weight, conv.bias * scale + shift)

    def unit(self, name: str) -> Affine:
        """Convolution and BatchNorm of an inception unit; the graph adds the ReLU."""
        return self.batch_normed(self.linear(f"{name}.conv"), f"{name}.bn")

    def patch_embedding(self) -> tuple[Array, Array]:
        """The weight (width, patch pixels), and the constant (1 + tokens, width) that is added."""
        proj = self.linear("patch_embed.proj")
        offset = self.array("pos_embed")[0].copy()
        offset[0] += self.array("cls_token")[0, 0]
        offset[1:] += proj.bias
        return proj.weight.reshape(len(proj.weight), -1), offset

    def attention(self, name: str, norm: str, heads: int) -> tuple[Affine, Affine]:
        """The queries-keys-values map for normalized input, and the projection."""
        q_bias, v_bias = self.array(f"{name}.q_bias"), self.array(f"{name}.v_bias")
        width = len(q_bias)
        bias = np.concatenate([q_bias, np.zeros(width), v_bias])
        qkv = self.normed(norm, Affine(self.array(f"{name}.qkv.weight"), bias))
        scale = (width // heads) ** -0.5
        weight, shift = qkv.weight.copy(), qkv.bias.copy()
        weight[:width] *= scale
        shift[:width] *= scale
        # Softmax over the keys does not change if the same value is added to all of them.
        shift[width : 2 * width] = 0.0
        # Attention weights sum to 1, so the values' shift comes out unchanged and can be added
        # later.
        values = Affine(np.eye(width), shift[2 * width :].copy())
        shift[2 * width :] = 0.0
        return Affine(weight, shift), self.linear(f"{name}.proj").after(values)

    def mlp(self, name: str, norm: str) -> tuple[Affine, Affine]:
        """Both linear layers; the first one is for normalized input."""
        return self.normed(norm, self.linear(f"{name}.fc1")), self.linear(f"{name}.fc2")

    def pcm(self, name: str) -> tuple[Affine, Affine]:
        """Both convolutions of the branch as (groups, in, out), for a batched product."""
        first = self.batch_normed(self.linear(f"{name}.0"), f"{name}.1")
        second = self.linear(f"{name}.3")
        groups = self.config.pcm_groups
        return (
            Affine(batched(first.weight, groups), first.bias),
            Affine(batched(second.weight, groups), second.bias),
        )

    def projection(self) -> Affine:
        """The map from the pooled, normalized tokens to the first hidden layer of the joined head's
        input."""
        head = self.normed("fc_norm", self.linear("head"))
        return self.linear("vit_block.0").after(head)

    def joined_head(self) -> tuple[Affine, Affine]:
        """The head on the concatenated last hidden layers of the three branches, and the output
        layer."""
        c = self.config
        last = [
            "vit_block.2",
            f"inception_model.vis_inception.{self.inception_linear() + 2}",
            f"inception_model.magnitude_block.{2 * (c.magnitude_layers - 1)}",
        ]
        head = self.linear("concat_block.0")
        edges = np.cumsum([0, c.projection, c.projection, c.magnitude_hidden])
        parts = [
            Affine(head.weight[:, a:b], np.zeros(len(head.bias))).after(self.linear(name))
            for name, a, b in zip(last, edges[:-1], edges[1:], strict=True)
        ]
        weight = np.concatenate([part.weight for part in parts], axis=1)
        bias = head.bias + sum(part.bias for part in parts)
        return Affine(weight, bias), self.linear("concat_block.2")

    def inception_linear(self) -> int:
        """Index of the first linear layer in ``vis_inception``."""
        return 2 + len(self.config.inception) + len(self.config.inception) // 2 + 1


def batched(weight: Array, groups: int) -> Array:
    """Weights (groups, in, out) from those of a grouped 1x1 convolution, (out, in, 1, 1)."""
    out, inputs = weight.shape[:2]
    return weight.reshape(groups, out // groups, inputs).transpose(0, 2, 1)


def merge_units(*units: Affine) -> Affine:
    """Merge parallel 1x1 convolutions on the same input into one."""
    return Affine(
        np.concatenate([u.weight for u in units]), np.concatenate([u.bias for u in units])
    )


def commuted(unit: Affine, stem: Affine) -> Affine:
    """Merge a 1x1 convolution that directly follows the stem's into one on the stem's (pooled)
    input."""
    flat = Affine(unit.weight[:, :, 0, 0], unit.bias).after(
        Affine(stem.weight[:, :, 0, 0], stem.bias)
    )
    return Affine(flat.weight[:, :, None, None], flat.bias)
