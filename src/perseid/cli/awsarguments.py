"""Options that name a stack, an identity or a server. Nothing here imports code that calls AWS."""

from __future__ import annotations

import argparse

DEFAULT_STACK = "perseid"


def add_aws_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--stack`` and the options of `add_storage_arguments`."""
    where = parser.add_argument_group("on AWS")
    where.add_argument("--stack", metavar="NAME",
                       help=f"made by `perseid aws deploy` ({DEFAULT_STACK})")  # fmt: skip
    add_storage_arguments(parser)


def add_storage_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for credentials, region and server, for every command that takes URLs."""
    how = parser.add_argument_group("how to reach S3 and AWS")
    how.add_argument("--profile", metavar="NAME",
                     help="profile in the AWS files; overrides keys in the "
                          "environment")  # fmt: skip
    how.add_argument("--region", metavar="NAME",
                     help="default: AWS_REGION, or the profile's")  # fmt: skip
    how.add_argument("--endpoint", metavar="URL", help="URL of a server to use instead of AWS")


def use_storage_arguments(args: argparse.Namespace) -> None:
    """Apply the given options to this command, its workers and its scripts."""
    given = {name: getattr(args, name, None) for name in ("profile", "region", "endpoint")}
    if any(value is not None for value in given.values()):
        from perseid.storage import use_aws

        use_aws(**given)
