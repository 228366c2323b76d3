"""``perseid fmi-run``: run a program written for FMI on perseid's communicator."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from pathlib import Path

from perseid.errors import BadInputError
from perseid.plaintext import COMMAND_LINE
from perseid.textfile import is_file


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``perseid fmi-run``."""
    parser.add_argument("-n", "--ranks", type=int, metavar="N",
                        help="start N ranks on this machine with their own rendezvous (default: "
                             "this "
                        "process is one, and the configuration names the rendezvous)")  # fmt: skip
    parser.add_argument("script", metavar="SCRIPT.py", help="a program that imports fmi")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its own arguments")


def run(args: argparse.Namespace) -> int:
    """Run the script with ``fmi`` on its path, in this process or on N ranks; returns its exit
    status."""
    from perseid.compat.fmi import PATH, python_path

    if args.ranks is not None:
        from perseid.cli.comm import run_ranks

        return run_ranks([args.script, *args.arguments], args.ranks)
    script = Path(args.script)
    if not is_file(script):
        raise BadInputError(f"there is no script {script}")
    os.environ.pop(COMMAND_LINE, None)  # the program itself is not typed
    os.environ["PYTHONPATH"] = python_path()
    sys.path[:0] = [str(script.parent.resolve()), str(PATH)]
    sys.argv = [str(script), *args.arguments]
    runpy.run_path(str(script), run_name="__main__")
    return 0
