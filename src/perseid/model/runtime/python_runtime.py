"""Run a model that is a Python class, using torch, scikit-learn or anything else that the workers
have."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadModelError
from perseid.model.identity import CPU, ModelIdentity, identify
from perseid.model.inputs import MAGNITUDE
from perseid.model.python_source import PythonSource, added, find_source
from perseid.model.runtime.answers import Prediction, answer, empty, fill
from perseid.model.runtime.image_buffer import ImageBuffer
from perseid.model.runtime.processor import usable_threads
from perseid.model.signature import ModelSignature
from perseid.model.signature_files import signature_of
from perseid.plaintext import option

_loaded: dict[str, tuple[str, str]] = {}
"""Digest and path of the source from which each module of a model was imported."""


class PythonRuntime:
    """A loaded model of the user's own; see `ModelRuntime` for the meaning of its members."""

    note = ""
    precision = "float32"

    def __init__(
        self,
        model: Any,
        signature: ModelSignature,
        identity: ModelIdentity,
        micro_batch: int,
        threads: int,
        folder: str,
    ) -> None:
        self.signature, self.identity = signature, identity
        self.micro_batch, self.threads = micro_batch, threads
        self._model, self._folder = model, folder
        self._images = ImageBuffer(signature, micro_batch)

    @classmethod
    def load(
        cls,
        spec: str,
        *,
        device: str = CPU,
        folder: str = "",
        threads: int | None = None,
        micro_batch: int = 32,
        signature: ModelSignature | None = None,
    ) -> PythonRuntime:
        """Import the class, create an instance of it, without arguments, and move it to the device.

        Parameters
        ----------
        spec
            ``python:package.module:Class``.
        device
            Device that the run requests. ``cuda`` is passed to the model's method `to`, which every
            ``torch.nn.Module`` has; a model without one decides itself what it uses.
        folder
            Folder that is searched for modules after the installed ones.
        threads
            Threads that this process may use; the model itself decides how many it takes.
        micro_batch
            Rows per call, unless the class has its own `micro_batch`.
        signature
            Signature of the model; None means the attribute `signature` of the class.

        Raises
        ------
        BadModelError
            The class cannot be imported, created or moved to the device, or has no signature or no
            `predict`.
        """
        source = find_source(spec, folder)
        model = _make(source, folder)
        _move(model, device, spec)
        given = signature or _own_signature(model, source)
        given.check(f"the signature of {spec}")
        if not callable(getattr(model, "predict", None)):
            raise BadModelError(f"the model {spec} has no method predict(images, columns)")
        identity = replace(identify(spec, device=device, folder=folder), signature=given.digest())
        rows = getattr(model, "micro_batch", micro_batch)
        if not isinstance(rows, int) or rows < 1:
            raise BadModelError(f"the model {spec} has micro_batch {rows!r}: give a number of rows")
        return cls(model, given, identity, rows, threads or usable_threads(), folder)

    def check_unchanged(self) -> None:
        """Raise `BadModelError` if the source or a declared file has changed since the model was
        loaded."""
        difference = self.identity.difference(self._now())
        if difference:
            raise BadModelError(
                f"the model {self.identity.uri} was changed while it was in use ({difference}): "
                "put the former files back and resume the run, or start a new run"
            )

    def _now(self) -> ModelIdentity:
        return identify(self.identity.uri, device=self.identity.device, folder=self._folder)

    def predict(
        self,
        images: NDArray[np.float32] | None,
        magnitudes: NDArray[Any] | None = None,
        columns: Mapping[str, NDArray[Any]] | None = None,
    ) -> Prediction:
        """Like `ModelRuntime.predict`; every call of the class has `micro_batch` rows, padded with
        zeros."""
        given = {**(columns or {}), **({} if magnitudes is None else {MAGNITUDE: magnitudes})}
        wanted = {one.name: given[one.column] for one in self.signature.columns}
        arrays = [*wanted.values(), *([images] if images is not None else [])]
        whole = empty(self.signature, len(arrays[0]))
        for start in range(0, len(arrays[0]), self.micro_batch):
            rows = slice(start, min(start + self.micro_batch, len(arrays[0])))
            some = None
            if self.signature.bands and images is not None:
                some = self._images.put(images[rows])
            columns_here = {
                one.name: self._padded(wanted[one.name][rows], one.dtype)
                for one in self.signature.columns
            }
            raw = self._call(some, columns_here)
            fill(whole, answer(self.signature, raw, rows.stop - start, self.micro_batch), rows)
        return whole

    def begin(
        self,
        images: NDArray[np.float32] | None,
        magnitudes: NDArray[Any] | None = None,
        columns: Mapping[str, NDArray[Any]] | None = None,
    ) -> Callable[[], Prediction]:
        """Predict rows; the returned function gives the prediction."""
        whole = self.predict(images, magnitudes, columns)
        return lambda: whole

    def some_rows(
        self, rows: int
    ) -> tuple[NDArray[np.float32] | None, None, dict[str, NDArray[Any]]]:
        """Arguments of `predict` that work for this model: numbers between 0 and 1, always the
        same."""
        random, s = np.random.default_rng(0), self.signature
        images = random.random((rows, *s.shape), np.float32) if s.bands else None
        shapes = {
            one.column: (rows, one.width or s.bands or 1) if one.column == MAGNITUDE else (rows,)
            for one in s.columns
        }
        return images, None, {name: random.random(shape) for name, shape in shapes.items()}

    def _padded(self, array: NDArray[Any], dtype: str) -> NDArray[Any]:
        whole = np.zeros((self.micro_batch, *array.shape[1:]), dtype)
        whole[: len(array)] = array
        return whole

    def _call(
        self, images: NDArray[Any] | None, columns: dict[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        spec = self.identity.uri
        try:
            found = self._model.predict(images, columns)
        except MemoryError:
            raise
        except Exception as error:
            raise BadModelError(
                f"the model {spec} fails when it computes: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(found, Mapping):
            raise BadModelError(
                f"the model {spec} gave {type(found).__name__}: predict(images, columns) must "
                "return a dictionary of arrays by the names of its outputs"
            )
        return {str(name): np.asarray(array) for name, array in found.items()}


def _own_signature(model: Any, source: PythonSource) -> ModelSignature:
    given = getattr(model, "signature", None)
    if given is None:
        raise BadModelError(
            f"the model {source.spec} has no signature: give it an attribute `signature`, or "
            f"{option('signature', 'FILE')}"
        )
    return signature_of(source.path.parent / given if isinstance(given, (str, Path)) else given)


def _make(source: PythonSource, folder: str) -> Any:
    module = _imported(source, folder)
    try:
        return getattr(module, source.name)()
    except Exception as error:
        raise BadModelError(
            f"the model {source.spec} cannot be created: {type(error).__name__}: {error}"
        ) from error


def _move(model: Any, device: str, spec: str) -> None:
    if device == CPU or not callable(getattr(model, "to", None)):
        return
    try:
        model.to(device)
    except Exception as error:
        raise BadModelError(
            f"the model {spec} cannot be moved to {device}: {type(error).__name__}: {error}"
        ) from error


def _imported(source: PythonSource, folder: str) -> ModuleType:
    """Import the module from the source that was found; imports again if it was edited or moved."""
    for other in [place for place in sys.path if place in added and place != folder]:
        sys.path.remove(other)
    if folder and folder not in sys.path:
        sys.path.append(folder)  # last, so that nothing there shadows an installed module
        added.add(folder)
    now = source.digest(), str(source.path)
    if _loaded.get(source.module, now) != now:
        _forget(source.module)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(source.module)
    except Exception as error:
        raise BadModelError(
            f"the model {source.spec} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if Path(str(module.__file__)).resolve() != source.path.resolve():
        raise BadModelError(
            f"the model {source.spec} was found in {source.path}, but the module that this process "
            f"has of that name is {module.__file__}: rename one of them"
        )
    _loaded[source.module] = now
    return module


def _forget(module: str) -> None:
    """Remove a model's module and its package from memory, so that the current source is
    imported."""
    top = module.partition(".")[0]
    for name in [name for name in sys.modules if name == top or name.startswith(f"{top}.")]:
        del sys.modules[name]
