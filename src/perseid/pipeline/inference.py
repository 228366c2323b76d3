"""Run a rank's partitions through the model; one result per partition."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadInputError, BadPartitionError
from perseid.masked import is_masked_array
from perseid.model.identity import CUDA
from perseid.model.intervals import interval_columns, interval_values
from perseid.model.outputs import CLASS, Z_PRED, OutputColumn
from perseid.pipeline.columns import MISSING_INPUT, NO_ANSWER, PartitionResult, Stamp
from perseid.pipeline.feed import (
    AHEAD,
    BLOCK_BYTES,
    GPU_AHEAD,
    GPU_BLOCK_BYTES,
    Begun,
    Block,
    Ended,
    Failed,
    Feed,
)
from perseid.pipeline.ids import as_kind, kind_of
from perseid.pipeline.items import PartitionRef, WorkItem
from perseid.pipeline.label_names import label_names, label_numbers
from perseid.pipeline.model_inputs import INPUT, other_columns, with_inputs
from perseid.pipeline.parquet_writer import ParquetType
from perseid.pipeline.pdf_checks import check_columns, check_values
from perseid.pipeline.survey_columns import carried, conform, read_options
from perseid.pipeline.timeline import Timeline
from perseid.science import group_columns
from perseid.storage import Storage
from perseid.survey.bytesource import FetchStats
from perseid.survey.column_spec import ColumnSpec
from perseid.survey.content import join
from perseid.survey.missing import NO_SENTINELS, MissingValues

if TYPE_CHECKING:
    from perseid.model.runtime import Prediction, Predictor
    from perseid.model.signature import ModelSignature

NOTHING = np.empty(0, np.int64)
"""Selects no columns of the features."""
Progress = Callable[[int], None]
"""Called with the number of rows predicted so far."""


class Inference:
    """The predictions of one attempt at a rank, and its counts.

    Raises `BadInputError` if the model has no features of the kind that the item scores by.
    """

    def __init__(self, item: WorkItem, runtime: Predictor | None, clock: Timeline) -> None:
        self._item, self._runtime, self._clock = item, runtime, clock
        self._kept, groups = _kept_features(item, runtime)
        outputs = (Z_PRED,) if runtime is None else _output_columns(item, runtime.signature)
        self._labels = label_names(outputs, item.options.label_names or {})
        self._intervals = interval_columns(outputs, item.intervals)
        outputs = (*outputs, *self._intervals)
        outputs = (*outputs, *(() if runtime is None else check_columns(runtime.signature)))
        self.stamp = Stamp(item.run_id, item.rank, groups, outputs)
        self.partitions: list[dict[str, object]] = []
        """Key, number of rows and number of bytes of each partition that was read."""
        self.failed: list[dict[str, str]] = []
        """Key and error of each partition that could not be read."""
        self.fetched = FetchStats()
        self.rows = self.flagged = self.batches = self.bits = 0
        self.missing = dict.fromkeys(("input", "redshift", "object_id", "label"), 0)
        """Number of rows that lack an input of the model, a redshift, an id or a label; the last
        three are counted only in partitions that have such a column."""
        self._ids: ParquetType | None = None
        self.model_seconds = 0.0

    def results(self, progress: Progress) -> Iterator[PartitionResult]:
        """One result per partition, in order; failed partitions appear only in `failed`."""
        if self._runtime is None:
            return
        part, runtime = None, self._runtime
        groups = runtime.signature.feature_groups
        embedding = group_columns(groups, "embedding") if "embedding" in groups else NOTHING
        outputs = self.stamp.output_columns
        on_gpu = runtime.identity.device == CUDA
        waiting: deque[Callable[[], PartitionResult | None]] = deque()
        with self._feed(runtime, on_gpu) as feed:
            for step in feed:
                match step:
                    case Begun():
                        part = _Part(step.ref, step.rows, self._kept, outputs, embedding)
                    case Block():
                        assert part is not None
                        finish = self._begin(runtime, part, step, progress)
                        # A GPU computes this block while the previous one is finished.
                        yield from _done(waiting)
                        waiting.append(finish)
                        del finish  # it holds the block and the partition's arrays
                    case Ended():
                        assert part is not None
                        waiting.append(partial(self._finished, part, step.stats))
                        # Freed before the next partition's arrays, which are as large, are created.
                        part = None
                    case Failed():
                        self.failed.append({"key": step.ref.key, "error": step.error})
                if not on_gpu:
                    yield from _done(waiting)
            yield from _done(waiting)
            self._clock.add("fetch", feed.spans)

    def _feed(self, runtime: Predictor, on_gpu: bool) -> Feed:
        item = self._item
        return Feed(
            Storage(item.data_url),
            item.partitions,
            runtime.signature,
            runtime.micro_batch,
            missing=NO_SENTINELS if item.missing is None else MissingValues.of(item.missing),
            options=with_inputs(read_options(item), runtime.signature),
            fit=item.fit,
            block_bytes=GPU_BLOCK_BYTES if on_gpu else BLOCK_BYTES,
            ahead=GPU_AHEAD if on_gpu else AHEAD,
        )

    def _begin(
        self, runtime: Predictor, part: _Part, block: Block, progress: Progress
    ) -> Callable[[], None]:
        """Begin with a block; what is returned waits for its prediction and fills in its rows."""
        images, magnitudes = block.cutouts.images, block.cutouts.magnitudes
        columns = other_columns(runtime.signature, block.cutouts)
        # The model still gets the flagged rows, as zeros, because a micro-batch has a fixed shape;
        # their results are dropped in `fill`.
        if block.flag.any():  # infinities must not reach the other rows
            good = block.flag == 0
            images = np.where(good[:, None, None, None], images, np.float32(0))
            if magnitudes is not None:
                magnitudes = np.where(good[:, None], magnitudes, 0)
            columns = {name: np.where(good, array, 0) for name, array in columns.items()}
        with self._inferring():
            wait = runtime.begin(images, magnitudes, columns)

        def finish() -> None:
            with self._inferring():
                prediction = wait()
            if self._intervals:
                z = prediction.columns[Z_PRED.name]
                around = interval_values(z, self._item.intervals or {})
                prediction = replace(prediction, columns={**prediction.columns, **around})
            checks = check_values(runtime.signature, prediction.lists, block.cutouts.redshift)
            part.fill(block.cutouts, block.flag, prediction, checks)
            progress(self.rows + part.filled)

        return finish

    @contextmanager
    def _inferring(self) -> Iterator[None]:
        start = time.perf_counter()
        with self._clock.stage("inference"):
            yield
        self.model_seconds += time.perf_counter() - start

    def _finished(self, part: _Part, stats: FetchStats) -> PartitionResult | None:
        """The partition's result; None if its columns do not match those of earlier partitions."""
        self.fetched.add(stats)
        try:
            result = part.result(carried(self._item.survey_columns), self._labels)
        except BadPartitionError as error:
            self.failed.append({"key": part.ref.key, "error": str(error)})
            return None
        if result.object_id is not None:
            self._ids = self._ids or kind_of(result.object_id)
            try:
                as_kind(result.object_id, self._ids)
            except BadInputError as error:
                self.failed.append({"key": result.key, "error": f"{result.key}: {error}"})
                return None
        self._count_missing(result)
        self.rows += len(result)
        self.flagged += result.flagged
        self.batches += -(-len(result) // self._item.batch_size)
        self.bits += 8 * part.bytes
        self.partitions.append({"key": result.key, "rows": len(result), "bytes": part.ref.size})
        return result

    def _count_missing(self, result: PartitionResult) -> None:
        self.missing["input"] += int(np.count_nonzero(result.flag == MISSING_INPUT))
        if result.z_spec is not None:
            self.missing["redshift"] += int(np.count_nonzero(~np.isfinite(result.z_spec)))
        for name in ("object_id", "label"):
            array = getattr(result, name)
            self.missing[name] += (
                int(np.ma.getmaskarray(array).sum()) if is_masked_array(array) else 0
            )


def _done(waiting: deque[Callable[[], PartitionResult | None]]) -> Iterator[PartitionResult]:
    """Do what waits, and yield the partitions that are complete then."""
    while waiting:
        result = waiting.popleft()()
        if result is not None:
            yield result
        del result  # its arrays are not needed beside the next partition's


def _kept_features(
    item: WorkItem, runtime: Predictor | None
) -> tuple[NDArray[np.int64], dict[str, int]]:
    """Slice of the model's features that the score uses, and their groups."""
    if runtime is None or item.anomaly == "none":
        return NOTHING, {}
    groups = dict(runtime.signature.feature_groups)
    chosen = group_columns(groups, item.anomaly)
    return chosen, groups if item.anomaly == "both" else {item.anomaly: len(chosen)}


def _output_columns(item: WorkItem, signature: ModelSignature) -> tuple[OutputColumn, ...]:
    """The model's columns in the catalogue; columns that the item requests as lists come last."""
    return (*signature.output_columns(), *signature.list_columns(item.lists or ()))


class _Part:
    """Columns of a partition that is being predicted, filled block by block."""

    def __init__(
        self,
        ref: PartitionRef,
        rows: int,
        kept: NDArray[np.int64],
        outputs: tuple[OutputColumn, ...],
        embedding: NDArray[np.int64],
    ) -> None:
        self._embedding = {c.name: embedding for c in outputs if c.kind == "embedding"}
        self.ref, self.kept, self._outputs = ref, kept, outputs
        self.filled = 0
        self.bytes = 0
        """Bytes of images and magnitudes read so far."""
        self._predicted: dict[str, NDArray[Any]] = {
            column.name: np.full(rows, -1, np.int32)
            if column.kind == CLASS
            else np.full((rows, column.width) if column.width else rows, np.nan, np.float32)
            for column in outputs
        }
        self._flag = np.zeros(rows, np.int32)
        self._features = np.full((rows, len(kept)), np.nan, np.float32) if len(kept) else None
        self._columns: dict[str, list[NDArray[Any]]] = {}
        self._further: dict[str, list[NDArray[Any]]] = {}

    def fill(
        self,
        cutouts: Any,
        flag: NDArray[np.int32],
        prediction: Prediction,
        checks: Mapping[str, NDArray[np.float32]],
    ) -> None:
        """Append the next rows: their survey columns, predictions, features, and the values that
        compare PDFs with known redshifts (`pdf_checks`)."""
        rows = slice(self.filled, self.filled + len(cutouts))
        features = None
        if prediction.features is not None and self._features is not None:
            features = prediction.features[:, self.kept]
        answered = _answered(len(cutouts), prediction, features)
        good = (flag == 0) & answered
        if features is not None and self._features is not None:
            # Features that are not finite would spoil the statistics of the whole survey.
            self._features[rows] = np.where(good[:, None], features, np.nan)
        for name, kept in self._predicted.items():
            values = checks[name] if name in checks else self._values(name, prediction)
            kept[rows][good] = values[good]
        self._flag[rows] = np.where((flag == 0) & ~answered, NO_ANSWER, flag)
        for name in ("object_id", "redshift", "label"):
            array = getattr(cutouts, name)
            if array is not None:
                # Copied, because the block's memory may be a map of the file, which is about to be
                # given back.
                self._columns.setdefault(name, []).append(array.copy())
        others = (one for one in cutouts.further.items() if not one[0].startswith(INPUT))
        for name, array in others:
            self._further.setdefault(name, []).append(array.copy())
        self.bytes += cutouts.images.nbytes
        if cutouts.magnitudes is not None:
            self.bytes += cutouts.magnitudes.nbytes
        self.filled += len(cutouts)

    def _values(self, name: str, prediction: Prediction) -> NDArray[Any]:
        """A column of the model: (n,), or (n, width) if it holds lists."""
        if name in self._embedding and prediction.features is not None:
            return prediction.features[:, self._embedding[name]]
        return prediction.columns[name] if name in prediction.columns else prediction.lists[name]

    def result(self, specs: Sequence[ColumnSpec], labels: Mapping[str, int]) -> PartitionResult:
        """The columns of all rows, once the partition is complete; `specs` describe the carried
        columns.

        Raises `BadPartitionError` if a carried column has another type than in the other
        partitions.
        """
        further = {s.name: join(self._further[s.name], s.dtype)
                   for s in specs if s.name in self._further}  # fmt: skip
        return PartitionResult(
            key=self.ref.key,
            z_pred=self._predicted.get(Z_PRED.name),
            flag=self._flag,
            object_id=self._column("object_id"),
            z_spec=self._column("redshift", np.dtype(np.float64)),
            label=label_numbers(self._column("label"), labels),
            features=self._features,
            carried={
                spec.name: conform(further[spec.name], spec, self.ref.key)
                for spec in specs
                if spec.name in further
            },
            outputs={n: a for n, a in self._predicted.items() if n != Z_PRED.name},
            output_columns=self._outputs,
        )

    def _column(self, name: str, dtype: np.dtype[Any] | None = None) -> NDArray[Any] | None:
        parts = self._columns.get(name)
        if parts is None:
            return None
        whole = join(parts, parts[0].dtype)
        return whole if dtype is None else whole.astype(dtype)


def _answered(
    rows: int, prediction: Prediction, features: NDArray[np.float32] | None
) -> NDArray[np.bool_]:
    """Whether all numbers that the run keeps of a row are finite, (n,)."""
    answered = np.ones(rows, np.bool_)
    for array in prediction.columns.values():
        answered &= np.isfinite(array)
    if features is not None:
        answered &= np.isfinite(features).all(axis=1)
    return answered
