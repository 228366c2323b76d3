"""``perseid help COMMAND``: the same as ``perseid COMMAND --help``."""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``perseid help``."""
    parser.add_argument("words", nargs="*", metavar="COMMAND", help="a command, and its action if "
                                                                    "it has several: `perseid help "
                                                                    "aws deploy`")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Print a command's help."""
    from perseid.cli import make_parser

    make_parser(args.words[:1]).parse_args([*args.words, "--help"])
    return 0
