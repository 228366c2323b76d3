"""``perseid train``: pre-train and train a network on a survey, with resumable checkpoints."""

from __future__ import annotations

import argparse
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

from perseid.api.terminal import console
from perseid.cli import training_ranks
from perseid.cli.awsarguments import add_storage_arguments
from perseid.cli.surveys import (
    add_columns_argument,
    add_layout_argument,
    add_missing_argument,
    found,
    read_options,
)
from perseid.errors import BadInputError
from perseid.libraries import library_error
from perseid.survey.missing import MissingValues

if TYPE_CHECKING:
    from perseid.model.training.train import TrainEvent, TrainResult

OPTIONS = (
    ("pretrain-epochs", int, "epochs of training the masked autoencoder (default 30)"),
    ("epochs", int, "epochs of training the redshift; 0 only pre-trains (default 25)"),
    ("lr", float, "peak learning rate of the redshift (default 0.002)"),
    ("pretrain-lr", float, "peak learning rate of the autoencoder (default 0.001)"),
    ("image-lr", float, "rate of the image branches relative to --lr (default 1)"),
    ("jitter", float, "noise added to magnitudes; 1 is half of SDSS's errors (default 1)"),
    ("mask-ratio", float, "share of patches that the autoencoder predicts (default 0.5)"),
    ("seed", int, "the same seed gives the same weights on one machine (default 0)"),
)
"""Options that are passed on under the same names."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``perseid train``."""
    add = parser.add_argument
    add("survey", metavar="SURVEY", help="a file of cutouts, or a folder or URL of such files")
    add("out", metavar="OUT", type=Path, help="folder for weights.npz, history.json, checkpoint")
    for name, kind, text in OPTIONS:
        add(f"--{name}", type=kind, metavar="N" if kind is int else "X", help=text)
    add_columns_argument(parser)
    add_layout_argument(parser)
    add_missing_argument(parser)
    add("--config", metavar="NAME", help="small or published (default small)")
    add("--batch", type=_batch, metavar="N", help="rows per step, or auto: as many as fit on a GPU "
                                                  "(default 128)")  # fmt: skip
    add("--precision", choices=("float32", "tf32", "bf16"),
        help="precision of matrix products on a GPU; bf16 only for the autoencoder (default "
             "float32)")  # fmt: skip
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="default: a GPU if there is one",
    )
    add("--threads", type=int, metavar="N", help="processor threads (default: torch's choice)")
    add("--rows", type=int, metavar="N", help="take only the first N usable rows")
    add("--start", metavar="WEIGHTS", help="start with the encoder of an earlier training")
    add("--warm", action="store_true", help="start with all weights of --start")
    add("--unfreeze", action="store_true", help="also train the encoder on the redshift")
    add("--magnitudes-only", action="store_true", help="the baseline: images switched off")
    add("--resume", action="store_true", help="continue from OUT's checkpoint, if there is one")
    add("--world-size", type=int, metavar="N",
        help="ranks that share every batch: processes of this machine, the tasks of a Slurm step, "
        "or ranks that PERSEID_RANK and PERSEID_RENDEZVOUS name")  # fmt: skip
    add("--json", action="store_true", help="print history.json")
    add_storage_arguments(parser)


def _batch(text: str) -> int:
    from perseid.model.training.train_options import BY_MEMORY

    return BY_MEMORY if text == "auto" else int(text)


def run(args: argparse.Namespace) -> int:
    """Train with a progress bar on stderr; the held-out metrics go to stdout."""
    chosen = {name.replace("-", "_"): getattr(args, name.replace("-", "_")) for name, *_ in OPTIONS}
    chosen |= {"config": args.config, "magnitudes_only": args.magnitudes_only or None}
    chosen |= {"batch": args.batch, "precision": args.precision}
    chosen |= {"frozen": False if args.unfreeze else None}
    if args.world_size is not None and training_ranks.starts_ranks(args.world_size):
        return training_ranks.start(args.world_size, args.threads)
    with training_ranks.joined(args.world_size) as rank:
        result = _train(args, {name: value for name, value in chosen.items() if value is not None})
    if rank:
        return 0
    if args.json:
        print(json.dumps(result.history | {"weights": str(args.out / "weights.npz")}, indent=1))
    else:
        _say(result, args.out)
    return 0


