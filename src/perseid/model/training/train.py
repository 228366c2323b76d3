"""Train an AstroMAE on a survey: masked-autoencoder pre-training, then training on redshifts.

The network and its phases are those of the published model; see `trainer` for the loop, `data` for
the split by object, and `train_options` for the options.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from perseid.errors import BadInputError
from perseid.model.training.astromae import AstroMAE, from_weights, to_weights
from perseid.model.training.checkpoint import check_same, load_checkpoint, save_checkpoint
from perseid.model.training.data import TrainingSet, gather
from perseid.model.training.data_parallel import DataParallel
from perseid.model.training.device_rows import fitting_batch
from perseid.model.training.train_options import (
    BY_MEMORY,
    Report,
    Stop,
    TrainEvent,
    TrainOptions,
    fitted_config,
)
from perseid.model.training.trainer import Trainer
from perseid.model.weights import Weights, save_weights
from perseid.plaintext import option
from perseid.science.metrics import RedshiftMetrics, redshift_metrics
from perseid.survey.cutouts import Cutouts
from perseid.survey.splits import TEST, TRAIN, VALIDATION

WEIGHTS = "weights.npz"
"""Name of the result in the output folder: the neutral weight file that ``perseid model export``
takes."""
HISTORY = "history.json"
"""Name of the file with options, configuration, counts, losses per epoch and metrics of the
held-out objects."""
SCRATCH = "cutouts.scratch"

__all__ = ["HISTORY", "WEIGHTS", "TrainEvent", "TrainOptions", "TrainResult", "train"]


@dataclass(frozen=True)
class TrainResult:
    """Result of a training."""

    weights: Weights
    test: RedshiftMetrics
    """Metrics on the held-out plain objects, which were used neither for training nor for any
    choice."""
    history: dict[str, Any]
    """The content of ``history.json``."""


def train(
    partitions: Iterable[Cutouts],
    folder: Path,
    options: TrainOptions,
    *,
    device: str = "auto",
    resume: bool = False,
    rows: int | None = None,
    start: Weights | None = None,
    warm: bool = False,
    parallel: bool = False,
    report: Report = lambda event: None,
    stop: Stop = lambda: False,
) -> TrainResult:
    """Train on a survey and write `WEIGHTS`, `HISTORY` and the checkpoint to `folder`.

    Parameters
    ----------
    partitions
        The partitions of the survey.
    folder
        The output folder; created if it does not exist.
    device
        ``cpu``, ``cuda``, or ``auto``, which is ``cuda`` if there is a GPU.
    resume
        Continue from the folder's checkpoint, if there is one. On the same device and with the same
        number of threads, the result has the same bits as without the interruption.
    rows
        Number of usable rows to use at most.
    start
        Weights of an earlier training, with whose encoder and decoder this one starts.
    warm
        Start with all weights of `start`, including the layers that predict the redshift.
    parallel
        Train with all ranks of ``torch.distributed``'s default process group. Each calls this
        function with the same arguments and computes its share of every batch; rank 0 writes the
        files.
    report, stop
        `report` is called after each step; `stop` is asked between steps whether to stop.

    Raises
    ------
    BadInputError
        The options, the survey or the checkpoint cannot be used.
    RunInterruptedError
        `stop` returned True; the checkpoint holds the whole state.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rank = dist.get_rank() if parallel else 0
    scratch = folder / (f"{SCRATCH}-{rank}" if rank else SCRATCH)
    try:
        data = gather(partitions, scratch, rows=rows)
        place = _device(device, options)
        torch.manual_seed(options.seed)
        if options.batch == BY_MEMORY:
            config = start.config if start is not None else fitted_config(options, data)
            rows = len(data.rows(TRAIN, supervised=bool(options.epochs)))
            options = replace(options, batch=fitting_batch(config, rows, place))
        ranks = DataParallel(options.batch) if parallel else None
        model = _begun(options, data, start, warm)
        trainer = Trainer(model, data, options, place, trained=warm, ranks=ranks)
        return _trained(trainer, folder, resume, report, stop)
    finally:
        scratch.unlink(missing_ok=True)


