"""Memory allocated by the network's operations, computed from its configuration."""

from __future__ import annotations

from dataclasses import replace

from perseid.model.config import PUBLISHED, AstroMAEConfig

PUBLISHED_BYTES_PER_ROW = round(71_461.28e6 / 5113)
"""Measured by torch's profiler on the published network: 71,461.28 MB for 5,113 objects (batch
512)."""


def allocated_bytes_per_row(config: AstroMAEConfig) -> int:
    """Bytes that the network's operators allocate for one object (a sum, not a peak).

    For the published sizes this is the value that torch's profiler reports for the existing system.
    Its sum counts nested operators several times; for other sizes each operator's output is counted
    once.
    """
    if replace(config, name=PUBLISHED.name) == PUBLISHED:
        return PUBLISHED_BYTES_PER_ROW
    shown = config.tokens // 2 if config.scoring == "checkerboards" else config.tokens // 4
    passes = 2 if config.scoring == "checkerboards" else 4
    floats = _encoder(config, config.tokens) + _inception(config)
    floats += 2 * config.magnitude_layers * config.magnitude_hidden
    floats += 4 * config.projection + 2 * config.head_hidden + 1
    if config.decoder_width:
        floats += passes * (_encoder(config, shown) + _decoder(config))
        floats += 15 * config.tokens * config.patch_pixels
    return 4 * floats


def _block(tokens: int, width: int, heads: int, hidden: int) -> int:
    attention = tokens * (3 * width + 3 * width) + 2 * heads * tokens * tokens + 2 * tokens * width
    mlp = 2 * tokens * hidden + tokens * width
    return 2 * tokens * width + attention + mlp + 2 * tokens * width


def _encoder(c: AstroMAEConfig, shown: int) -> int:
    branch = shown * (3 * c.pcm_hidden + 3 * c.width) if c.pcm_hidden else 0
    block = _block(1 + shown, c.width, c.heads, c.mlp_hidden) + branch
    return c.bands * c.size**2 + 3 * (1 + shown) * c.width + c.depth * block


def _decoder(c: AstroMAEConfig) -> int:
    block = _block(c.tokens, c.decoder_width, c.decoder_heads, 4 * c.decoder_width)
    return c.tokens * (3 * c.decoder_width + c.patch_pixels) + c.decoder_depth * block


def _inception(c: AstroMAEConfig) -> int:
    side, channels = c.size // 2, c.inception_stem
    floats = channels * (c.size**2 + side**2)
    for number, out in enumerate(c.inception):
        branches, units = (4, 6) if number < 4 else (3, 4)
        floats += side**2 * (3 * units * out + channels + branches * out)
        channels = branches * out
        if number % 2 == 1:
            side //= 2
            floats += channels * side**2
    return floats
