"""Checks made before a run starts: a model, an option or a shape that no rank could use.

Every worker would fail for the same reason; the checks report it once, before anything is written.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import (
    BadInputError,
    BadModelError,
    BadPartitionError,
    NotFoundError,
    NotInstalledError,
)
from perseid.model.identity import CPU, ModelIdentity, identify
from perseid.model.intervals import read_calibration
from perseid.model.python_source import FILES, find_source, is_python
from perseid.model.signature import ModelSignature
from perseid.pipeline.items import PartitionRef
from perseid.pipeline.model_inputs import refuse_empty, unfit, with_inputs
from perseid.science import group_columns
from perseid.storage import Storage
from perseid.survey.read_options import PLAIN, ReadOptions
from perseid.survey.reader import open_partition

if TYPE_CHECKING:
    from perseid.model.runtime.predictor import Predictor

READERS = 16
"""Number of partitions that are opened at once to count their rows."""


@dataclass(frozen=True)
class CheckedModel:
    """A model that ranks can use."""

    identity: ModelIdentity
    signature: ModelSignature | None
    """Identity of the model; None if this process has no onnxruntime to load it with, as on AWS
    between the ranks."""
    given: ModelSignature | None = None
    """Signature that was given with the model or lies beside it; None if the model's file has its
    own."""
    intervals: Mapping[str, float] | None = None
    """Half width of each calibrated interval, divided by 1 + z_pred; keys are probabilities as
    text."""
    notes: tuple[str, ...] = ()
    """Notes for the user, one sentence each."""


@dataclass(frozen=True)
class RowCount:
    """Number of rows in one partition."""

    key: str
    rows: int
    """Number of rows; 0 if the partition cannot be read."""
    error: str = ""
    """One sentence saying why the partition cannot be read; empty if it can."""


def check_model(
    url: str,
    precision: str,
    anomaly: str,
    batch_size: int,
    signature: ModelSignature | None = None,
    device: str = CPU,
    folder: str = "",
) -> CheckedModel:
    """Load a model as a rank does, and let it compute a few rows.

    Parameters
    ----------
    url, precision, anomaly, batch_size
        As in a `WorkItem`.
    signature
        Signature of the model, if its file does not contain one.
    device
        ``cpu`` or ``cuda``.
    folder
        Folder that is searched for the module of a Python model, after the installed modules.

    Raises
    ------
    BadModelError
        The model does not exist, cannot be loaded, or fails to compute.
    BadInputError
        The model has no features of the group that `anomaly` names.
    NotFoundError, StorageError
        The store has no such model, or failed.
    """
    if importlib.util.find_spec("onnxruntime") is None and not is_python(url):
        return _calibrated(CheckedModel(identify(url, precision, device), None, signature), url)
    from perseid.model.loading import load_on  # importing onnxruntime takes long
    from perseid.model.runtime import MICRO_BATCH

    size = min(MICRO_BATCH, batch_size)
    # On the CPU even if the run uses a GPU: the login node of a cluster may not have one.
    runtime = load_on(
        CPU,
        url,
        threads=1,
        precision=precision,
        micro_batch=size,
        signature=signature,
        folder=folder,
    )
    if anomaly != "none":
        group_columns(runtime.signature.feature_groups, anomaly)
    notes = _unsteady(runtime)
    identity = runtime.identity if precision == "float32" else identify(url, precision)
    difference = identity.difference(runtime.identity)
    if difference:
        raise BadModelError(f"the model {url} was replaced while it was being checked")
    identity = replace(identity, device=device)
    if is_python(url):
        notes = (*_python_notes(url, folder), *notes)
        return CheckedModel(identity, runtime.signature, signature, notes=notes)
    return _calibrated(CheckedModel(identity, runtime.signature, signature, notes=notes), url)


def _unsteady(runtime: Predictor) -> tuple[str, ...]:
    """A note for the user if a row's answer is not the same in every call.

    Both come of a model that was exported in training mode.
    """
    images, _, columns = runtime.some_rows(min(3, runtime.micro_batch))

    def answers(rows: slice) -> dict[str, NDArray[Any]]:
        some = None if images is None else images[rows]
        given = runtime.predict(
            some, None, {name: column[rows] for name, column in columns.items()}
        )
        return {**given.columns, **given.lists}

    def same(one: dict[str, NDArray[Any]], other: dict[str, NDArray[Any]]) -> bool:
        return all(
            np.allclose(one[name][:1], other[name][:1], rtol=1e-3, atol=1e-4, equal_nan=True)
            for name in one
        )

    together, alone = answers(slice(None)), answers(slice(1))
    if same(together, alone):
        return ()
    if same(together, answers(slice(None))):
        what = "answers differently for a row when other rows are in the same call (as batch "
        what += "normalization does)"
    else:
        what = "gives another answer for the same row in each call (as dropout does)"
    return (f"the model {what}: export it in evaluation mode (`model.eval()` in torch)",)


def _python_notes(spec: str, folder: str) -> tuple[str, ...]:
    """A note for the user if ranks cannot verify that they all have the same Python model."""
    source = find_source(spec, folder)
    if source.files is not None:
        return ()
    return (
        f"the model {spec} is not verifiable: all that is compared is {source.path}; declare what "
        f"it reads besides (`{FILES} = [...]` in the class, empty if there is nothing)",
    )


def _calibrated(model: CheckedModel, url: str) -> CheckedModel:
    """The model with the intervals calibrated for it, if a matching calibration file lies beside
    it."""
    found = read_calibration(url)
    if found is None:
        return model
    if found.digest != model.identity.digest:
        note = (
            f"the calibration beside {url} was made for another model: redshifts get no "
            "intervals; make it again by `perseid model calibrate`"
        )
        return replace(model, notes=(*model.notes, note))
    return replace(model, intervals={f"{level:g}": w for level, w in found.widths.items()})


def check_shape(
    storage: Storage,
    partitions: Sequence[PartitionRef],
    signature: ModelSignature,
    *,
    options: ReadOptions = PLAIN,
    fit: str = "",
) -> None:
    """Raise `BadInputError` if no partition has the inputs that the model takes.

    Stops at the first partition that fits, in most runs the very first one. An unreadable partition
    is left to its rank, which reports it, unless no partition can be read.
    """
    wrong = unreadable = ""
    options = with_inputs(options, signature)
    seen = replace(options, needs_image=False, describe=True)  # the message names all columns
    for ref in partitions:
        try:
            with open_partition(storage, ref.key, options=seen) as reader:
                named, bands = [s.source for s in reader.described], reader.bands
                said = unfit(signature, reader.columns, fit, named, bands)
                # If no column is read, the number of rows is unknown.
                if not said or any(reader.columns.shape) or reader.columns.magnitudes:
                    refuse_empty(reader.rows, storage.where(ref.key))
        except (BadPartitionError, NotFoundError) as error:
            if options.names and "has no column" in str(error):  # a name given by the user
                wrong = wrong or str(error)
            unreadable = unreadable or str(error)
            continue
        if not said:
            return
        wrong = wrong or f"{storage.where(ref.key)} has {said}"
    if wrong:
        raise BadInputError(
            f"no partition has the inputs that the model {signature.name!r} takes: {wrong}"
        )
    if unreadable:
        raise BadInputError(f"no partition of the survey can be read: {unreadable}")


def count_rows(
    storage: Storage, partitions: Sequence[PartitionRef], options: ReadOptions = PLAIN
) -> list[RowCount]:
    """Count the rows of each partition from its own header; the result keeps their order.

    Raises `NotInstalledError` if the optional dependency for a file format is missing.
    """

    def count(ref: PartitionRef) -> RowCount:
        try:
            with open_partition(storage, ref.key, options=options) as reader:
                return RowCount(ref.key, reader.rows)
        except NotInstalledError:
            raise
        except (BadInputError, NotFoundError) as error:
            return RowCount(ref.key, 0, str(error))

    # numpy reads the headers of arrays by `ast`, which Python 3.11 cannot do in several threads.
    safe = not any(ref.key.lower().endswith(".npz") for ref in partitions)
    with ThreadPoolExecutor(READERS if safe else 1) as pool:
        return list(pool.map(count, partitions))
