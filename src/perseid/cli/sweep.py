"""``perseid sweep``: runs over a grid, resumable, with the published figures of it."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from perseid.cli.awsarguments import add_storage_arguments
from perseid.cli.table import add_price_arguments, chosen_prices
from perseid.engines.driver import start
from perseid.engines.local import LocalEngine
from perseid.engines.local_options import LocalOptions
from perseid.errors import BadInputError
from perseid.jsontext import parse_json
from perseid.measure.grid import DEFAULT_BATCH, WHOLE, GridCell, grid
from perseid.measure.measured_run import MeasuredRun, size_mb
from perseid.measure.present.run_tables import partition_table, run_table
from perseid.measure.present.sweep import figures, render_sweep
from perseid.measure.sources.load import load_runs
from perseid.measure.sources.load_options import LoadOptions
from perseid.pipeline import layout
from perseid.pipeline.events import Event
from perseid.pipeline.request import RunRequest
from perseid.storage import Location
from perseid.survey import discover, split

PARTITIONS = "partitions"
DONE = "split.json"
"""Says that a folder of partitions is whole, and of which survey."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``perseid sweep``."""
    parser.add_argument("--data", required=True, metavar="SURVEY", help="a file, folder or URL")
    parser.add_argument("--out", required=True, type=Path, help="folder of the sweep")
    parser.add_argument("--partition-sizes", type=_words, default=["25MB"], metavar="25MB,50MB",
        help="default 25MB",
    )  # fmt: skip
    parser.add_argument(
        "--data-sizes", type=_words, default=[WHOLE], metavar="1GB,2GB",
        help="ceil(data / partition) partitions each; default: all",
    )  # fmt: skip
    parser.add_argument(
        "--world-sizes", type=_worlds, default=[None], metavar="4,8,files",
        help="ranks; `files` (default) is one a partition",
    )  # fmt: skip
    parser.add_argument("--batch-sizes", type=_numbers, default=[DEFAULT_BATCH], metavar="32,512",
        help="rows a model call, at most (default 512)",
    )  # fmt: skip
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="repetitions (3)")
    parser.add_argument("--model", default="default", help="exported model")
    parser.add_argument("--workers", type=int, metavar="N", help="processes at once")
    parser.add_argument("--threads", type=int, default=1, help="threads of a worker")
    add_price_arguments(parser)
    add_storage_arguments(parser)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give whole numbers, such as 32,512") from None


def _worlds(text: str) -> list[int | None]:
    try:
        return [None if word == "files" else int(word) for word in _words(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give numbers or files, such as 4,8,files"
        ) from None


def run(args: argparse.Namespace) -> int:
    """Run what is missing of the grid, then write tables, figures and the page."""
    cells = grid(
        args.partition_sizes, args.data_sizes, args.batch_sizes, args.world_sizes, args.repeat
    )
    folders = {size: _partitioned(args.data, args.out, size) for size in args.partition_sizes}
    for cell in cells:
        _check(cell, folders[cell.partition])
    options = LocalOptions(workers=args.workers, threads=args.threads)
    for number, cell in enumerate(cells, start=1):
        state = _run_cell(cell, folders[cell.partition], args, options)
        print(f"{number}/{len(cells)}  {cell.path}: {state}", flush=True)
    runs = load_runs([str(args.out / cell.path) for cell in cells], LoadOptions(args.arch))
    for path in _publish(args, runs):
        print(f"wrote {path}")
    incomplete = sum(not run.is_complete for run in runs)
    if incomplete:
        print(f"{incomplete} of {len(runs)} runs are incomplete; the same command tries them again")
    return 3 if incomplete else 0


def _partitioned(survey: str, out: Path, size: str) -> Path:
    """The survey in partitions of a size, cut once for all runs of the sweep."""
    if not size_mb(size):
        raise BadInputError(f"{size!r} is not a size: write it like 25MB or 1GB")
    folder = out / PARTITIONS / size
    mark = folder / DONE
    source = Location.parse(survey).url
    if mark.is_file():
        known = parse_json(mark.read_text())["survey"]
        if known != source:
            raise BadInputError(
                f"{folder} holds partitions of {known}, not of {source}: choose another --out"
            )
        return folder
    done = split(survey, folder, size=size, overwrite=True)
    mark.write_text(json.dumps({"survey": source, "rows": done.rows, "files": done.partitions}))
    print(f"split into {done.partitions} partitions of {size}", flush=True)
    return folder


def _check(cell: GridCell, folder: Path) -> None:
    """Raise `BadInputError` where the survey is smaller than a cell wants."""
    have = parse_json((folder / DONE).read_text())["files"]
    if cell.files is not None and cell.files > have:
        raise BadInputError(
            f"{cell.data} in partitions of {cell.partition} are {cell.files} files, and the survey "
            f"has {have}: leave {cell.data} out of --data-sizes"
        )


def _run_cell(cell: GridCell, folder: Path, args: argparse.Namespace, options: LocalOptions) -> str:
    """Run a cell unless it is done; the words for its line."""
    place = args.out / cell.path
    if _is_complete(place):
        return "done before"
    data = [str(folder / info.key) for info in discover(folder).partitions[: cell.files]]
    request = RunRequest.parse(
        {
            "data": data,
            "results": str(place),
            "batch_size": cell.batch_size,
            "model": args.model,
            **({"world_size": cell.world_size} if cell.world_size else {}),
        }
    )
    began = time.monotonic()
    engine = LocalEngine(options)
    result = start(request, engine, _quiet, replace=True)
    ranks = result.summary["ranks"]
    return (
        f"{result.summary['status']}, {ranks['received']} of {ranks['expected']} ranks, "
        f"{time.monotonic() - began:.1f} s"
    )


def _quiet(event: Event) -> None:
    """A sweep reports a line a run, no more."""


def _is_complete(place: Path) -> bool:
    try:
        summary = parse_json((place / layout.SUMMARY).read_text())
    except (OSError, ValueError):
        return False
    return bool(summary.get("status") == "complete")


def _publish(args: argparse.Namespace, runs: list[MeasuredRun]) -> list[Path]:
    prices = chosen_prices(args)
    files = {
        args.out / "runs.csv": run_table(runs, prices).render("csv"),
        args.out / "partitions.csv": partition_table(runs, prices).render("csv"),
        args.out / "sweep.html": render_sweep(runs, prices),
    }
    for figure in figures(runs, prices):
        files[args.out / "plots" / f"{figure.name}.svg"] = figure.file()
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(files)
