"""A model's weights in a neutral file: one ``.npz`` with the arrays and the configuration as JSON.

Neither reading nor writing needs torch, and nothing in the file can be executed. Names and
shapes are checked against the config: if they do not fit, the error says where.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadModelError
from perseid.jsontext import parse_json
from perseid.model.config import AstroMAEConfig
from perseid.storage import Storage

CONFIG_MEMBER = "perseid.config"
Arrays = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Weights:
    """A configuration and its arrays by parameter name; raises `BadModelError` if they do not
    fit."""

    config: AstroMAEConfig
    arrays: Arrays
    """Arrays in float32, for every name of `expected_shapes` and no others."""

    def __post_init__(self) -> None:
        problems = misfits(self.config, {k: v.shape for k, v in self.arrays.items()})
        if problems:
            raise BadModelError(
                f"the weights do not fit model {self.config.name!r}: "
                + "; ".join(problems[:8])
                + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
            )

    def parameters(self) -> int:
        """Number of trainable or fixed parameters, without running statistics and other buffers."""
        return sum(a.size for name, a in self.arrays.items() if not _is_buffer(name))


def save_weights(weights: Weights, url: str | Path) -> None:
    """Write the weights to a path or URL."""
    buffer = io.BytesIO()
    text = np.frombuffer(weights.config.to_json().encode(), np.uint8)
    members = {name: np.asarray(a, np.float32) for name, a in sorted(weights.arrays.items())}
    np.savez(buffer, allow_pickle=False, **{CONFIG_MEMBER: text}, **members)
    store, name = Storage.holding(url)
    store.put(name, buffer.getvalue())


def load_weights(url: str | Path) -> Weights:
    """Read the weight file at a path or URL; raises `BadModelError` if it is not one or does not
    fit its configuration."""
    store, name = Storage.holding(url)
    data = store.get(name)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            members = {key: archive[key] for key in archive.files}
        config = parse_json(members.pop(CONFIG_MEMBER).tobytes())
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise BadModelError(
            f"{store.where(name)} is not a weight file: give one that perseid model import or "
            "perseid train made"
        ) from error
    return Weights(AstroMAEConfig.from_dict(config), members)


def misfits(config: AstroMAEConfig, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """One phrase for every array name that is missing, unknown or has another shape."""
    expected = expected_shapes(config)
    missing = [f"{name} is missing" for name in expected if name not in shapes]
    unknown = [f"{name} is unknown" for name in shapes if name not in expected]
    other = [
        f"{name} is {shapes[name]}, not {shape}"
        for name, shape in expected.items()
        if name in shapes and tuple(shapes[name]) != shape
    ]
    return missing + unknown + other


def expected_shapes(config: AstroMAEConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter and buffer of a network with this configuration, by name."""
    c = config
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, c.width),
        "pos_embed": (1, 1 + c.tokens, c.width),
        "patch_embed.proj.weight": (c.width, c.bands, c.patch, c.patch),
        "patch_embed.proj.bias": (c.width,),
    }
    for number in range(c.depth):
        shapes |= _block(f"blocks.{number}", c.width, c.mlp_hidden)
        if c.pcm_hidden:
            shapes |= _pcm(f"blocks.{number}.PCM", c)
    shapes |= _norm("fc_norm", c.width) | _linear("head", c.width, c.width)
    shapes |= _chain("vit_block", [c.width, c.projection, c.projection])
    shapes |= _inception("inception_model", c)
    hidden = [c.magnitude_hidden] * c.magnitude_layers
    shapes |= _chain("inception_model.magnitude_block", [c.bands, *hidden])
    joined = 2 * c.projection + c.magnitude_hidden
    shapes |= _chain("concat_block", [joined, c.head_hidden, 1])
    return shapes | (_decoder(c) if c.decoder_width else {})


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _batch_norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    running = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
    return _norm(name, width) | running


def _chain(name: str, widths: list[int], first: int = 0) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(len(widths) - 1):
        shapes |= _linear(f"{name}.{first + 2 * number}", widths[number], widths[number + 1])
    return shapes


def _block(name: str, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    return {
        **_norm(f"{name}.norm1", width),
        f"{name}.attn.qkv.weight": (3 * width, width),
        f"{name}.attn.q_bias": (width,),
        f"{name}.attn.v_bias": (width,),
        **_linear(f"{name}.attn.proj", width, width),
        **_norm(f"{name}.norm2", width),
        **_linear(f"{name}.mlp.fc1", width, hidden),
        **_linear(f"{name}.mlp.fc2", hidden, width),
    }


def _pcm(name: str, c: AstroMAEConfig) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.0.weight": (c.pcm_hidden, c.width // c.pcm_groups, 1, 1),
        f"{name}.0.bias": (c.pcm_hidden,),
        **_batch_norm(f"{name}.1", c.pcm_hidden),
        f"{name}.3.weight": (c.width, c.pcm_hidden // c.pcm_groups, 1, 1),
        f"{name}.3.bias": (c.width,),
    }


def _unit(name: str, channels: int, out: int, kernel: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.conv.weight": (out, channels, kernel, kernel),
        f"{name}.conv.bias": (out,),
        **_batch_norm(f"{name}.bn", out),
    }


def inception_positions(config: AstroMAEConfig) -> list[int]:
    """Indices of the five inception blocks in ``vis_inception``; there are pooling layers between
    them."""
    return [2 + number + number // 2 for number in range(len(config.inception))]


def _inception(name: str, c: AstroMAEConfig) -> dict[str, tuple[int, ...]]:
    stem = {"weight": (c.inception_stem, c.bands, 1, 1), "bias": (c.inception_stem,)}
    shapes: dict[str, tuple[int, ...]] = {
        f"{name}.{place}.{kind}": shape
        for place in ("conv2d_init", "vis_inception.0")
        for kind, shape in stem.items()
    }
    channels = c.inception_stem
    for number, (place, out) in enumerate(zip(inception_positions(c), c.inception, strict=True)):
        block = f"{name}.vis_inception.{place}"
        shapes |= _unit(f"{block}.branch1", channels, out, 1)
        for branch, kernel in (("branch2", 3), ("branch3", 5)):
            shapes |= _unit(f"{block}.{branch}.0", channels, out, 1)
            shapes |= _unit(f"{block}.{branch}.1", out, out, kernel)
        shapes |= _unit(f"{block}.branch4.1", channels, out, 1)
        channels = 4 * out if number < 4 else 3 * out
    after = inception_positions(c)[-1] + 2
    widths = [c.inception_flat, c.projection, c.projection]
    return shapes | _chain(f"{name}.vis_inception", widths, first=after)


def _decoder(c: AstroMAEConfig) -> dict[str, tuple[int, ...]]:
    width = c.decoder_width
    shapes: dict[str, tuple[int, ...]] = {
        **_norm("decoder.norm_in", c.width),
        **_linear("decoder.embed", c.width, width),
        "decoder.mask_token": (1, 1, width),
        "decoder.positions": (1, c.tokens, width),
        "decoder.residual_scale": (c.bands,),
        **_norm("decoder.norm", width),
        **_linear("decoder.pixels", width, c.patch_pixels),
    }
    for number in range(c.decoder_depth):
        shapes |= _block(f"decoder.blocks.{number}", width, 4 * width)
    return shapes


def _is_buffer(name: str) -> bool:
    """Whether the name is that of a buffer; also true for the second name of the stem's
    convolution, so that it is counted once."""
    last = name.rpartition(".")[2]
    twice = name.startswith("inception_model.vis_inception.0.")
    return twice or last in ("running_mean", "running_var", "positions", "residual_scale")