def _begun(options: TrainOptions, data: TrainingSet, start: Weights | None, warm: bool) -> AstroMAE:
    """The network before the first step."""
    _check_rows(data, options)
    learned = options.pretrain_epochs or not options.frozen or options.magnitudes_only
    if start is None and options.epochs and not learned:
        raise BadInputError(
            "the encoder would stay as it was drawn at random: give pretrain epochs, a start, or "
            "unfreeze it"
        )
    if start is None:
        return AstroMAE(fitted_config(options, data))
    former = from_weights(start)
    if warm:
        return former
    model = AstroMAE(start.config)
    parts = ("cls_token", "patch_embed", "blocks", "decoder")
    kept = {n: t for n, t in former.state_dict().items() if n.split(".")[0] in parts}
    model.load_state_dict(kept, strict=False)
    return model


def _trained(
    trainer: Trainer, folder: Path, resume: bool, report: Report, stop: Stop
) -> TrainResult:
    data, options, config = trainer.data, trainer.options, trainer.model.config
    same = {"options": options.to_json(), "config": config.to_json(), "survey": _fingerprint(data)}
    ranks = trainer.ranks
    first = ranks is None or ranks.rank == 0
    if ranks is not None:
        ranks.check_same(json.dumps(same, sort_keys=True), "the options or the survey")
    state = load_checkpoint(folder) if resume and first else None
    if ranks is not None:
        state = ranks.from_first(state)
    if state is not None:
        check_same(state, same, folder)
        trainer.restore(state)

    def save(now: Trainer) -> None:
        if first:
            save_checkpoint(folder, now.state() | same)

    trainer.run(report, stop, save)
    held_out = data.rows(TEST, supervised=True)
    test = redshift_metrics(trainer.predict(held_out), data.redshift[held_out])
    weights = to_weights(trainer.finished())
    history = {
        **{key: value for key, value in same.items() if key != "config"},
        "config": config.to_dict(),
        "rows": _counts(data),
        "epochs": trainer.progress.history,
        "test": test.to_json() if test.n else None,
    }
    if first:
        save_weights(weights, folder / WEIGHTS)
        _write_json(folder / HISTORY, history)
    return TrainResult(weights, test, history)


def _device(name: str, options: TrainOptions) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise BadInputError(f"device cuda: torch sees no GPU here; use {option('device', 'cpu')}")
    if name != "cuda" and options.precision != "float32":
        raise BadInputError(
            f"precision {options.precision} needs a GPU: leave {option('precision')} out"
        )
    if name == "cuda":
        # "highest" is true float32; "high" lets products round their factors to tf32.
        exact = options.precision == "float32"
        torch.set_float32_matmul_precision("highest" if exact else "high")
        torch.backends.cudnn.allow_tf32 = not exact
        torch.backends.cudnn.benchmark = True  # worthwhile, since every step has the same shapes
    return torch.device(name)


def _check_rows(data: TrainingSet, options: TrainOptions) -> None:
    supervised = bool(options.epochs)
    for split, name in ((TRAIN, "training"), (VALIDATION, "validation")):
        have = len(data.rows(split, supervised=supervised))
        least = options.batch if split == TRAIN else 1
        if have < least:
            what = "plain objects with a redshift" if supervised else "usable rows"
            held_out = len(data.rows(TEST, supervised=supervised))
            raise BadInputError(
                f"the survey has {have} {what} for {name} (and {held_out} held out), at least "
                f"{least} are needed (batch {options.batch}): give a larger survey (one made with "
                f"{option('held_out', True)} has none to train on), a smaller batch, or "
                f"{option('epochs', 0)} to pre-train only"
            )


def _counts(data: TrainingSet) -> dict[str, int]:
    splits = {"training": TRAIN, "validation": VALIDATION, "held_out": TEST}
    return {
        "usable": len(data.redshift),
        "dropped": data.dropped,
        "labelled_anomalies": int(np.sum(data.label != 0)),
        **{name: int(np.sum(data.split == split)) for name, split in splits.items()},
    }


def _fingerprint(data: TrainingSet) -> str:
    digest = hashlib.sha256()
    for array in (data.magnitudes, data.redshift, data.label, data.split):
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(np.ascontiguousarray(data.images[::97]).tobytes())
    return digest.hexdigest()[:16]


def _write_json(path: Path, value: Any) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(value, indent=1) + "\n")
    fresh.replace(path)
