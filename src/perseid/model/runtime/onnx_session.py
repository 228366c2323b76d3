"""Sessions of onnxruntime, and what its errors mean."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

from perseid.errors import BadInputError, BadModelError
from perseid.model.identity import CPU, CUDA
from perseid.model.runtime.load_refusals import load_refusal
from perseid.model.runtime.processor import PRODUCT
from perseid.plaintext import option

PROVIDERS = {CPU: "CPUExecutionProvider", CUDA: "CUDAExecutionProvider"}
"""Onnxruntime's names of the devices."""
OPTIONS: Mapping[str, list[dict[str, str]]] = {CPU: [{}], CUDA: [{"use_tf32": "0"}]}
"""Onnxruntime's options of the devices: with tf32 redshifts would differ from a CPU's by 1e-3."""
_BATCH_NAMES = ("n", "N", "batch", "batch_size")
_NO_MEMORY = (
    "bad_alloc",
    "Failed to allocate memory",
    "pthread_create failed, error code: 12",  # ENOMEM
)
"""Parts of onnxruntime's messages that mean a lack of memory."""


def open_session(
    path: str | bytes, name: str, threads: int, micro_batch: int, device: str = CPU
) -> Any:
    """Open an onnxruntime session.

    Raises
    ------
    BadModelError
        The file is not a model.
    BadInputError
        The installed onnxruntime does not support the device.
    """
    import onnxruntime

    provider = check_provider(device)
    if device == CUDA:
        onnxruntime.set_default_logger_severity(4)  # the error below says the same
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()  # CUDA's libraries where pip has installed them
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # its plan would take memory in addition to the first call's
    for dimension in _BATCH_NAMES:
        # Only with all shapes fixed does onnxruntime fold and fuse everything that it can.
        options.add_free_dimension_override_by_name(dimension, micro_batch)
    try:
        session = onnxruntime.InferenceSession(path, options, [provider], OPTIONS[device])
    except Exception as error:  # onnxruntime's errors have no common base
        raise_if_of_memory(error, name)
        why = load_refusal(str(error), onnxruntime.__version__) or reason_of(error)
        raise BadModelError(f"{name} is not a model that onnxruntime can load: {why}") from error
    # Without CUDA's libraries onnxruntime computes on the processor and says so only in its log.
    if provider not in session.get_providers():
        raise BadInputError(
            f"device {device}: onnxruntime cannot use a GPU here, because the driver or libraries "
            f"of CUDA are missing; use {option('device', 'cpu')}"
        )
    return session


def check_gpu() -> None:
    """Raise `BadInputError` if the installed onnxruntime cannot use a GPU here."""
    open_session(PRODUCT, "the test of the GPU", 1, 1, CUDA)


def check_provider(device: str) -> str:
    """Onnxruntime's name of a device; raises `BadInputError` if the installed onnxruntime lacks
    it."""
    import onnxruntime

    provider = PROVIDERS[device]
    if provider not in onnxruntime.get_available_providers():
        raise BadInputError(
            f"device {device}: the onnxruntime installed here has no {provider} (pip install "
            "onnxruntime-gpu); AstroMAE weights (.npz) run by torch"
        )
    return provider


def reason_of(error: Exception) -> str:
    """Onnxruntime's message, on one line and shortened."""
    return " ".join(str(error).split())[:300]


def raise_if_of_memory(error: Exception, name: str) -> None:
    """Raise `MemoryError` if the model lacks memory: it is not a bad model, and may work elsewhere
    or later."""
    if any(words in str(error) for words in _NO_MEMORY):
        raise MemoryError(f"there is not enough memory for the model {name}") from error
