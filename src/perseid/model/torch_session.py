"""An AstroMAE network in torch that stands in for an onnxruntime session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from perseid.errors import BadInputError
from perseid.model.export.exporter import signature_of
from perseid.model.signature import METADATA_KEY
from perseid.model.training.astromae import from_weights
from perseid.model.weights import load_weights


@dataclass(frozen=True)
class _Port:
    """An input or output, described as onnxruntime does."""

    name: str
    shape: Sequence[int | str]
    type: str = "tensor(float)"


@dataclass(frozen=True)
class _Options:
    intra_op_num_threads: int


@dataclass(frozen=True)
class _Meta:
    custom_metadata_map: Mapping[str, str]


class TorchSession:
    """The part of a session's interface that `ModelRuntime` uses, computed by torch in float32.

    Parameters
    ----------
    url
        Path or URL of the weight file.
    device
        ``cpu`` or ``cuda``.
    threads
        Number of CPU threads.

    Raises
    ------
    BadInputError
        The device is ``cuda``, but torch sees no GPU.
    BadModelError
        The file does not hold weights of an AstroMAE.
    """

    def __init__(self, url: str, device: str, threads: int) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise BadInputError("device cuda: torch sees no GPU here; use --device cpu")
        if device == "cpu":
            torch.set_num_threads(threads)
        weights = load_weights(url)
        self._device, self._threads = torch.device(device), threads
        self._network = from_weights(weights).to(self._device)
        self._config, self._signature = weights.config, signature_of(weights.config)
        # By default convolutions round their factors to tf32, which is not within 1e-4 of a CPU.
        torch.backends.cudnn.allow_tf32 = False

    def run(self, outputs: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs with these names, for one batch."""
        with torch.inference_mode():
            image, magnitude = (self._tensor(feed[name]) for name in ("image", "magnitude"))
            if "features" in outputs:
                redshift, features = self._network.predict_with_features(image, magnitude)
            else:
                redshift, features = self._network(image, magnitude), None
            found = {"redshift": redshift, "features": features}
            return [found[name].cpu().numpy() for name in outputs]  # type: ignore[union-attr]

    def get_inputs(self) -> list[_Port]:
        """The inputs: image and magnitude."""
        c = self._config
        return [
            _Port("image", ("n", c.bands, c.size, c.size)),
            _Port("magnitude", ("n", c.bands)),
        ]

    def get_outputs(self) -> list[_Port]:
        """The outputs: redshift, and features if the network has them."""
        width = sum(self._config.feature_groups.values())
        features = [_Port("features", ("n", width))] if width else []
        return [_Port("redshift", ("n", 1)), *features]

    def get_modelmeta(self) -> _Meta:
        """The signature that the exported model would have."""
        return _Meta({METADATA_KEY: self._signature.to_json()})

    def get_session_options(self) -> _Options:
        """The number of threads."""
        return _Options(self._threads)

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        """The array on the device. On a CPU it is used in place, unless it is read-only: torch
        needs writable memory."""
        whole = np.require(array, np.float32, ["C", "W"])
        return torch.from_numpy(whole).to(self._device, non_blocking=True)
