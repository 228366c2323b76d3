"""The runtime that workers use: numpy and onnxruntime, no torch.

Every call computes micro-batches of one fixed size, the last one padded, so a row's prediction is
the same bits whatever rows stand beside it and wherever a partition begins.
"""

from __future__ import annotations

import contextlib
import ctypes
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadInputError, BadModelError
from perseid.model.files import DEFAULT, ModelFiles, on_disk
from perseid.model.identity import ModelIdentity, identity_of, int8_url
from perseid.model.runtime.processor import has_int8_products, usable_threads
from perseid.model.signature import METADATA_KEY, ModelSignature

MICRO_BATCH = 32
"""Rows a call of onnxruntime: larger ones are as fast a row and only cost memory."""
PRECISIONS = ("float32", "int8")
_BATCH_NAMES = ("n", "N", "batch", "batch_size")
_NO_MEMORY = ("bad_alloc", "Failed to allocate memory")
"""How onnxruntime says so."""
_TYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64}


Versions = tuple[tuple[int, ...], ...]
"""See `ModelFiles.versions`."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the model says of some rows, in their order."""

    redshift: NDArray[np.float32]
    """(n,)."""
    features: NDArray[np.float32] | None
    """(n, sum of the signature's feature groups); None where the model has none."""


class ModelRuntime:
    """A loaded model. Made by `load`; use one from one thread at a time."""

    signature: ModelSignature
    """What the model takes and gives."""
    micro_batch: int
    """Rows of every call of onnxruntime."""
    threads: int
    """Threads that it computes with."""
    note: str
    """One sentence where the model runs otherwise than asked for, else empty."""
    identity: ModelIdentity
    """Which model it is, by content."""

    def __init__(
        self,
        session: Any,
        signature: ModelSignature,
        ports: _Ports,
        identity: ModelIdentity,
        note: str = "",
    ) -> None:
        self.signature, self.identity, self.note = signature, identity, note
        self._source: tuple[ModelFiles, Versions] | None = None
        self._session, self._ports = session, ports
        self.micro_batch = ports.batch
        self.threads = int(session.get_session_options().intra_op_num_threads)
        shape = (signature.bands, signature.height, signature.width)
        self._images = np.zeros((self.micro_batch, *shape), np.float32)
        self._magnitudes = np.zeros((self.micro_batch, signature.bands), ports.magnitude_type)

    @classmethod
    def load(
        cls,
        url: str | Path = DEFAULT,
        *,
        threads: int | None = None,
        precision: str = "float32",
        micro_batch: int = MICRO_BATCH,
    ) -> ModelRuntime:
        """Load a model.

        Parameters
        ----------
        url
            Path or URL of an ONNX file, or ``default``.
        threads
            None: as many as this process may run at once (`usable_threads`).
        precision
            ``int8`` takes the file's sibling ``NAME.int8.onnx`` where the processor multiplies
            8-bit integers (`has_int8_products`); elsewhere float32, and `note` says so.
        micro_batch
            Rows a call; a model of a fixed batch size keeps its own.

        Raises
        ------
        BadModelError
            It is no ONNX file, or has not the inputs and outputs of `ModelSignature`.
        BadInputError
            `precision`, `threads` or `micro_batch` is not usable.
        NotFoundError, StorageError
            It cannot be had.
        """
        if precision not in PRECISIONS:
            raise BadInputError(
                f"precision {precision!r} is unknown: use {' or '.join(PRECISIONS)}"
            )
        if micro_batch < 1 or (threads is not None and threads < 1):
            raise BadInputError(
                f"threads {threads} and micro_batch {micro_batch} must be at least 1"
            )
        note, small = "", precision == "int8"
        if small and not has_int8_products():
            small = False
            note = "this processor has no VNNI instructions: the model runs in float32"
        with on_disk(int8_url(url) if small else url) as files:
            versions, digest, name = files.versions(), files.digest(), files.name
            session = _session(str(files.path), name, threads or usable_threads(), micro_batch)
            _same(files, versions)
        _give_back()
        ports = _Ports.of(session, name, micro_batch)
        signature = _signature(session, ports, name)
        identity = replace(identity_of(url, precision, digest), signature=signature.digest())
        runtime = cls(session, signature, ports, identity, note)
        if files.path.exists():  # fetched files are gone: nobody can change what was loaded
            runtime._source = (files, versions)
        return runtime

    def check_unchanged(self) -> None:
        """Raise `BadModelError` where the model's files were changed after it was loaded.

        External data is mapped into memory: a file that is written in place changes the weights of
        a model that is at work.
        """
        if self._source is not None:
            files, versions = self._source
            _same(files, versions, self.identity.digest)

    @property
    def uses_magnitudes(self) -> bool:
        """Whether magnitudes are an input; where not, what is given for them is ignored."""
        return bool(self._ports.magnitude)

    @property
    def precision(self) -> str:
        """``float32`` or ``int8``, as it runs."""
        return self.signature.precision

    def predict(self, images: NDArray[np.float32], magnitudes: NDArray[Any] | None) -> Prediction:
        """Predict rows.

        Parameters
        ----------
        images
            (n, bands, height, width) float32; memory-mapped or read-only arrays are used in place.
        magnitudes
            (n, bands), any float; may be None where the model takes none (`uses_magnitudes`).

        Returns
        -------
        Prediction
            Not-finite input rows give whatever the network makes of them; other rows are not
            touched by them.

        Raises
        ------
        BadModelError
            The arrays have another shape than the model takes.
        MemoryError
            There is not enough of it.
        """
        self._fits(images, magnitudes)
        n, step = len(images), self.micro_batch
        redshift = np.empty(n, np.float32)
        width = self.signature.features()
        features = np.empty((n, width), np.float32) if width else None
        for start in range(0, n, step):
            rows = slice(start, min(start + step, n))
            count = rows.stop - start
            some = None if magnitudes is None else magnitudes[rows]
            outputs = self._run(self._feed(images[rows], some))
            redshift[rows] = outputs[0].reshape(step)[:count]
            if features is not None:
                features[rows] = outputs[1][:count]
        return Prediction(redshift, features)

    def _run(self, feed: dict[str, Any]) -> Any:
        try:
            return self._session.run(self._ports.outputs, feed)
        except Exception as error:
            _raise_if_of_memory(error, self.signature.name)
            raise BadModelError(
                f"the model {self.signature.name!r} fails when it computes: {_reason(error)}"
            ) from error

    def _feed(self, images: NDArray[np.float32], magnitudes: NDArray[Any] | None) -> dict[str, Any]:
        """One micro-batch: the rows in place where they can be, else copied and padded."""
        count = len(images)
        whole = count == self.micro_batch
        if not (whole and images.flags.c_contiguous and images.flags.aligned):
            self._images[:count] = images
            self._images[count:] = 0
            images = self._images
        feed = {self._ports.image: images}
        if self._ports.magnitude:
            self._magnitudes[:count] = magnitudes
            self._magnitudes[count:] = 0
            feed[self._ports.magnitude] = self._magnitudes
        return feed

    def _fits(self, images: NDArray[np.float32], magnitudes: NDArray[Any] | None) -> None:
        s = self.signature
        wanted = (s.bands, s.height, s.width)
        if images.dtype != np.float32 or images.shape[1:] != wanted:
            raise BadModelError(
                f"model {s.name!r} takes float32 images of (bands, height, width) = {wanted}, not "
                f"{images.dtype} {images.shape[1:]}: give a model for such images"
            )
        if magnitudes is None:
            if self.uses_magnitudes:
                raise BadModelError(f"model {s.name!r} takes magnitudes (n, {s.bands}); none given")
        elif magnitudes.shape != (len(images), s.bands):
            raise BadModelError(
                f"model {s.name!r} takes magnitudes ({len(images)}, {s.bands}), "
                f"not {magnitudes.shape}"
            )


