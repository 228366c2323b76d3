"""The runtime that workers use: numpy and onnxruntime, no torch.

Every call computes micro-batches of one fixed size, the last of them padded. So the bits of a row's
prediction depend neither on the other rows nor on where a partition begins.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadInputError, BadModelError
from perseid.linux import trim_memory
from perseid.model.files import DEFAULT, ModelFiles, on_disk, producer_of
from perseid.model.identity import CPU, ModelIdentity, identity_of, int8_url
from perseid.model.inputs import MAGNITUDE
from perseid.model.runtime.answers import Prediction, answer, empty, fill
from perseid.model.runtime.graph_ports import Graph, Ports, bind
from perseid.model.runtime.image_buffer import FeedBuffers
from perseid.model.runtime.onnx_session import open_session, raise_if_of_memory, reason_of
from perseid.model.runtime.processor import (
    LANE_ROWS,
    MICRO_BATCH,
    has_int8_products,
    lanes_of,
    usable_threads,
)
from perseid.model.signature import ModelSignature

PRECISIONS = ("float32", "int8")
NO_COLUMNS: Mapping[str, NDArray[Any]] = MappingProxyType({})

Versions = tuple[tuple[int, ...], ...]
"""The files' identities on disk; see `ModelFiles.versions`."""


_Begun = tuple[slice, Callable[[], Any]] | None
"""Rows of a micro-batch that a session has begun with, and what waits for its outputs."""


