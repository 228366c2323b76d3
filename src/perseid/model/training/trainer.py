"""The two phases of a training: first the masked autoencoder, then the redshift.

Every random number is derived from (seed, phase, epoch, step), so a training that continues from a
checkpoint ends with the same bits as one that was never stopped.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from perseid.errors import RunInterruptedError
from perseid.model.training.astromae import AstroMAE, MaskedAutoencoder
from perseid.model.training.data import TrainingSet
from perseid.model.training.data_parallel import DataParallel
from perseid.model.training.device_rows import Rows, rows_on
from perseid.model.training.frozen_encoder import FrozenEncoder
from perseid.model.training.step_graph import Inputs, StepGraph
from perseid.model.training.steps import (
    SYMMETRIES,
    LossSum,
    RunningMean,
    WhitenedLinear,
    color_parameters,
    encoder_parameters,
    head_only,
    image_parameters,
    rate,
    redshift_loss,
)
from perseid.model.training.train_options import Report, Stop, TrainEvent, TrainOptions
from perseid.plaintext import option
from perseid.survey.splits import TRAIN, VALIDATION

PHASES = ("pretrain", "redshift")
CHECKPOINT_SECONDS = 60.0
"""Seconds after which a checkpoint is written within an epoch; there is also one at the end of each
epoch."""
EVALUATION_BATCH = 256
GPU_EVALUATION_BATCH = 2048
COMPILE_ROWS = 20_000_000
"""Rows that a phase still has to learn from, over all epochs, for which ``torch.compile`` pays: on
an H100 it took 45 s and saved 12 s per million rows."""
GPU_EPOCH_SECONDS = 10.0
"""On a GPU, the end of an epoch writes no checkpoint if the last one is younger than this: an epoch
may take less time than its checkpoint."""
GPU_REPORT_SECONDS = 0.5
"""Steps between two reads of the loss on a GPU, since each read waits for all steps before it."""


@dataclass
class TrainingProgress:
    """Progress of a training as plain values; part of the checkpoint."""

    phase: int = 0
    """Index in `PHASES`; 2 when both phases are done."""
    epoch: int = 0
    """Number of epochs done in this phase."""
    step: int = 0
    """Number of steps done in this epoch."""
    loss_sum: float = 0.0
    """Sum of the losses over this epoch's steps."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One entry per epoch."""


Save = Callable[["Trainer"], None]
"""Function that writes the trainer's state to its checkpoint."""


