"""``perseid completion SHELL``: a script that completes commands and options."""

from __future__ import annotations

import argparse

SHELLS = ("bash", "zsh", "tcsh")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``perseid completion``."""
    parser.add_argument("shell", choices=SHELLS, help="e.g. in ~/.bashrc: "
                        "eval \"$(perseid completion bash)\"")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Print the completion script of a shell."""
    import shtab

    from perseid.cli import COMMANDS, make_parser

    print(shtab.complete(make_parser(COMMANDS), shell=args.shell))
    return 0
