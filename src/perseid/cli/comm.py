"""``perseid comm``: run a program on many ranks, and measure or estimate message passing."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from perseid.cli import units
from perseid.cli.awsarguments import add_storage_arguments
from perseid.errors import BadInputError
from perseid.plaintext import COMMAND_LINE, counted
from perseid.textfile import is_file

if TYPE_CHECKING:
    from perseid.comm.cost_model import TransportCosts
    from perseid.comm.slurm_step import SlurmStep


STDOUT = Path("-")
"""The file of ``--json`` if it names none."""
TIMED_OUT = 124
"""Exit status if ``--timeout`` expired, the same as that of coreutils' ``timeout``."""
LOSSES = {
    "death": "time until all ranks know that a process has ended (default 2)",
    "link": "time until a rank counts as lost because its host does not answer (default 15)",
    "silence": "time until a rank counts as lost because its process does not respond (default 60)",
}
"""Options for how soon a rank counts as lost."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the commands and their options."""
    commands = parser.add_subparsers(dest="what", metavar="COMMAND", required=True)
    run_ = commands.add_parser("run", help="run a Python program on N ranks of this machine")
    run_.add_argument("-n", "--ranks", type=int, metavar="N",
                      help="processes on this machine (default: cores; under srun, the ranks are "
                      "the tasks of the step)")  # fmt: skip
    run_.add_argument(
        "--timeout", type=units.time_argument, metavar="TIME", help="time limit (status 124)"
    )
    run_.add_argument("--tag-output", action=argparse.BooleanOptionalAction, default=None,
                      help="prefix each line with the rank that printed it (default; under srun, "
                      "which has --label, only on request)")  # fmt: skip
    run_.add_argument("--encrypt", action="store_true", help="encrypt all messages between ranks "
                      "(with srun always, if cryptography is installed)")  # fmt: skip
    for name, what in LOSSES.items():
        run_.add_argument(f"--{name}-timeout", type=units.time_argument, metavar="TIME", help=what)
    run_.add_argument("script", metavar="SCRIPT.py", help="a program that uses perseid.comm")
    run_.add_argument("arguments", nargs=argparse.REMAINDER, help="its own arguments")
    _configure_bench(commands.add_parser("bench", help="measure message passing on this machine"))
    commands.add_parser(
        "certificate", help="print a fresh certificate with its key: of a job whose ranks are "
        "started by hand, or of a rendezvous server",
    )  # fmt: skip
    model = commands.add_parser("model", help="expected time and price of an operation")
    model.add_argument("operation")
    model.add_argument("-n", "--ranks", type=int, nargs="+", default=[8, 64, 517], metavar="N")
    model.add_argument("-m", "--bytes", type=float, nargs="+", default=[8.0, 1e6], metavar="BYTES")
    model.add_argument("--memory", type=units.memory_argument, metavar="SIZE",
                       help="of one worker, on Lambda (default 2048)")  # fmt: skip
    model.add_argument("--hint", choices=("fast", "cheap"), default="fast")
    model.add_argument(
        "--constants", type=Path, metavar="FILE",
        help="as `comm bench --constants` writes it (default: of Lambda and S3)",
    )  # fmt: skip
    model.add_argument("--json", action="store_true", help="print the estimates as JSON")


def _configure_bench(bench: argparse.ArgumentParser) -> None:
    bench.add_argument("-n", "--ranks", type=int, nargs="+", default=[2, 4, 8], metavar="N")
    bench.add_argument("--iterations", type=int, default=300, metavar="N")
    bench.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const=STDOUT,
        metavar="FILE",
        help="print the numbers as JSON instead, or also write them to a file",
    )
    bench.add_argument(
        "--constants", type=Path, metavar="FILE",
        help="instead, measure the cost model's constants and write them here",
    )  # fmt: skip
    bench.add_argument(
        "--store", metavar="URL", help="with --constants: a bucket or folder to measure, too"
    )
    add_storage_arguments(bench)


def run(args: argparse.Namespace) -> int:
    """Run one of the subcommands."""
    commands = {"run": _run, "bench": _bench, "model": _model, "certificate": _certificate}
    return commands[args.what](args)


def _certificate(args: argparse.Namespace) -> int:
    from perseid.comm import make_certificate

    print(make_certificate(), end="")
    return 0