class Trainer:
    """One training in memory; `run` does what is left of it and calls `save` from time to time.

    `trained` says that the model has the weights of an earlier training, from which this one
    continues. `ranks` are other processes that take part in this training, each with its share of
    every batch.
    """

    def __init__(
        self,
        model: AstroMAE,
        data: TrainingSet,
        options: TrainOptions,
        device: torch.device,
        *,
        trained: bool = False,
        ranks: DataParallel | None = None,
    ) -> None:
        self.model, self.data, self.options, self.device = model, data, options, device
        self.ranks = ranks
        self.progress = TrainingProgress()
        self.best: dict[str, Tensor] = {}
        self.best_validation = float("inf")
        self._gpu = device.type == "cuda"
        self._evaluation = GPU_EVALUATION_BATCH if self._gpu else EVALUATION_BATCH
        self._saved = time.monotonic()
        self.rows = rows_on(data, device)
        layers = model.inception_model.magnitude_block
        first = layers[0]
        assert isinstance(first, nn.Linear)
        magnitudes = torch.from_numpy(data.magnitudes[data.rows(TRAIN, supervised=False)])
        layers[0] = WhitenedLinear(first, model.scale_magnitude(magnitudes), trained=trained)
        if ranks is not None:
            ranks.prepare(model)
        model.to(device)
        inception = model.inception_model.vis_inception
        # convolutions over few channels: 1.7 times faster on a CPU
        inception.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._begin_phase()

    def run(self, report: Report, stop: Stop, save: Save) -> None:
        """Train until done; raises `RunInterruptedError`, after writing a checkpoint, if `stop`
        returns True."""
        while self.progress.phase < len(PHASES):
            while self.progress.epoch < self._epochs():
                self._epoch(report, stop, save)
                if not self._gpu or time.monotonic() - self._saved > GPU_EPOCH_SECONDS:
                    self._save(save)
            self._end_phase()
            self.progress.phase, self.progress.epoch = self.progress.phase + 1, 0
            self._begin_phase()
            self._save(save)

    def _save(self, save: Save) -> None:
        save(self)
        self._saved = time.monotonic()

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint; `restore` accepts it."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict() if self.optimizer else None,
            "mean": self.mean.mean,
            "mean_steps": self.mean.steps,
            "best": self.best,
            "best_validation": self.best_validation,
            "progress": dict(self.progress.__dict__),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state."""
        self.progress = TrainingProgress(**state["progress"])
        self.model.load_state_dict(state["model"])
        self._begin_phase()
        if self.optimizer and state["optimizer"]:
            self.optimizer.load_state_dict(state["optimizer"])
        self.mean.steps = int(state["mean_steps"])
        self.mean.mean = {name: t.to(self.device) for name, t in state["mean"].items()}
        self.best = {name: t.to(self.device) for name, t in state["best"].items()}
        self.best_validation = float(state["best_validation"])

    def finished(self) -> AstroMAE:
        """The trained model on the CPU, with its magnitude layer converted back to a plain one."""
        layers = self.model.inception_model.magnitude_block
        first = layers[0]
        assert isinstance(first, WhitenedLinear)
        layers[0] = first.folded()
        if self.options.magnitudes_only:
            joined = self.model.concat_block[0]
            assert isinstance(joined, nn.Linear)
            with torch.no_grad():  # so that the model ignores images wherever it runs
                joined.weight[:, : 2 * self.model.config.projection] = 0.0
        return self.model.cpu().eval()

    def predict(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Redshifts (n,) of rows, predicted with the current weights."""
        self.model.eval()
        parts = []
        with torch.no_grad():
            for start in range(0, len(rows), self._evaluation):
                part = rows[start : start + self._evaluation]
                seen = self._seen(part, 0)
                parts.append(self._redshift(*seen, self.rows.magnitudes(part)).squeeze(1).cpu())
        return torch.cat(parts).numpy() if parts else np.empty(0, np.float32)

    # One phase

    @property
    def _phase(self) -> str:
        return PHASES[min(self.progress.phase, len(PHASES) - 1)]

    def _epochs(self) -> int:
        if self._phase == "redshift":
            return self.options.epochs
        useless = self.model.decoder is None or self.options.magnitudes_only
        return 0 if useless else self.options.pretrain_epochs

    def _begin_phase(self) -> None:
        o = self.options
        self.optimizer: torch.optim.Optimizer | None = None
        self._encoder = FrozenEncoder(self.model, self.rows, self._evaluation)
        self._graph: StepGraph | None = None
        self.model.zero_grad(set_to_none=True)
        groups: list[dict[str, Any]]
        if self._phase == "pretrain":
            groups = [{"params": encoder_parameters(self.model), "peak": o.pretrain_lr}]
        else:
            groups = [{"params": color_parameters(self.model), "peak": o.lr}]
            if not o.magnitudes_only:
                peak = o.lr * o.image_lr
                groups.append({"params": image_parameters(self.model), "peak": peak})
                if not o.frozen:
                    groups.append({"params": encoder_parameters(self.model), "peak": 0.1 * peak})
        fused = True if self._gpu else None
        self.optimizer = torch.optim.AdamW(
            groups, lr=o.lr, weight_decay=o.weight_decay, fused=fused
        )
        self._tensors = self.model.state_dict()  # no copies: steps change them in place
        self._objective: Callable[..., Tensor] = self._loss
        if self.ranks is not None and self.progress.phase < len(PHASES) and self._epochs():
            self._objective = self.ranks.wrap(self.model, self._loss)
        self.mean = RunningMean(o.ema, self._tensors)
        self.best, self.best_validation = {}, float("inf")

    def _end_phase(self) -> None:
        """End a phase: the mean weights of its best epoch become the model's."""
        if self.best:
            self.model.load_state_dict(self.best)
        if self._phase == "pretrain" and self.model.decoder is not None and self._epochs():
            self.model.eval()
            rows = self.data.rows(TRAIN, supervised=False)[:4096]
            MaskedAutoencoder(self.model).measure_residual_scale(self.rows.images(rows, 0))

    def _epoch(self, report: Report, stop: Stop, save: Save) -> None:
        p, rows = self.progress, self._training_rows()
        order = self.rows.order(self._generator(p.epoch, 0).permutation(rows))
        steps = max(1, len(rows) // self.options.batch)
        begun = time.monotonic()
        losses, told = LossSum(p.loss_sum), 0.0
        every = GPU_REPORT_SECONDS if self._gpu else 0.0
        self._train_mode()
        while p.step < steps:
            if self._stopped(stop):
                p.loss_sum = losses.value
                self._save(save)
                raise RunInterruptedError(
                    f"training stopped in epoch {p.epoch + 1} of {self._phase}: "
                    f"{option('resume', True)} goes on"
                )
            part = order[p.step * self.options.batch : (p.step + 1) * self.options.batch]
            losses.add(self._step(part, p.epoch * steps + p.step, steps * self._epochs()))
            p.step += 1
            now = time.monotonic()
            if now - told >= every:  # reading the loss waits for the GPU
                p.loss_sum, told = losses.value, now
                report(self._event(steps))
            if now - self._saved > CHECKPOINT_SECONDS:
                p.loss_sum = losses.value
                self._save(save)
        p.loss_sum = losses.value if self.ranks is None else self.ranks.mean(losses.value)
        self._close_epoch(steps, time.monotonic() - begun, report)

    def _stopped(self, stop: Stop) -> bool:
        """Whether this rank or any other was asked to stop."""
        return stop() if self.ranks is None else self.ranks.any(stop())

    def _close_epoch(self, steps: int, seconds: float, report: Report) -> None:
        p = self.progress
        validation = self._validate()
        report(self._event(steps, validation))
        p.history.append(
            {
                "phase": self._phase,
                "epoch": p.epoch + 1,
                "loss": p.loss_sum / steps,
                "validation": validation,
                "seconds": round(seconds, 3),
            }
        )
        p.epoch, p.step, p.loss_sum = p.epoch + 1, 0, 0.0

    def _event(self, steps: int, validation: float | None = None) -> TrainEvent:
        p = self.progress
        mean = p.loss_sum / max(p.step, 1)
        return TrainEvent(self._phase, p.epoch + 1, self._epochs(), p.step, steps, mean, validation)

    def _step(self, rows: Rows, step: int, steps: int) -> Tensor:
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate(step, steps)
        loss = self._gradients(rows, self._generator(self.progress.epoch, 1 + self.progress.step))
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        self.mean.update(self._tensors)
        return loss.detach()

    def _gradients(self, rows: Rows, random: np.random.Generator) -> Tensor:
        """The loss of one step, whose gradients the parameters then have."""
        if self._gpu and self.ranks is None:
            inputs = self._inputs(rows, random)
            if self._graph is None:
                objective = self._objective_of
                compiled = torch.compile(objective) if self._long() else objective
                self._graph = StepGraph(compiled, inputs, self.model)
            return self._graph(inputs)
        loss = self._objective(rows, random)
        self.model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def _long(self) -> bool:
        """Whether so much is left of this phase that compiling its step pays, and it can be."""
        rows = len(self._training_rows()) * (self._epochs() - self.progress.epoch)
        compiler = find_spec("triton") and any(map(shutil.which, ("cc", "gcc", "clang")))
        return rows > COMPILE_ROWS and bool(compiler)

    def _loss(self, rows: Rows, random: np.random.Generator) -> Tensor:
        return self._objective_of(*self._inputs(rows, random))

    def _inputs(self, rows: Rows, random: np.random.Generator) -> Inputs:
        """What the loss of these rows is computed from; random numbers are drawn here."""
        symmetry, batch = int(random.integers(SYMMETRIES)), len(rows)
        share = slice(None) if self.ranks is None else self.ranks.share(batch)
        if self._phase == "pretrain":
            generator = self.rows.generator(int(random.integers(1 << 62)))
            scaled = self.model.scale_image(self.rows.images(rows[share], symmetry))
            masks = MaskedAutoencoder(self.model).random_masks(
                batch, self.options.mask_ratio, generator, self.device
            )
            return (scaled, *(mask[share] for mask in masks))
        jittered = self.rows.jittered(rows, self.options.jitter, random)[share]
        rows = rows[share]
        return (*self._seen(rows, symmetry), jittered, self.rows.redshift(rows))

    def _objective_of(self, *inputs: Any) -> Tensor:
        """The loss of `_inputs`."""
        if self._phase == "pretrain":
            mixed = self.options.precision == "bf16"
            with torch.autocast(self.device.type, torch.bfloat16, enabled=mixed):
                return MaskedAutoencoder(self.model).masked_error(*inputs)
        *seen, redshift = inputs
        return redshift_loss(self._redshift(*seen), redshift)

    def _validate(self) -> float:
        """Compute the error on the validation rows with the mean weights, and keep the best
        weights."""
        trained = {name: t.clone() for name, t in self.model.state_dict().items()}
        self.model.load_state_dict(self.mean.mean)
        self.model.eval()
        rows = self.data.rows(VALIDATION, supervised=self._phase == "redshift")
        value = self._masked_error(rows) if self._phase == "pretrain" else self._mae(rows)
        if not len(rows) or value <= self.best_validation:
            self.best = {name: t.clone() for name, t in self.mean.mean.items()}
            self.best_validation = value
        self.model.load_state_dict(trained)
        return value

    def _mae(self, rows: NDArray[np.int64]) -> float:
        return float(np.mean(np.abs(self.predict(rows) - self.data.redshift[rows])))

    def _masked_error(self, rows: NDArray[np.int64]) -> float:
        total = 0.0
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for start in range(0, len(rows), self._evaluation):
                part = rows[start : start + self._evaluation]
                autoencoder = MaskedAutoencoder(self.model)
                loss = autoencoder(self.rows.images(part, 0), self.options.mask_ratio, generator)
                total += float(loss) * len(part)
        return total / max(len(rows), 1)

    # Rows to tensors

    def _training_rows(self) -> NDArray[np.int64]:
        return self.data.rows(TRAIN, supervised=self._phase == "redshift")

    def _generator(self, epoch: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.options.seed, self.progress.phase, epoch, stream])

    def _train_mode(self) -> None:
        self.model.train()
        if self._phase == "redshift" and self.options.frozen:
            self.model.blocks.eval()  # their BatchNorm statistics stay as pre-trained

    def _seen(self, rows: Rows, symmetry: int) -> tuple[Tensor | None, Tensor | None]:
        """Scaled images, and a frozen encoder's output for them; None if they are unused."""
        if self.options.magnitudes_only:
            return None, None
        images = self.rows.images(rows, symmetry)
        scaled = self.model.scale_image(images).contiguous(memory_format=torch.channels_last)
        frozen = self.options.frozen
        return scaled, self._encoder.pooled(rows, symmetry, scaled) if frozen else None

    def _redshift(self, scaled: Tensor | None, pooled: Tensor | None, magnitudes: Tensor) -> Tensor:
        """Redshifts (n, 1) from what `_seen` returns and raw magnitudes."""
        if scaled is None:
            return head_only(self.model, magnitudes)
        if pooled is None:
            pooled = self.model.encode(scaled)[:, 1:].mean(dim=1)
        return self.model.redshift(scaled, pooled, magnitudes)
