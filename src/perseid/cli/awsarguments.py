"""Options that name a stack; apart, so that they cost no import of what talks to AWS."""

from __future__ import annotations

import argparse

DEFAULT_STACK = "perseid"


def add_aws_arguments(parser: argparse.ArgumentParser) -> None:
    """Which stack."""
    where = parser.add_argument_group("on AWS")
    where.add_argument("--stack", default=DEFAULT_STACK, metavar="NAME",
                       help=f"made by `perseid aws deploy` ({DEFAULT_STACK})")  # fmt: skip
    where.add_argument("--region", metavar="NAME", help="default: as the AWS command line")
    where.add_argument("--profile", metavar="NAME", help="of the AWS command line's files")
