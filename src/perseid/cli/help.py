"""``perseid help COMMAND``: the same as ``perseid COMMAND --help``."""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``perseid help``."""
    from perseid.cli import COMMANDS

    parser.add_argument(
        "words", nargs="*", metavar="COMMAND", choices=_Offered(COMMANDS),
        help="a command, and its action if it has several: `perseid help aws deploy`",
    )  # fmt: skip


class _Offered(list[str]):
    """What the shell completes; other words are judged by the command's own parser."""

    def __contains__(self, word: object) -> bool:
        return True


def run(args: argparse.Namespace) -> int:
    """Print a command's help."""
    from perseid.cli import make_parser

    make_parser(args.words[:1]).parse_args([*args.words, "--help"])
    return 0