def _run(args: argparse.Namespace) -> int:
    from perseid.comm.slurm_step import SlurmStep
    from perseid.rendezvous import LossTimeouts

    given = {f"{name}_timeout": getattr(args, f"{name}_timeout") for name in LOSSES}
    given = {name: seconds for name, seconds in given.items() if seconds is not None}
    LossTimeouts(**{name.removesuffix("_timeout"): seconds for name, seconds in given.items()})
    variables = {f"PERSEID_{name.upper()}": str(seconds) for name, seconds in given.items()}
    command = [args.script, *args.arguments]
    step = SlurmStep.of(os.environ) if args.ranks is None else None
    if step is not None:
        return _run_step(step, command, args.timeout, variables, tag=bool(args.tag_output))
    ranks = (os.cpu_count() or 1) if args.ranks is None else args.ranks
    tag = args.tag_output is not False
    return run_ranks(command, ranks, args.timeout, variables, encrypt=args.encrypt, tag=tag)


def _run_step(
    step: SlurmStep,
    command: Sequence[str],
    timeout: float | None,
    variables: Mapping[str, str],
    tag: bool,
) -> int:
    """Run the program as one rank of a Slurm step; returns the program's exit status."""
    from perseid.comm.ranks_output import RanksOutput
    from perseid.compat.fmi import python_path

    if not is_file(command[0]):
        raise BadInputError(f"there is no script {command[0]}")
    os.environ.pop(COMMAND_LINE, None)  # the program itself is not typed
    environment = {**os.environ, "PYTHONPATH": python_path(), **variables}
    output = RanksOutput(sys.stdout.buffer, sys.stderr.buffer) if tag else None
    pipe = subprocess.PIPE if tag else None
    with (
        step.meet(os.environ) as found,
        subprocess.Popen(
            [sys.executable, *command], env=environment | found, stdout=pipe, stderr=pipe
        ) as process,
    ):
        if output is not None and process.stdout and process.stderr:
            output.add(step.rank, process.stdout, process.stderr)
        with output or nullcontext():
            try:
                status = process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                print(f"perseid: the --timeout of {timeout:g} s expired", file=sys.stderr)
                return TIMED_OUT
    # Like a shell: a program that a signal ended has the status 128 plus the signal's number.
    return status if status >= 0 else 128 - status


def run_ranks(
    command: Sequence[str],
    ranks: int,
    timeout: float | None = None,
    variables: Mapping[str, str] | None = None,
    *,
    encrypt: bool = False,
    tag: bool = True,
) -> int:
    """Run a Python program on several ranks of this machine; returns the exit status.

    Parameters
    ----------
    command
        The script and its arguments.
    ranks
        Number of processes.
    timeout
        Longest duration, seconds; None: no limit.
    variables
        Environment variables to add to those of this process.
    encrypt
        Whether to encrypt all messages between ranks.
    tag
        Whether each line that a rank prints is prefixed with its number.
    """
    from perseid.comm.launch import run_local
    from perseid.comm.ranks_output import RanksOutput
    from perseid.compat.fmi import python_path
    from perseid.engines.stopping import StopRequests

    if not is_file(command[0]):
        raise BadInputError(f"there is no script {command[0]}")
    os.environ.pop(COMMAND_LINE, None)  # the program itself is not typed
    environment = {"PYTHONPATH": python_path(), **(variables or {})}
    began = time.monotonic()
    with StopRequests() as stop:
        statuses = run_local(
            command,
            ranks,
            timeout=timeout,
            encrypt=encrypt,
            environment=environment,
            stopped=lambda: stop.count,
            output=RanksOutput(sys.stdout.buffer, sys.stderr.buffer) if tag else None,
        )
    failed = {rank: status for rank, status in statuses.items() if status}
    _say_failed(failed)
    if stop.count:
        print("perseid: stopped", file=sys.stderr)
        return 128 + stop.number
    if failed and timeout is not None and time.monotonic() - began > timeout:
        print(f"perseid: the --timeout of {timeout:g} s expired", file=sys.stderr)
        return TIMED_OUT
    first = next(iter(failed.values()), 0)
    return first if first >= 0 else 128 - first


