"""The masked autoencoder's decoder and the residual statistics in the folded graph.

The same computation in torch is `perseid.model.training.residuals` with
`MaskedAutoencoder.scoring_residual`.
"""

from __future__ import annotations

import numpy as np

from perseid.model.config import (
    CENTROID_FLOOR,
    CENTROID_LIGHT,
    CENTROID_SIGMA,
    DIPOLE_SCALE,
    DIPOLE_SIGMA,
    FLOOR,
    THIRD_CLIP,
    WORST_PIXELS,
    moment_weights,
    scoring_masks,
)
from perseid.model.export.fold import Affine, Array, Folder
from perseid.model.export.folded_blocks import Blocks
from perseid.model.export.graph import GraphBuilder


class ResidualGraph:
    """Adds the passes with fixed masks; each pass hides some patches and predicts them from the
    others."""

    def __init__(self, graph: GraphBuilder, folder: Folder, blocks: Blocks) -> None:
        self.graph = graph
        self.folder = folder
        self.config = folder.config
        self.blocks = blocks
        self.hidden = scoring_masks(folder.config)
        self.passes = len(self.hidden)
        self.shown = int((~self.hidden[0]).sum())

    def statistics(self, tokens: str, patches: str, scaled: str) -> str:
        """The residual statistics (n, residuals) from the encoder's input tokens, the scaled
        patches and the image."""
        residual = self._residual(tokens, patches)
        parts = [self._statistics(residual), self._dipoles(residual), self._shifts(scaled)]
        return self.graph.op("Concat", *parts, axis=1)

    def _residual(self, tokens: str, patches: str) -> str:
        """The residual image (n, bands, size, size), in units of the usual spread."""
        c, g = self.config, self.graph
        predicted = self._predicted(self._decoded(self._encoded(tokens)))
        scale = np.repeat(1.0 / self.folder.array("decoder.residual_scale"), c.patch**2)
        residual = g.op("Sub", predicted, g.op("Mul", patches, g.constant(scale)))
        split = g.reshape(residual, -1, c.grid, c.grid, c.bands, c.patch, c.patch)
        image = g.op("Transpose", split, perm=[0, 3, 1, 4, 2, 5])
        return g.reshape(image, -1, c.bands, c.size, c.size)

    def _encoded(self, tokens: str) -> str:
        """The encoder's output for the shown patches of every pass, (n * passes, 1 + shown,
        width)."""
        c, g = self.config, self.graph
        rows = [np.concatenate([[0], 1 + np.flatnonzero(~mask)]) for mask in self.hidden]
        x = g.op("Gather", tokens, g.constant(np.concatenate(rows)), axis=1)
        x = g.reshape(x, -1, 1 + self.shown, c.width)
        for number in range(c.depth):
            first = 1 if number == c.depth - 1 else 0
            x = self.blocks.block(
                x,
                f"blocks.{number}",
                c.heads,
                1 + self.shown,
                pcm=c.pcm_hidden > 0,
                first=first,
            )
        return x

    def _decoded(self, x: str) -> str:
        """The decoder's output, (n * passes, hidden, decoder width); in its input the shown tokens
        come first."""
        c, g, f = self.config, self.graph, self.folder
        embed = f.normed("decoder.norm_in", f.linear("decoder.embed"))
        rows = g.reshape(self.blocks.norm(x, c.width), -1, c.width)
        rows = g.linear(rows, embed.weight, None, "decoder.embed")
        x = g.reshape(rows, -1, self.passes, self.shown, c.decoder_width)
        x = g.op("Pad", x, g.constant(np.array([0, 0, 0, 0, 0, 0, c.tokens - self.shown, 0])))
        x = g.op("Add", x, g.constant(self._offset(embed.bias), "decoder.positions"))
        x = g.reshape(x, -1, c.tokens, c.decoder_width)
        for number in range(c.decoder_depth):
            last = number == c.decoder_depth - 1
            x = self.blocks.block(
                x,
                f"decoder.blocks.{number}",
                c.decoder_heads,
                c.tokens,
                pcm=False,
                first=self.shown if last else 0,
            )
        return x

    def _offset(self, bias: Array) -> Array:
        """Positions plus the embedding's bias (shown tokens) or the mask token (hidden ones),
        (passes, tokens, width)."""
        positions = self.folder.array("decoder.positions")[0]
        token = self.folder.array("decoder.mask_token")[0, 0]
        return np.stack(
            [
                np.concatenate([positions[~mask] + bias, positions[mask] + token])
                for mask in self.hidden
            ]
        )

    def _predicted(self, x: str) -> str:
        """Predictions divided by the usual spread, (n, tokens, patch pixels): the mean over a
        patch's predictions."""
        c, g, f = self.config, self.graph, self.folder
        pixels = f.normed("decoder.norm", f.linear("decoder.pixels"))
        scale = np.repeat(1.0 / f.array("decoder.residual_scale"), c.patch**2)
        pixels = Affine(pixels.weight * scale[:, None], pixels.bias * scale)
        rows = g.reshape(self.blocks.norm(x, c.decoder_width), -1, c.decoder_width)
        rows = g.linear(rows, pixels.weight, pixels.bias, "decoder.pixels")
        predictions = g.reshape(rows, -1, self.passes * (c.tokens - self.shown), c.patch_pixels)
        patch_of = np.concatenate([np.flatnonzero(mask) for mask in self.hidden])
        order = np.argsort(patch_of, kind="stable")
        x = g.op("Gather", predictions, g.constant(order), axis=1)
        times = len(order) // c.tokens
        if times == 1:
            return x
        x = g.reshape(x, -1, c.tokens, times, c.patch_pixels)
        return g.op("ReduceMean", x, axes=[2], keepdims=0)

    def _statistics(self, residual: str) -> str:
        """The statistics, in the same steps as
        `perseid.model.training.residuals.residual_statistics`."""
        c, g = self.config, self.graph
        absolute = g.op("Abs", residual)
        square = g.op("Mul", residual, residual)
        flat = g.reshape(absolute, -1, c.bands, c.size**2)
        worst, _ = g.ops("TopK", flat, g.constant(np.array([WORST_PIXELS])), outputs=2, axis=2)
        band = self._reduce("Mean", square, 2, 3)
        patches = self._reduce(
            "Mean", g.reshape(square, -1, c.bands, c.grid, c.patch, c.grid, c.patch), 1, 3, 5
        )
        wide = [
            g.reshape(self._reduce("Mean", square, 1, 2, 3), -1, 1),
            g.reshape(self._reduce("Max", patches, 1, 2), -1, 1),
            g.reshape(self._reduce("Max", band, 1), -1, 1),
            *(self._line(residual, axis) for axis in (3, 2)),
        ]
        signed = g.op("Mul", self._reduce("Mean", residual, 2, 3), g.constant(float(c.size)))
        logs = [band, self._reduce("Max", worst, 2), self._reduce("Mean", worst, 2)]
        return g.op(
            "Concat",
            *(self._log(value) for value in logs),
            g.op("Asinh", signed),
            self._log(g.op("Concat", *wide, axis=1)),
            g.op("Asinh", self._third(residual)),
            axis=1,
        )

    def _line(self, residual: str, axis: int) -> str:
        """|mean| of the worst row or column over its noise, (n, 1)."""
        g = self.graph
        lines = g.op("Abs", self._reduce("Mean", residual, axis))
        worst = g.reshape(self._reduce("Max", lines, 1, 2), -1, 1)
        return g.op("Mul", worst, g.constant(float(self.config.size) ** 0.5))

    def _third(self, residual: str) -> str:
        g = self.graph
        x = g.op("Clip", residual, g.constant(-THIRD_CLIP), g.constant(THIRD_CLIP))
        cube = g.op("Mul", g.op("Mul", x, x), x)
        return g.reshape(self._reduce("Mean", cube, 1, 2, 3), -1, 1)

    def _dipoles(self, residual: str) -> str:
        """First moments (n, bands); see `training.residuals.lopsided_statistics`, also for
        `_shifts`."""
        g = self.graph
        window = moment_weights(self.config.size, DIPOLE_SIGMA)
        x, y = (
            self._reduce("Mean", g.op("Mul", residual, g.constant(window[axis])), 2, 3)
            for axis in (1, 2)
        )
        return g.op("Asinh", g.op("Mul", self._length(x, y), g.constant(DIPOLE_SCALE)))

    def _shifts(self, scaled: str) -> str:
        g = self.graph
        window = moment_weights(self.config.size, CENTROID_SIGMA)
        light = g.op("Mul", g.op("Abs", scaled), g.constant(window[0]))
        faint = g.constant(CENTROID_LIGHT)
        band = g.op("Add", self._reduce("Mean", light, 2, 3), faint)
        whole = g.op("Add", g.reshape(self._reduce("Mean", light, 1, 2, 3), -1, 1), faint)
        shift = []
        for axis in (1, 2):
            moment = g.op("Mul", scaled, g.constant(window[axis]))
            center = g.reshape(self._reduce("Mean", moment, 1, 2, 3), -1, 1)
            own = g.op("Div", self._reduce("Mean", moment, 2, 3), band)
            shift.append(g.op("Sub", own, g.op("Div", center, whole)))
        return self._log(self._length(*shift), CENTROID_FLOOR)

    def _length(self, x: str, y: str) -> str:
        g = self.graph
        return g.op("Sqrt", g.op("Add", g.op("Mul", x, x), g.op("Mul", y, y)))

    def _log(self, value: str, floor: float = FLOOR) -> str:
        g = self.graph
        return g.op("Log", g.op("Add", value, g.constant(floor)))

    def _reduce(self, kind: str, value: str, *axes: int) -> str:
        """Reduce over some axes. Take means only over long axes: over short ones onnxruntime's
        order of additions differs from row to row, and a row's bits must not depend on its
        position."""
        return self.graph.op(f"Reduce{kind}", value, axes=list(axes), keepdims=0)
