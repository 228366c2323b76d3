"""``perseid fmi-run``: a program written for FMI, on our communicator."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from pathlib import Path

from perseid.errors import BadInputError


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.add_argument("script", metavar="SCRIPT.py", help="a program that imports fmi")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its own arguments")


def run(args: argparse.Namespace) -> int:
    """Run the script in this process with ``fmi`` on its path; its exit status is ours."""
    from perseid.compat.fmi import PATH

    script = Path(args.script)
    if not script.is_file():
        raise BadInputError(f"there is no script {script}")
    paths = [str(PATH), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(part for part in paths if part)
    sys.path[:0] = [str(script.parent.resolve()), str(PATH)]
    sys.argv = [str(script), *args.arguments]
    runpy.run_path(str(script), run_name="__main__")
    return 0