def _say_failed(failed: Mapping[int, int]) -> None:
    for rank, status in failed.items():
        how = f"was ended by signal {-status}" if status < 0 else f"exited with {status}"
        print(f"perseid: rank {rank} {how}", file=sys.stderr)


def _bench(args: argparse.Namespace) -> int:
    from perseid.comm import bench

    if args.constants is not None:
        return _measure_constants(args)
    if args.store is not None:
        raise BadInputError("--store needs --constants FILE: it adds the store's constants")
    if args.iterations < 1 or min(args.ranks) < 1:
        raise BadInputError("--ranks and --iterations must be at least 1")
    results: dict[str, dict[str, dict[str, float]]] = {}
    for ranks in args.ranks:
        found = bench.run(ranks, args.iterations)
        results[str(ranks)] = {"perseid": found}
        if args.json == STDOUT:
            continue
        print(f"\n{counted(ranks, 'rank')}: median of the slowest rank's time")
        for name, seconds in found.items():
            print(f"{name:32s}{_time(seconds):>12s}")
    if args.json == STDOUT:
        print(json.dumps(results, indent=1))
    elif args.json:
        _write(args.json, results)
    return 0


def _write(path: Path, results: Mapping[str, object]) -> None:
    try:
        path.write_text(json.dumps(results, indent=1))
    except OSError as error:
        raise BadInputError(f"{path} cannot be written: {error.strerror}") from error


def _measure_constants(args: argparse.Namespace) -> int:
    from perseid.comm import cost_measurement
    from perseid.storage import Storage

    head = f"{'transport':9s} {'latency':>10s} {'bandwidth':>12s}"
    print(f"{head} {'all together':>13s} {'requests':>10s}")
    store = None if args.store is None else Storage(args.store)
    constants = cost_measurement.measure(args.iterations, store, _print_costs)
    constants.dump(args.constants)
    print(f"{constants.source}: {args.constants}")
    return 0


def _print_costs(costs: TransportCosts) -> None:
    shared = f"{costs.shared / 1e6:.4g} MB/s" if costs.shared else "-"
    requests = f"{costs.puts + costs.gets:.3g}" if costs.puts else "-"
    rate = f"{costs.bandwidth / 1e6:.4g} MB/s"
    print(f"{costs.name:9s} {_time(costs.latency):>10s} {rate:>12s} {shared:>13s} {requests:>10s}")


def _model(args: argparse.Namespace) -> int:
    from perseid.comm.cost_model import Constants, choose, estimate
    from perseid.measure.prices import Prices

    constants = Constants() if args.constants is None else Constants.load(args.constants)
    rates = constants.rates
    if args.memory is not None:
        if not 0 < args.memory < math.inf:
            raise BadInputError(f"--memory must be above 0, not {args.memory:g} MB")
        second = args.memory / 1024 * Prices().lambda_gb_second_x86.usd
        rates = replace(rates, worker_second=second)
    rows = []
    for ranks, nbytes in itertools.product(args.ranks, args.bytes):
        best = choose(args.operation, ranks, nbytes, args.hint, constants.transports, rates)
        for costs in constants.transports:
            one = estimate(args.operation, ranks, nbytes, costs, rates)
            rows.append((ranks, nbytes, one, one.transport == best.transport))
    if args.json:
        plain = {"operation": args.operation, "constants": constants.source, "hint": args.hint}
        estimates = [
            {"ranks": ranks, "bytes": nbytes, **asdict(one), "chosen": chosen}
            for ranks, nbytes, one, chosen in rows
        ]
        print(json.dumps(plain | {"estimates": estimates}, indent=1))
        return 0
    print(f"{args.operation}; constants: {constants.source}")
    head = f"{'ranks':>6s} {'bytes':>10s} {'transport':>9s}"
    print(f"{head} {'time':>12s} {'price':>14s} {'messages':>9s}")
    for ranks, nbytes, one, chosen in rows:
        mark = f" <- {args.hint}" if chosen else ""
        print(
            f"{ranks:6d} {nbytes:10.4g} {one.transport:>9s} {_time(one.seconds):>12s} "
            f"{one.usd:10.3g} USD {one.messages:9d}{mark}"
        )
    return 0


def _time(seconds: object) -> str:
    if not isinstance(seconds, (int, float)):
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
