"""Load a model onto a device: ONNX files with onnxruntime, AstroMAE weights with torch."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from perseid.errors import BadInputError
from perseid.libraries import library_error
from perseid.model.files import DEFAULT
from perseid.model.identity import CPU, CUDA, identify, is_weights
from perseid.model.python_source import is_python
from perseid.model.runtime import MICRO_BATCH, ModelRuntime, Predictor
from perseid.model.runtime.graph_ports import Graph, bind
from perseid.model.runtime.model_runtime import PRECISIONS
from perseid.model.runtime.onnx_session import check_gpu
from perseid.model.runtime.processor import usable_threads
from perseid.model.signature import ModelSignature
from perseid.plaintext import option

DEVICES = (CPU, CUDA)
GPU_BATCH = 1024
"""Rows per call on a GPU: 20 MB of pixels of the usual size. A worker alone computes larger batches
faster (by up to a half on an H100), but the last one of each partition would be mostly padding."""


def load_on(
    device: str,
    url: str | Path = DEFAULT,
    *,
    threads: int | None = None,
    precision: str = PRECISIONS[0],
    micro_batch: int = MICRO_BATCH,
    signature: ModelSignature | None = None,
    folder: str = "",
) -> Predictor:
    """Load a model onto a device.

    Parameters
    ----------
    device
        ``cpu`` or ``cuda``.
    url
        Path or URL of an ONNX file, ``default``, or path or URL of an AstroMAE weight file
        (``.npz``), which torch computes; or ``python:package.module:Class``, which chooses its
        device itself.
    threads, precision, micro_batch, signature
        As for `ModelRuntime.load`; a GPU uses its own batch size.
    folder
        Folder that is searched for the module of a Python model, after the installed modules.

    Raises
    ------
    BadInputError
        The device does not exist or does not support the precision.
    NotInstalledError
        A package that the device or the model needs is not installed.
    BadModelError, NotFoundError, StorageError
        As for `ModelRuntime.load`.
    """
    if device not in DEVICES:
        raise BadInputError(f"device {device!r} is not known: choose {' or '.join(DEVICES)}")
    if device == CUDA and precision != "float32":
        raise BadInputError(f"precision {precision} works only on a CPU: leave it out with {CUDA}")
    batch = micro_batch if device == CPU else GPU_BATCH
    if is_python(url):
        from perseid.model.runtime.python_runtime import PythonRuntime  # rarely needed

        return PythonRuntime.load(
            str(url), device=device, folder=folder, threads=threads, micro_batch=batch,
            signature=signature,
        )  # fmt: skip
    if is_weights(url):
        return _weights(device, url, threads, precision, batch, signature)
    return ModelRuntime.load(
        url,
        threads=threads,
        precision=precision,
        micro_batch=batch,
        signature=signature,
        device=device,
    )


def import_library(url: str | Path) -> None:
    """Import the library that computes a model, which takes a large part of loading it.

    Errors are left to `load_on`.
    """
    if not is_python(url):
        with suppress(Exception):
            import_module("perseid.model.torch_session" if is_weights(url) else "onnxruntime")


def check_device(device: str, url: str | Path) -> None:
    """Raise `BadInputError` if this machine does not have the device for a model."""
    if device == CUDA and (is_weights(url) or is_python(url)):
        try:
            import torch
        except ImportError as error:
            raise library_error(
                error, f"device {device} needs torch for this model: pip install 'perseid[train]'"
            ) from error
        if not torch.cuda.is_available():
            raise BadInputError(
                f"device {device}: torch sees no GPU here; use {option('device', 'cpu')}"
            )
    elif device == CUDA:
        check_gpu()


def _weights(
    device: str,
    url: str | Path,
    threads: int | None,
    precision: str,
    batch: int,
    signature: ModelSignature | None,
) -> ModelRuntime:
    if precision != "float32":
        raise BadInputError(
            f"{url} holds weights, which run in float32: for int8 export them by "
            "`perseid model export --int8`"
        )
    try:
        from perseid.model.torch_session import TorchSession
    except ImportError as error:
        raise library_error(
            error,
            f"{url} holds weights, which torch computes: pip install 'perseid[train]', or export "
            "them by `perseid model export`",
        ) from error
    session = TorchSession(str(url), device, threads or usable_threads())
    signature, ports = bind(Graph.of(session), str(url), batch, signature)
    identity = replace(identify(str(url), precision, device), signature=signature.digest())
    return ModelRuntime(session, signature, ports, identity)
