"""Transformer blocks of the folded graph, for the encoder and the decoder."""

from __future__ import annotations

import numpy as np

from perseid.model.export.fold import LN_EPS, Affine, Array, Folder
from perseid.model.export.graph import MICROSOFT, GraphBuilder

PCM_INPUTS = 16
"""Groups of the convolution branch are joined until each takes this many channels, if possible."""


class Blocks:
    """Adds transformer blocks to a graph; token values are (n, tokens, width)."""

    def __init__(self, graph: GraphBuilder, folder: Folder) -> None:
        self.graph = graph
        self.folder = folder
        self._ones: dict[int, tuple[str, str]] = {}

    def norm(self, x: str, width: int) -> str:
        """Normalize over the last axis, without scale and shift, which are folded into other
        layers."""
        g = self.graph
        if width not in self._ones:
            self._ones[width] = g.constant(np.ones(width)), g.constant(np.zeros(width))
        return g.op("LayerNormalization", x, *self._ones[width], axis=-1, epsilon=LN_EPS)

    def block(
        self, x: str, name: str, heads: int, tokens: int, *, pcm: bool, first: int = 0
    ) -> str:
        """A whole block; tokens before index `first` are left out of the result."""
        attended, hidden = self.half(x, name, heads, tokens, pcm=pcm, first=first)
        _, second = self.folder.mlp(f"{name}.mlp", f"{name}.norm2")
        added = self._rows(hidden, second.weight, second.bias, name, tokens - first)
        return self.graph.op("Add", attended, added)

    def half(
        self, x: str, name: str, heads: int, tokens: int, *, pcm: bool, first: int = 0
    ) -> tuple[str, str]:
        """The tokens after attention and convolution branch, and the hidden layer of the MLP."""
        g, f = self.graph, self.folder
        qkv, proj = f.attention(f"{name}.attn", f"{name}.norm1", heads)
        width = len(proj.bias)
        mixed = self._attention(self.norm(x, width), qkv, name, heads, tokens)
        if first:
            x, mixed = self._from(x, first), self._from(mixed, first)
        left = tokens - first
        constant = np.broadcast_to(proj.bias, (left, width)).copy()
        attended = g.op("Add", x, self._rows(mixed, proj.weight, None, name, left))
        if pcm:
            branch, bias = self._branch(x, name, left, masked=first == 0)
            attended = g.op("Add", attended, branch)
            constant += bias
        attended = g.op("Add", attended, g.constant(constant, f"{name}.constant"))
        inner, _ = f.mlp(f"{name}.mlp", f"{name}.norm2")
        hidden = g.linear(self._flat(self.norm(attended, width), width), inner.weight, None, name)
        hidden = g.op("BiasGelu", hidden, g.constant(inner.bias), domain=MICROSOFT)
        return attended, g.reshape(hidden, -1, left, len(inner.bias))

    def _attention(self, x: str, qkv: Affine, name: str, heads: int, tokens: int) -> str:
        g = self.graph
        width = qkv.weight.shape[1]
        rows = self._flat(x, width)
        # Three products take as long as a joint one, which would have to be split afterwards. Keys
        # and values have no bias: the folding has moved it to where it costs nothing.
        parts = zip(np.split(qkv.weight, 3), (qkv.bias[:width], None, None), strict=True)
        q, k, v = (g.reshape(g.linear(rows, *part, name), -1, tokens, width) for part in parts)
        # The scale is part of the queries' weights.
        return g.op("MultiHeadAttention", q, k, v, domain=MICROSOFT, num_heads=heads, scale=1.0)

    def _branch(self, x: str, name: str, tokens: int, *, masked: bool) -> tuple[str, Array]:
        """The convolution branch without its last bias, and that bias for each token.

        `masked` says that the first token is the class token, which has no convolution branch.
        """
        g = self.graph
        c = self.folder.config
        groups = joined_groups(c.pcm_groups, c.width)
        first, second = self.folder.pcm(f"{name}.PCM")
        parts = g.op("Transpose", g.reshape(x, -1, groups, c.width // groups), perm=[1, 0, 2])
        hidden = g.op("MatMul", parts, self._joined(first.weight, groups, f"{name}.up"))
        hidden = g.op("Add", hidden, g.constant(first.bias.reshape(groups, 1, -1)))
        hidden = g.op("QuickGelu", hidden, domain=MICROSOFT, alpha=1.0)
        out = g.op("MatMul", hidden, self._joined(second.weight, groups, f"{name}.down"))
        out = g.reshape(g.op("Transpose", out, perm=[1, 0, 2]), -1, tokens, c.width)
        mask = np.ones((tokens, 1))
        if masked:
            mask[0] = 0.0
            out = g.op("Mul", out, g.constant(mask, "patches"))
        return out, mask * second.bias

    def _joined(self, weight: Array, groups: int, name: str) -> str:
        """Join smaller groups into fewer block-diagonal ones, (groups, in, out).

        The zeros are not stored in the file; onnxruntime computes the joined weights once, when it
        loads the model.
        """
        g = self.graph
        had, inputs, out = weight.shape
        join = had // groups
        compact = g.constant(weight.reshape(groups, join, inputs, 1, out), name)
        diagonal = g.constant(np.eye(join).reshape(1, join, 1, join, 1), "diagonal")
        return g.reshape(g.op("Mul", compact, diagonal), groups, join * inputs, join * out)

    def _from(self, x: str, first: int) -> str:
        g = self.graph
        start, end, axis = (g.constant(np.array([v])) for v in (first, 2**31 - 1, 1))
        return g.op("Slice", x, start, end, axis)

    def _flat(self, x: str, width: int) -> str:
        return self.graph.reshape(x, -1, width)

    def _rows(self, x: str, weight: Array, bias: Array | None, name: str, tokens: int) -> str:
        out, inputs = weight.shape
        rows = self.graph.linear(self._flat(x, inputs), weight, bias, name)
        return self.graph.reshape(rows, -1, tokens, out)


def joined_groups(groups: int, width: int) -> int:
    """Number of block-diagonal groups after joining, each with at least 16 inputs if possible."""
    fewer = [g for g in range(1, groups + 1) if groups % g == 0 and width // g >= PCM_INPUTS]
    return max(fewer, default=1)
