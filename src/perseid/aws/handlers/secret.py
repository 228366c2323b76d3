"""The stack's secret, from which each job's key is derived. Imports what a worker's zip holds."""

from __future__ import annotations

import functools


@functools.lru_cache(maxsize=1)
def read_secret(name: str) -> bytes:
    """The value of the SecureString with this name, kept while the environment lasts."""
    import boto3  # the Lambda runtime has it
    from botocore.config import Config

    # All ranks ask at once, and Parameter Store answers 40 a second.
    patient = Config(retries={"max_attempts": 12, "mode": "adaptive"})
    found = boto3.client("ssm", config=patient).get_parameter(Name=name, WithDecryption=True)
    return str(found["Parameter"]["Value"]).strip().encode()