@dataclass(frozen=True)
class _Ports:
    """Names of the model's inputs and outputs, and the batch size that it is run with."""

    image: str
    magnitude: str
    """Empty where the model takes none."""
    magnitude_type: Any
    outputs: list[str]
    """Redshift, then features where there are any."""
    shape: tuple[int, int, int]
    """Bands, height, width."""
    batch: int

    @classmethod
    def of(cls, session: Any, name: str, micro_batch: int) -> _Ports:
        inputs = {value.name: value for value in session.get_inputs()}
        image = _pick(inputs, "image", 4)
        magnitude = _pick(inputs, "magnitude", 2)
        if image is None or image.type != "tensor(float)":
            raise BadModelError(
                f"{name} has no float32 input image (n, bands, height, width); it takes "
                f"{_listed(inputs)}"
            )
        shape = tuple(image.shape[1:])
        if not all(isinstance(side, int) for side in shape):
            raise BadModelError(
                f"{name} does not say how large its images are ({image.name} {image.shape}): "
                "export it with fixed bands, height and width"
            )
        unknown = set(inputs) - {image.name, magnitude.name if magnitude else ""}
        if unknown or (magnitude and _TYPES.get(magnitude.type) is None):
            raise BadModelError(
                f"{name} takes {_listed(inputs)}; a worker gives only image (n, bands, height, "
                "width) and magnitude (n, bands), float32 or float64"
            )
        if (
            magnitude
            and magnitude.shape[1] not in (shape[0], None)
            and isinstance(magnitude.shape[1], int)
        ):
            raise BadModelError(f"{name} takes {shape[0]} bands but magnitudes {magnitude.shape}")
        batch = image.shape[0] if isinstance(image.shape[0], int) else micro_batch
        return cls(
            image.name,
            magnitude.name if magnitude else "",
            _TYPES[magnitude.type] if magnitude else np.float32,
            _outputs(session, name),
            shape,
            batch,
        )


