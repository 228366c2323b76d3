"""``perseid sweep``: run a grid of parameters, resumably, and draw the published figures."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from perseid.api.sweeping import DEFAULT_BATCH, WHOLE, CellResult, Sweep, sweep
from perseid.cli.awsarguments import add_storage_arguments
from perseid.cli.table import add_price_arguments
from perseid.engines.local import LocalEngine


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``perseid sweep``."""
    parser.add_argument("--data", required=True, metavar="SURVEY", help="a file, folder or URL")
    parser.add_argument("--out", required=True, type=Path, help="folder of the sweep")
    parser.add_argument("--partition-sizes", type=_words, default=["25MB"], metavar="25MB,50MB",
        help="default 25MB",
    )  # fmt: skip
    parser.add_argument(
        "--data-sizes", type=_words, default=[WHOLE], metavar="1GB,2GB",
        help="each run takes ceil(data / partition) partitions; default: all",
    )  # fmt: skip
    parser.add_argument(
        "--world-sizes", type=_worlds, default=[None], metavar="4,8,files",
        help="numbers of ranks; `files` (default) means one per partition",
    )  # fmt: skip
    parser.add_argument("--batch-sizes", type=_numbers, default=[DEFAULT_BATCH], metavar="32,512",
        help="most rows per call of the model (default 512)",
    )  # fmt: skip
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="repetitions (3)")
    parser.add_argument("--model", default="default", help="exported model")
    parser.add_argument("--workers", type=int, metavar="N", help="processes at once")
    parser.add_argument("--threads", type=int, default=1, help="threads of a worker")
    parser.add_argument("--json", action="store_true", help="print the runs as JSON")
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
    """Run what is missing from the grid, then write tables, figures and the page."""

    def say(result: CellResult) -> None:
        if not args.json:
            place = f"{result.number}/{result.total}  {result.cell.path}"
            print(f"{place}: {_words_of(result)}", flush=True)

    done = sweep(
        args.data,
        args.out,
        partition_sizes=args.partition_sizes,
        data_sizes=args.data_sizes,
        world_sizes=args.world_sizes,
        batch_sizes=args.batch_sizes,
        repeat=args.repeat,
        model=args.model,
        engine=LocalEngine(workers=args.workers, threads=args.threads),
        architecture=args.arch,
        report=say,
    )
    written = done.publish(args.prices)
    if args.json:
        print(json.dumps(_plain(done, written), indent=1))
    else:
        print("\n".join(f"wrote {path}" for path in written))
    if done.incomplete:
        print(f"perseid: {done.incomplete} of {len(done.cells)} runs are incomplete; the same "
              "command tries them again", file=sys.stderr)  # fmt: skip
    return 3 if done.incomplete else 0


def _words_of(result: CellResult) -> str:
    if result.seconds is None:
        return "done before"
    return f"{result.status}, {result.received} of {result.expected} ranks, {result.seconds:.1f} s"


def _plain(done: Sweep, written: Sequence[Path]) -> dict[str, object]:
    runs = [
        {"run": str(done.folder / one.cell.path), **asdict(one.cell), "status": one.status,
         "ranks": {"received": one.received, "expected": one.expected}, "seconds": one.seconds}
        for one in done.cells
    ]  # fmt: skip
    return {"runs": runs, "files": [str(path) for path in written]}