class ModelRuntime:
    """A loaded model, made by `load`. It must not be used by two threads at once."""

    signature: ModelSignature
    """The model's inputs and outputs."""
    micro_batch: int
    """Rows in every call of onnxruntime."""
    threads: int
    """Number of threads that the model computes with."""
    note: str
    """One sentence saying how the model runs otherwise than requested; empty if it runs as
    requested."""
    identity: ModelIdentity
    """The model's identity, by content."""

    def __init__(
        self,
        session: Any,
        signature: ModelSignature,
        ports: Ports,
        identity: ModelIdentity,
        note: str = "",
        lanes: int = 1,
    ) -> None:
        self.signature, self.identity, self.note = signature, identity, note
        self._source: tuple[ModelFiles, Versions] | None = None
        self._session, self._ports = session, ports
        self.micro_batch = ports.batch
        self.threads = max(lanes, int(session.get_session_options().intra_op_num_threads))
        self._buffers = [FeedBuffers(signature, ports) for _ in range(lanes)]
        self._beside = ThreadPoolExecutor(lanes - 1) if lanes > 1 else None

    @classmethod
    def load(
        cls,
        url: str | Path = DEFAULT,
        *,
        threads: int | None = None,
        precision: str = "float32",
        micro_batch: int = MICRO_BATCH,
        signature: ModelSignature | None = None,
        device: str = CPU,
    ) -> ModelRuntime:
        """Load a model.

        Parameters
        ----------
        url
            Path or URL of an ONNX file, or ``default``.
        threads
            Number of threads; None means as many as this process may run at once
            (`usable_threads`).
        precision
            ``int8`` loads the sibling file ``NAME.int8.onnx`` if the processor multiplies 8-bit
            integers (`has_int8_products`); otherwise float32 is used, and `note` says so.
        micro_batch
            Rows per call; a model with a fixed batch size keeps its own. Where each thread computes
            calls of its own (`lanes_of`), at most `LANE_ROWS`.
        signature
            Signature of the model, if its file has none or a different one.
        device
            ``cuda`` needs an onnxruntime with CUDA; see `perseid.model.loading.load_on`.

        Raises
        ------
        BadModelError
            The file is not an ONNX file, or lacks inputs or outputs of the signature.
        BadInputError
            `precision`, `threads` or `micro_batch` is invalid.
        NotFoundError, StorageError
            The model cannot be read.
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
        with on_disk(int8_url(url) if small else url) as files, ThreadPoolExecutor(1) as beside:
            versions, name = files.versions(), files.name
            # Both take as long as the file is large, and hashing does not hold the interpreter.
            digest = _call_beside(beside, files.digest)
            threads = threads or usable_threads()
            lanes = lanes_of(threads, producer_of(files.path) if device == CPU else "")
            if lanes > 1:
                threads, micro_batch = 1, min(micro_batch, LANE_ROWS)
            session = open_session(str(files.path), name, threads, micro_batch, device)
            identity = identity_of(url, precision, digest())
            # The hashed file and the one that onnxruntime loaded must be the same, even if it was
            # replaced meanwhile.
            _same(files, versions)
        trim_memory()  # loading leaves 20 MB of it behind
        signature, ports = bind(Graph.of(session), name, micro_batch, signature)
        signature.check_size(name)
        identity = replace(identity, signature=signature.digest(), device=device)
        runtime = cls(session, signature, ports, identity, note, lanes)
        if files.path.exists():  # deleted fetched files cannot change any more
            runtime._source = (files, versions)
        return runtime

    def check_unchanged(self) -> None:
        """Raise `BadModelError` if the model's files were changed after it was loaded.

        External data is mapped into memory, so writing to such a file in place changes the weights
        of a loaded model.
        """
        if self._source is not None:
            files, versions = self._source
            _same(files, versions, self.identity.digest)

    @property
    def precision(self) -> str:
        """The precision that is used, ``float32`` or ``int8``."""
        return self.signature.precision

    def predict(
        self,
        images: NDArray[np.float32] | None,
        magnitudes: NDArray[Any] | None = None,
        columns: Mapping[str, NDArray[Any]] = NO_COLUMNS,
    ) -> Prediction:
        """Predict rows.

        Parameters
        ----------
        images
            (n, bands, height, width) float32; memory-mapped or read-only arrays are used in place.
            Ignored if the model takes none.
        magnitudes
            (n, bands), any float; ignored, and may be None, if the model takes none.
        columns
            The other columns that the model takes, (n,) each, by the survey's names.

        Returns
        -------
        Prediction
            Rows with input that is not finite get whatever the network computes; other rows are not
            affected.

        Raises
        ------
        BadModelError
            The arrays do not have the shape that the model takes.
        MemoryError
            There is not enough memory.
        """
        return self.begin(images, magnitudes, columns)()

    def begin(
        self,
        images: NDArray[np.float32] | None,
        magnitudes: NDArray[Any] | None = None,
        columns: Mapping[str, NDArray[Any]] = NO_COLUMNS,
    ) -> Callable[[], Prediction]:
        """Begin to predict rows; the returned function waits for the prediction.

        A GPU still computes the last micro-batch when this function returns, and the next rows may
        begin meanwhile. A CPU has computed all of them. The arrays may change. Parameters and
        errors, which either function may raise, are those of `predict`.
        """
        given = dict(columns) if magnitudes is None else {**columns, MAGNITUDE: magnitudes}
        n, step = self._rows(images, given), self.micro_batch
        whole = empty(self.signature, n)
        parts = [slice(start, min(start + step, n)) for start in range(0, n, step)]

        def lane(number: int) -> _Begun:
            begun: _Begun = None
            for rows in parts[number :: len(self._buffers)]:
                following = rows, self._begin(self._buffers[number].put(images, given, rows))
                self._finish(whole, begun)
                begun = following
            return begun

        others = range(1, min(len(self._buffers), len(parts)))
        started = [self._beside.submit(lane, other) for other in others] if self._beside else []
        try:
            last = [lane(0)]
        finally:
            wait(started)  # they write into the same arrays
        last += [other.result() for other in started]

        def finish() -> Prediction:
            for begun in last:
                self._finish(whole, begun)
            return whole

        return finish

    def some_rows(
        self, rows: int
    ) -> tuple[NDArray[np.float32] | None, None, dict[str, NDArray[Any]]]:
        """Arguments of `predict` that work for every model of this signature: numbers between 0 and
        1, always the same."""
        random = np.random.default_rng(0)
        shape = (rows, *self.signature.shape)
        images = random.random(shape, np.float32) if self.signature.bands else None
        wide = {c.column: (rows, *((c.width,) if c.width else ())) for _, c in self._ports.columns}
        return images, None, {name: random.random(shape) for name, shape in wide.items()}

    def _begin(self, feed: Mapping[str, NDArray[Any]]) -> Callable[[], Any]:
        """Compute one micro-batch; a session on a GPU only begins, and the returned function
        waits."""
        names = [name for name, _ in self._ports.outputs]
        begin = getattr(self._session, "begin", None)
        with self._explained():
            if begin is not None:
                waiting: Callable[[], Any] = begin(names, feed)
                return waiting
            found = self._session.run(names, feed)
            return lambda: found

    def _finish(self, whole: Prediction, begun: _Begun) -> None:
        """Put the outputs of a micro-batch in their place."""
        if begun is None:
            return
        rows, wait = begun
        with self._explained():
            pairs = zip(self._ports.outputs, wait(), strict=True)
            raw = {name: array for (_, name), array in pairs}
        count = rows.stop - rows.start
        fill(whole, answer(self.signature, raw, count, self.micro_batch), rows)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise_if_of_memory(error, self.signature.name)
            raise BadModelError(
                f"the model {self.signature.name!r} fails when it computes: {reason_of(error)}"
            ) from error

    def _rows(self, images: NDArray[np.float32] | None, given: Mapping[str, NDArray[Any]]) -> int:
        """Number of rows; raises `BadModelError` if the arrays do not fit the model."""
        s, lengths = self.signature, set()
        if s.bands:
            has = "none" if images is None else f"{images.dtype} {images.shape[1:]}"
            if images is None or images.dtype != np.float32 or images.shape[1:] != s.shape:
                raise BadModelError(
                    f"model {s.name!r} takes float32 images of (bands, height, width) = {s.shape}, "
                    f"not {has}: give a model for such images"
                )
            lengths.add(len(images))
        for _, column in self._ports.columns:
            values = given.get(column.column)
            if values is None:
                wide = f"(n, {column.width})" if column.width else "(n,)"
                raise BadModelError(f"model {s.name!r} takes {column.column}s {wide}; none given")
            lengths.add(len(values))
            wanted = (max(lengths), *((column.width,) if column.width else ()))
            if values.size != math.prod(wanted):
                raise BadModelError(
                    f"model {s.name!r} takes {column.column}s {wanted}, not {values.shape}"
                )
        if len(lengths) != 1:
            raise BadModelError(f"model {s.name!r} was given arrays of {sorted(lengths)} rows")
        return int(lengths.pop())


def _call_beside(pool: ThreadPoolExecutor, call: Callable[[], str]) -> Callable[[], str]:
    """Begin a call on the pool's thread. If no thread can be started because memory is short, the
    call is made when its result is requested, and raises any memory error there."""
    try:
        return pool.submit(call).result
    except RuntimeError:
        return call


def _same(files: ModelFiles, versions: Versions, digest: str = "") -> None:
    """Raise `BadModelError` unless the files are unchanged, or still have this content."""
    try:
        same = files.versions() == versions or (digest != "" and files.digest() == digest)
    except OSError:
        same = False
    if not same:
        raise BadModelError(
            f"the model {files.name} was changed while it was in use: put the former file back and "
            "resume the run, or start a new run"
        )
