"""Options that name a stack, an identity or a server; they import nothing that talks to AWS."""

from __future__ import annotations

import argparse

DEFAULT_STACK = "perseid"


def add_aws_arguments(parser: argparse.ArgumentParser) -> None:
    """Which stack, and what `add_storage_arguments` adds."""
    where = parser.add_argument_group("on AWS")
    where.add_argument("--stack", metavar="NAME",
                       help=f"made by `perseid aws deploy` ({DEFAULT_STACK})")  # fmt: skip
    add_storage_arguments(parser)


def add_storage_arguments(parser: argparse.ArgumentParser) -> None:
    """Whose credentials, which region, which server: of every command that takes URLs."""
    how = parser.add_argument_group("how to reach S3 and AWS")
    how.add_argument("--profile", metavar="NAME",
                     help="of the AWS files; wins over keys in the environment")  # fmt: skip
    how.add_argument("--region", metavar="NAME",
                     help="default: AWS_REGION, or the profile's")  # fmt: skip
    how.add_argument("--endpoint", metavar="URL", help="another server in place of AWS")


def use_storage_arguments(args: argparse.Namespace) -> None:
    """Have this command, its workers and its scripts use what was given."""
    given = {name: getattr(args, name, None) for name in ("profile", "region", "endpoint")}
    if any(value is not None for value in given.values()):
        from perseid.storage import use_aws

        use_aws(**given)
