"""An AstroMAE network in torch that stands in for an onnxruntime session."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from perseid.errors import BadInputError
from perseid.model.export.exporter import signature_of
from perseid.model.signature import METADATA_KEY
from perseid.model.training.astromae import from_weights
from perseid.model.training.layers import fuse_for_inference
from perseid.model.weights import load_weights
from perseid.plaintext import option


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


class _Slot:
    """Page-locked memory for the inputs of one batch: the GPU copies from it while it computes."""

    def __init__(self, device: torch.device, stream: torch.cuda.Stream) -> None:
        self._device, self._stream = device, stream
        self._pinned: dict[str, torch.Tensor] = {}
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def send(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
        """The arrays on the device, for whatever is computed next; they may change on return."""
        self._copied.synchronize()  # until the former batch has left the memory
        sent = {}
        for name, array in feed.items():
            pinned = self._pinned.get(name)
            if pinned is None or pinned.shape != array.shape:
                self._pinned[name] = pinned = torch.empty(array.shape, pin_memory=True)
            np.copyto(pinned.numpy(), array)
            with torch.cuda.stream(self._stream):
                sent[name] = pinned.to(self._device, non_blocking=True)
        self._copied.record(self._stream)
        now = torch.cuda.current_stream(self._device)
        now.wait_event(self._copied)
        for tensor in sent.values():
            tensor.record_stream(now)  # made in another stream, so its memory is kept until then
        return sent


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
            raise BadInputError(
                f"device cuda: torch sees no GPU here; use {option('device', 'cpu')}"
            )
        if device == "cpu":
            torch.set_num_threads(threads)
        weights = load_weights(url)
        self._device, self._threads = torch.device(device), threads
        self._network = from_weights(weights)
        self._config, self._signature = weights.config, signature_of(weights.config)
        self._slots: list[_Slot] = []
        if device == "cuda":
            fuse_for_inference(self._network)
            self._network.to(self._device)
            stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            self._slots = [_Slot(self._device, stream) for _ in range(2)]
            # By default, convolutions round their factors to tf32, and the results then differ from
            # a CPU's by more than 1e-4. Algorithms are not chosen by trial: that is no faster here,
            # and the next run might choose another one with other last digits.
            torch.backends.cudnn.allow_tf32 = False
            torch.set_float32_matmul_precision("highest")

    def run(self, outputs: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs with these names, for one batch."""
        return self.begin(outputs, feed)()

    def begin(
        self, outputs: Sequence[str], feed: Mapping[str, NDArray[Any]]
    ) -> Callable[[], list[NDArray[Any]]]:
        """Begin with one batch; what is returned waits for its outputs.

        On a GPU the next batch may begin before these are waited for: it is then copied while this
        one is computed. The arrays may change as soon as this function returns.
        """
        with torch.inference_mode():
            if not self._slots:
                found = self._computed(outputs, {name: _tensor(a) for name, a in feed.items()})
                return lambda: [tensor.numpy() for tensor in found]
            slot = self._slots.pop(0)
            self._slots.append(slot)
            found = self._computed(outputs, slot.send(feed))
            told = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in found]
            for here, there in zip(told, found, strict=True):
                here.copy_(there, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()

        def wait() -> list[NDArray[Any]]:
            done.synchronize()
            return [tensor.numpy() for tensor in told]

        return wait

    def _computed(
        self, outputs: Sequence[str], given: Mapping[str, torch.Tensor]
    ) -> list[torch.Tensor]:
        image, magnitude = given["image"], given["magnitude"]
        if "features" not in outputs:
            return [self._network(image, magnitude) for _ in outputs]
        redshift, features = self._network.predict_with_features(image, magnitude)
        found = {"redshift": redshift, "features": features}
        return [found[name] for name in outputs]

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


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    """The array in place, or a copy of one that is read-only: torch needs writable memory."""
    return torch.from_numpy(np.require(array, np.float32, ["C", "W"]))
