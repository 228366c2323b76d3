"""The command line; the only place that prints."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from perseid import __version__
from perseid.api.terminal import safe_output
from perseid.cli.awsarguments import use_storage_arguments
from perseid.errors import PerseidError
from perseid.libraries import limit_reached
from perseid.plaintext import COMMAND_LINE, did_you_mean, one_line

COMMANDS: dict[str, str] = {
    "demo": "simulate a small survey, run the model over it, show the result",
    "simulate": "make a simulated survey from real SDSS magnitudes and redshifts",
    "survey": "describe a survey: rows, images, columns, what a model would use",
    "split": "cut a survey into numbered partitions",
    "train": "train a model on a survey",
    "model": "import, export and check model files",
    "run": "run a model over all partitions of a survey",
    "resume": "compute what is missing from a run",
    "table": "tables of memory, duration and cost from any set of runs",
    "report": "one HTML page about a run",
    "catalogue": "a run's catalogue as FITS, VOTable, CSV, Parquet, HATS or qp's HDF5",
    "explore": "a live page about a run: view, select, label, search",
    "similar": "the objects of a run that are most like one of them",
    "sweep": "runs over partition size, world size and batch size, with plots",
    "plan": "partition size, world size and memory for a deadline and a budget",
    "calibrate": "measure how fast a worker is, as input for plans",
    "status": "status of a run; stop it, or wait for it",
    "logs": "what the ranks of a run logged",
    "rendezvous": "the server through which workers find each other",
    "ping": "test the connection to a rendezvous server",
    "aws": "deploy the whole system on AWS, check it, remove it",
    "comm": "message passing: run a program on many ranks, measure and predict its speed",
    "fmi-run": "run a program written for FMI",
    "cite": "what to cite, with versions",
    "completion": "a script that completes commands and options in your shell",
    "help": "what a command does, and its options",
}
"""Name and one line of help of each command. Its module has the same name and is imported on use.

A command module has ``configure(parser)`` and ``run(args) -> int`` (the exit status).
"""


_CHOICE = re.compile(r"invalid choice: '([^']*)' \(choose from (.*)\)")
"""argparse's sentence about a value that is none of the choices."""


class Parser(argparse.ArgumentParser):
    """A parser that reports errors as one sentence, like the rest of perseid."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and where the options are described, and exit."""
        said = message.removeprefix("argument ")
        if wrong := _CHOICE.search(said):
            said += did_you_mean(wrong[1], re.findall(r"[\w-]+", wrong[2]))
        self.exit(2, f"perseid: {said}; see `{self.prog} --help`\n")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's, but a command refuses what it does not know by itself, so that the
        sentence names its options and its help."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            option = next((word for word in unknown if word.startswith("--")), "")
            hint = did_you_mean(option.partition("=")[0], self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found, unknown


def make_parser(names: Collection[str]) -> argparse.ArgumentParser:
    """Make the parser with the options of these commands; the others are only listed."""
    parser = Parser(prog="perseid", allow_abbrev=False)
    parser.description = "Run a model over a survey of cutouts, as many small workers."
    parser.add_argument("--version", action="version", version=f"perseid {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command, line in COMMANDS.items():
        sub = commands.add_parser(command, help=line, description=line[0].upper() + line[1:] + ".")
        if command in names:
            module = importlib.import_module(f"perseid.cli.{command.replace('-', '_')}")
            module.configure(sub)
            sub.set_defaults(call=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; one of our errors becomes one sentence on stderr and its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with safe_output(), _options_as_typed():
        return _call(arguments)


@contextmanager
def _options_as_typed() -> Iterator[None]:
    """Let messages name options as they are typed in a shell; workers inherit it."""
    before = os.environ.get(COMMAND_LINE)
    os.environ[COMMAND_LINE] = "1"
    try:
        yield
    finally:
        os.environ.pop(COMMAND_LINE, None)
        if before is not None:
            os.environ[COMMAND_LINE] = before


def _call(arguments: Sequence[str]) -> int:
    # Only this command's module is imported: importing all of them would delay every command.
    name = next((word for word in arguments if not word.startswith("-")), None)
    try:
        args = make_parser([name] if name else []).parse_args(arguments)
        use_storage_arguments(args)
        return int(args.call(args))
    except PerseidError as error:
        print(f"perseid: {one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("perseid: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `perseid table … | head`: the reader has closed the pipe
        # Python flushes stdout at exit, which would fail again, with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except BaseException as error:
        status = 1
        try:
            reason = limit_reached(error)
        except MemoryError:
            reason = "there is too little memory: give this process more"
        # What the system refuses of a file or folder that was named, often a permission.
        if reason is None and isinstance(error, OSError) and isinstance(error.filename, str):
            reason, status = f"{error.filename} cannot be used: {error.strerror}", 2
        if reason is None:
            raise
        print(f"perseid: {one_line(reason)}", file=sys.stderr)
        return status


if __name__ == "__main__":
    sys.exit(main())