def _pick(values: dict[str, Any], name: str, rank: int) -> Any:
    """The value of this name, or the only one of this rank."""
    ranked = [value for value in values.values() if len(value.shape) == rank]
    return values.get(name) or (ranked[0] if len(ranked) == 1 else None)


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{v.name} {v.type} {v.shape}" for v in values.values()) or "nothing"


def _outputs(session: Any, name: str) -> list[str]:
    outputs = {value.name: value for value in session.get_outputs()}
    redshift = outputs.get("redshift") or next(iter(outputs.values()), None)
    if (
        redshift is None
        or redshift.type != "tensor(float)"
        or (len(redshift.shape), redshift.shape[-1:]) not in ((2, [1]), (1, redshift.shape[-1:]))
    ):
        raise BadModelError(
            f"{name} has no float32 output redshift (n,): it gives {_listed(outputs)}"
        )
    features = outputs.get("features")
    if features is None:
        return [redshift.name]
    if (
        features.type != "tensor(float)"
        or len(features.shape) != 2
        or not isinstance(features.shape[1], int)
    ):
        raise BadModelError(f"{name}: features must be float32 (n, width), not {_listed(outputs)}")
    return [redshift.name, features.name]


def _signature(session: Any, ports: _Ports, name: str) -> ModelSignature:
    """The file's own, checked against its inputs and outputs; else one made from their shapes."""
    bands, height, width = ports.shape
    features = 0
    if len(ports.outputs) == 2:
        features = {value.name: value.shape for value in session.get_outputs()}["features"][1]
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        groups = {"embedding": features} if features else {}
        return ModelSignature(Path(name).stem, bands, height, width, groups, band_names=())
    signature = ModelSignature.from_json(text)
    stated = (signature.bands, signature.height, signature.width, signature.features())
    if stated != (bands, height, width, features):
        raise BadModelError(
            f"{name} says of itself (bands, height, width, features) = {stated}, but takes and "
            f"gives {(bands, height, width, features)}: export it again"
        )
    return replace(signature, feature_groups=dict(signature.feature_groups))


def _session(path: str, name: str, threads: int, micro_batch: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # its plan lies beside what the first call allocated
    for dimension in _BATCH_NAMES:
        options.add_free_dimension_override_by_name(dimension, micro_batch)
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base
        _raise_if_of_memory(error, name)
        raise BadModelError(
            f"{name} is not a model that onnxruntime can load: {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    """What onnxruntime says, on one line and not without end."""
    return " ".join(str(error).split())[:300]


def _same(files: ModelFiles, versions: Versions, digest: str = "") -> None:
    """Raise `BadModelError` unless the files are as they were, or have this content still."""
    try:
        same = files.versions() == versions or (digest != "" and files.digest() == digest)
    except OSError:
        same = False
    if not same:
        raise BadModelError(
            f"the model {files.name} was changed while it was in use: put the former file back and "
            "resume the run, or start a new run"
        )


def _raise_if_of_memory(error: Exception, name: str) -> None:
    """A model that finds no memory is not a bad model: elsewhere, or later, it may work."""
    if any(words in str(error) for words in _NO_MEMORY):
        raise MemoryError(f"the model {name} finds no memory") from error


def _give_back() -> None:
    """Hand freed memory to the system: loading leaves 20 MB of it behind (glibc only)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
