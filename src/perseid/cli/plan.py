"""``perseid plan``: choose partition size, world size and memory for a deadline and a budget."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from perseid.api.planning import ARCHITECTURES, Advice, PlanOption, plan
from perseid.api.progress_display import duration
from perseid.cli import units
from perseid.cli.awsarguments import add_storage_arguments
from perseid.cli.surveys import found
from perseid.errors import BadInputError
from perseid.plaintext import counted
from perseid.textfile import is_there

SHOWN = 6
"""How many alternatives are listed."""
UNFIT = 1
"""Exit status if no plan meets both deadline and budget."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``perseid plan``."""
    parser.add_argument("--data", required=True, metavar="SIZE|URL",
                        help="size of the data, such as 12.6GB, or its folder")  # fmt: skip
    parser.add_argument(
        "--deadline", metavar="TIME", help="longest duration of the whole run: 60s, 2min"
    )
    parser.add_argument("--budget", metavar="USD", help="highest cost as billed: 1USD")
    parser.add_argument("--sure", action="store_true", help="meet deadline and budget with the "
                                                            "upper estimates, not the expected "
                                                            "ones")  # fmt: skip
    parser.add_argument("--calibration", type=Path, metavar="JSON",
                        help="from `perseid calibrate` (default: this machine, now)")  # fmt: skip
    parser.add_argument("--rate", type=units.rate_argument, metavar="ROWS", help="rows per "
                        "second of one vCPU, instead of the calibration's")  # fmt: skip
    choice = parser.add_argument_group("what to choose from")
    choice.add_argument("--partition", action="append", metavar="SIZE", help="e.g. 25MB; may be "
                        "given again (default: 5 to 200MB)")  # fmt: skip
    choice.add_argument(
        "--memory", action="append", type=units.memory_argument, metavar="SIZE",
        help="of a worker; may be given again",
    )  # fmt: skip
    choice.add_argument("--arch", choices=(*ARCHITECTURES, "both"), default="x86")
    choice.add_argument("--concurrency", type=int, default=1000, metavar="N",
                        help="workers at once (1000; new accounts may have 10)")  # fmt: skip
    choice.add_argument("--max-memory", type=units.memory_argument, default=10_240, metavar="SIZE",
                        help="largest function (10240; new accounts may have 3008)")  # fmt: skip
    choice.add_argument("--timeout", type=units.time_argument, default=900.0, metavar="TIME",
                        help="seconds a worker may take (900)")  # fmt: skip
    parser.add_argument("--prices", type=Path, metavar="JSON", help="prices other than the list")
    parser.add_argument("--json", action="store_true", help="print the advice as JSON")
    add_storage_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the advice; exit status 1 if no plan meets both deadline and budget."""
    advice = plan(
        _data(args.data),
        deadline=units.seconds(args.deadline) if args.deadline else None,
        budget=units.usd(args.budget) if args.budget else None,
        sure=args.sure,
        calibration=args.calibration,
        rate=args.rate,
        partitions_mb=[units.size_mb(text) for text in args.partition or ()],
        memories_mb=args.memory or (),
        architectures=ARCHITECTURES if args.arch == "both" else (args.arch,),
        concurrency=args.concurrency,
        max_memory_mb=args.max_memory,
        timeout=args.timeout,
        prices=args.prices,
    )
    print(json.dumps(advice.to_json(), indent=1) if args.json else "\n".join(_lines(advice)))
    return 0 if advice.option is not None else UNFIT


def _data(text: str) -> float:
    """Parse a size, or add up the sizes of a survey's files."""
    try:
        return units.size_bytes(text)
    except BadInputError as error:
        if "://" not in text and not is_there(text):
            raise BadInputError(
                f"{text!r} is neither a size such as 12.6GB nor a folder"
            ) from error
    return float(sum(partition.size for partition in found(text).partitions))


def _lines(advice: Advice) -> Iterator[str]:
    ask, calibration = advice.ask, advice.calibration
    wishes = [f"in {duration(ask.deadline)}"] if ask.deadline is not None else []
    wishes += [f"for {ask.budget:g} USD"] if ask.budget is not None else []
    asked = " and ".join(wishes) or "with the least time x cost"
    yield f"asked      {units.size_label(ask.data_bytes)} {asked}{', surely' if ask.sure else ''}"
    yield f"pace       {calibration.rows_per_second:,.0f} rows/s per vCPU ({calibration.source})"
    yield ""
    if advice.option is None:
        yield "advice     none: no plan meets the request; the nearest are"
        yield from _table([advice.fastest, advice.cheapest])
    else:
        yield from _advice(advice.option)
        yield ""
        yield "           others, each faster or cheaper:"
        yield from _table(_others(advice))
    yield ""
    yield from (f"binds      {text}" for text in advice.binds)
    if not advice.binds:
        yield "binds      nothing in particular: doubling any one limit gains less than 2 %"
    yield f"prices     {advice.prices.stamp()}, every start cold, no rendezvous"
    if "arm" in ask.architectures:
        yield "arm        assumed to be as fast: calibrate on arm before you rely on it"
    yield "accuracy   times of starting, listing and merging are assumptions (docs: how-to/plan);"
    yield "           the upper end has one straggler of 4 times the median, as published"


def _advice(option: PlanOption) -> Iterator[str]:
    arch = {"x86": "x86_64", "arm": "arm64"}[option.architecture]
    files = option.partitions / option.world_size
    yield (
        f"advice     partitions of {option.partition_mb:g}MB: {counted(option.partitions, 'file')}"
    )
    yield (
        f"           world size {option.world_size}, up to "
        f"{counted(math.ceil(files), 'file')} per worker"
    )
    yield (
        f"           {option.memory_mb:,} MB per worker ({option.vcpus:.2f} vCPUs, {arch}); it "
        "needs "
        f"about {option.worker_mb:,.0f} MB"
    )
    t, c = option.seconds, option.usd
    yield f"time       {t.expected:.1f} s, between {t.low:.1f} and {t.high:.1f} s"
    for name, value in option.parts.items():
        yield f"           {name}: {value:.1f} s"
    yield f"cost       {c.expected:.4f} USD, between {c.low:.4f} and {c.high:.4f} USD, as billed"


def _others(advice: Advice) -> list[PlanOption]:
    """A few evenly spaced plans of the Pareto front."""
    front = [option for option in advice.front if option != advice.option]
    if len(front) <= SHOWN:
        return front
    return [front[round(i * (len(front) - 1) / (SHOWN - 1))] for i in range(SHOWN)]


def _table(options: Sequence[PlanOption]) -> Iterator[str]:
    for o in options:
        yield (
            f"           {o.seconds.expected:7.1f} s  {o.usd.expected:8.4f} USD  "
            f"{o.partition_mb:g}MB x {o.partitions}, world size {o.world_size}, "
            f"{o.memory_mb} MB, {o.architecture}"
        )
