"""The folded graph in ONNX, which workers run.

The operators were chosen by measurement with onnxruntime at a fixed micro-batch (see
``docs/reference/model.md``). Tokens are rows of a matrix, so that onnxruntime fuses products and
biases; GELU and SiLU are its fused operators; the convolution branch is one batched product per
layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from perseid.model.config import CLIP, MAGNITUDE_CLIP, AstroMAEConfig
from perseid.model.export.fold import Affine, Folder, commuted, merge_units
from perseid.model.export.folded_blocks import Blocks
from perseid.model.export.folded_residual import ResidualGraph
from perseid.model.export.graph import GraphBuilder, Range
from perseid.model.weights import Weights, inception_positions


class FoldedGraph:
    """Builds the ONNX graph of one weight file; call ``build`` only once.

    `ranges` are those of `GraphBuilder`, as measured by `perseid.model.export.quantize`.
    """

    def __init__(self, weights: Weights, ranges: Mapping[int, Range] | None = None) -> None:
        self.config: AstroMAEConfig = weights.config
        self.folder = Folder(weights)
        self.graph = GraphBuilder(ranges)
        self.blocks = Blocks(self.graph, self.folder)

    def build(self, metadata: dict[str, str]) -> Any:
        """Build the graph with inputs ``image`` and ``magnitude``, and check it."""
        c, g = self.config, self.graph
        image = g.input("image", [c.bands, c.size, c.size])
        magnitude = g.input("magnitude", [c.bands])
        scaled = self._scaled_image(image)
        patches = self._patches(scaled)
        tokens = self._tokens(patches)
        pooled = self._pooled(tokens)
        hidden = [self._seen(pooled), self._inception(scaled), self._magnitudes(magnitude)]
        first, last = self.folder.joined_head()
        joined = g.op("Relu", self._linear(g.op("Concat", *hidden, axis=1), first, "head"))
        g.output(self._linear(joined, last, "head"), "redshift", [1])
        features = [pooled] if c.embedding else []
        if c.decoder_width:
            residual = ResidualGraph(g, self.folder, self.blocks)
            features.append(residual.statistics(tokens, patches, scaled))
        if features:
            joined = g.op("Concat", *features, axis=1)
            g.output(joined, "features", [sum(c.feature_groups.values())])
        return g.model(c.name, metadata)

    def _linear(self, x: str, layer: Affine, name: str) -> str:
        return self.graph.linear(x, layer.weight, layer.bias, name=name)

    def _scaled_image(self, image: str) -> str:
        c, g = self.config, self.graph
        if c.softening is None:
            return image
        soft = np.asarray(c.softening, np.float64)[:, None, None]
        x = g.op("Mul", image, g.constant(1.0 / soft, "softening"))
        return self._asinh(g.op("Clip", x, g.constant(-CLIP), g.constant(CLIP)))

    def _asinh(self, x: str) -> str:
        """asinh as logarithm and square root, which onnxruntime vectorizes, unlike its own
        Asinh."""
        g = self.graph
        root = g.op("Sqrt", g.op("Add", g.op("Mul", x, x), g.constant(1.0)))
        size = g.op("Log", g.op("Add", g.op("Abs", x), root))
        return g.op("Mul", g.op("Sign", x), size)

    def _patches(self, scaled: str) -> str:
        """The image as patches, (n, tokens, bands * patch * patch)."""
        c, g = self.config, self.graph
        split = g.reshape(scaled, -1, c.bands, c.grid, c.patch, c.grid, c.patch)
        rows = g.op("Transpose", split, perm=[0, 2, 4, 1, 3, 5])
        return g.reshape(rows, -1, c.tokens, c.patch_pixels)

    def _tokens(self, patches: str) -> str:
        """Tokens (n, 1 + tokens, width): a row of zeros is put before the patches, then one
        constant is added."""
        c, g = self.config, self.graph
        weight, offset = self.folder.patch_embedding()
        rows = g.reshape(patches, -1, c.patch_pixels)
        x = g.reshape(g.linear(rows, weight, None, "encoder.patch"), -1, c.tokens, c.width)
        x = g.op("Pad", x, g.constant(np.array([0, 1, 0, 0, 0, 0])))
        return g.op("Add", x, g.constant(offset, "positions"))

    def _pooled(self, tokens: str) -> str:
        """Mean of the patch tokens, (n, width). It is taken before the last block's second linear
        layer, which saves work."""
        c, g = self.config, self.graph
        x, last = tokens, c.depth - 1
        for number in range(last):
            x = self.blocks.block(
                x, f"blocks.{number}", c.heads, 1 + c.tokens, pcm=c.pcm_hidden > 0
            )
        halves = self.blocks.half(
            x, f"blocks.{last}", c.heads, 1 + c.tokens, pcm=c.pcm_hidden > 0, first=1
        )
        attended, hidden = (g.op("ReduceMean", half, axes=[1], keepdims=0) for half in halves)
        _, second = self.folder.mlp(f"blocks.{last}.mlp", f"blocks.{last}.norm2")
        return g.op("Add", attended, self._linear(hidden, second, "pooled"))

    def _seen(self, pooled: str) -> str:
        """The encoder branch's last hidden layer."""
        normed = self.blocks.norm(pooled, self.config.width)
        return self.graph.op("Relu", self._linear(normed, self.folder.projection(), "seen"))

    def _magnitudes(self, magnitude: str) -> str:
        """The magnitude branch's last hidden layer."""
        c, g = self.config, self.graph
        x = magnitude
        if c.magnitude_centre is not None and c.magnitude_scale is not None:
            x = g.op("Sub", x, g.constant(np.asarray(c.magnitude_centre)))
            x = g.op("Div", x, g.constant(np.asarray(c.magnitude_scale)))
            x = g.op("Clip", x, g.constant(-MAGNITUDE_CLIP), g.constant(MAGNITUDE_CLIP))
        for number in range(c.magnitude_layers - 1):
            layer = self.folder.linear(f"inception_model.magnitude_block.{2 * number}")
            x = g.op("Relu", self._linear(x, layer, "magnitude"))
        return x

    def _inception(self, scaled: str) -> str:
        """The inception branch's last hidden layer."""
        c, g, f = self.config, self.graph, self.folder
        name = "inception_model.vis_inception"
        x = g.op("AveragePool", scaled, kernel_shape=[2, 2], strides=[2, 2])
        stem: Affine | None = f.linear(f"{name}.0")
        for number, place in enumerate(inception_positions(c)):
            x = self._inception_block(x, f"{name}.{place}", stem, wide=number < 4)
            stem = None
            if number % 2 == 1:
                x = g.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
        flat = g.reshape(x, -1, c.inception_flat)
        after = inception_positions(c)[-1] + 2
        return g.op("Relu", self._linear(flat, f.linear(f"{name}.{after}"), "inception"))

    def _inception_block(self, x: str, name: str, stem: Affine | None, *, wide: bool) -> str:
        """One inception block; `stem` is the linear convolution that must still be applied before
        it."""
        g, f = self.graph, self.folder
        names = ["branch1", "branch2.0", *(["branch3.0"] if wide else [])]
        units = [f.unit(f"{name}.{unit}") for unit in names]
        if stem is not None:
            units = [commuted(unit, stem) for unit in units]
        merged = merge_units(*units)
        parts = g.ops(
            "Split", self._conv(x, merged, relu=True), outputs=len(units), axis=1, name="branches"
        )
        branches = [parts[0], self._conv(parts[1], f.unit(f"{name}.branch2.1"), relu=True)]
        if wide:
            branches.append(self._conv(parts[2], f.unit(f"{name}.branch3.1"), relu=True))
        whole = x if stem is None else self._conv(x, stem, relu=False)
        pooled = g.op("MaxPool", whole, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
        branches.append(self._conv(pooled, f.unit(f"{name}.branch4.1"), relu=True))
        return g.op("Concat", *branches, axis=1)

    def _conv(self, x: str, layer: Affine, *, relu: bool) -> str:
        g = self.graph
        side = layer.weight.shape[-1]
        value = g.op(
            "Conv",
            x,
            g.constant(layer.weight, "conv.weight"),
            g.constant(layer.bias, "conv.bias"),
            kernel_shape=[side, side],
            pads=[side // 2] * 4,
        )
        return g.op("Relu", value) if relu else value