def _train(args: argparse.Namespace, chosen: dict[str, Any]) -> TrainResult:
    try:
        import torch
    except ImportError as error:
        raise library_error(
            error, "training needs torch, which is not installed: pip install 'perseid[train]'"
        ) from error
    from perseid.model.training.data import blocks
    from perseid.model.training.train import TrainOptions, train
    from perseid.model.weights import load_weights

    if args.threads is not None:
        if args.threads < 1:
            raise BadInputError(f"--threads is {args.threads}: at least 1 is needed")
        torch.set_num_threads(args.threads)
    if args.rows is not None and args.rows < 1:
        raise BadInputError(f"--rows is {args.rows}: at least 1 is needed")
    _make_folder(args.out)
    options = TrainOptions(**chosen)
    listing = found(args.survey)
    start = load_weights(args.start) if args.start else None
    # One progress bar for all ranks, drawn by rank 0.
    first = os.environ.get("PERSEID_RANK", "0") == "0" or args.world_size is None
    with _bar() if first else nullcontext(_quiet) as report, _stop_on_signal() as stop:
        return train(
            blocks(listing, MissingValues.parse(args.missing or ()), read_options(args)),
            args.out,
            options,
            device=args.device,
            resume=args.resume,
            rows=args.rows,
            start=start,
            warm=args.warm and start is not None,
            parallel=args.world_size is not None,
            report=report,
            stop=stop,
        )


def _quiet(event: TrainEvent) -> None:
    """Show nothing: rank 0 shows the progress of all ranks."""


def _make_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise BadInputError(f"{out} is a file: OUT must be a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInputError(f"the folder {out} cannot be made: {error.strerror}") from error


@contextmanager
def _bar() -> Iterator[Callable[[TrainEvent], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[figures]}"),
        # On a line of 80 characters the bar gets shorter, not the time.
        TimeRemainingColumn(table_column=Column(min_width=8, no_wrap=True)),
    )
    with Progress(*columns, console=console()) as progress:
        tasks: dict[str, TaskID] = {}

        def report(event: TrainEvent) -> None:
            if event.phase not in tasks:
                name = "autoencoder" if event.phase == "pretrain" else "redshift"
                tasks[event.phase] = progress.add_task(name, total=None, figures="")
            figures = f"epoch {event.epoch}/{event.epochs}  loss {event.loss:.4f}"
            if event.validation is not None:
                what = "masked error" if event.phase == "pretrain" else "MAE"
                figures += f"  validation {what} {event.validation:.5f}"
            done = (event.epoch - 1) * event.steps + event.step
            total = event.epochs * event.steps
            task = tasks[event.phase]
            progress.update(task, completed=done, total=total, figures=figures)

        yield report


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Make Ctrl-C and SIGTERM request an orderly end; a second one ends immediately."""
    asked = threading.Event()

    def ask(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    former = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _say(result: TrainResult, out: Path) -> None:
    rows, test = result.history["rows"], result.test
    print(
        f"{rows['usable']:,} usable objects: {rows['training']:,} for training, "
        f"{rows['validation']:,} for validation, {rows['held_out']:,} held out; "
        f"{rows['dropped']:,} dropped (not finite)"
    )
    if test.n and result.history["options"]["epochs"]:
        print(
            f"held-out plain objects: {test.n:,}; MAE {test.mae:.5f}, MSE {test.mse:.6f}, bias "
            f"{test.bias:+.5f}, NMAD {test.nmad:.5f}, R2 {test.r2:.4f}, |dz| > "
            f"{test.outlier_threshold:g}: {100 * test.outliers:.2f} %"
        )
    print(f"{out / 'weights.npz'}: perseid model export makes the file that workers load")
