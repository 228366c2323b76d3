"""The stack's secret, from which each job's key is derived. Imports only what a worker's zip
contains."""

from __future__ import annotations

import functools


@functools.lru_cache(maxsize=1)
def read_secret(name: str) -> bytes:
    """The value of the SecureString with this name, cached as long as the environment lives."""
    import boto3  # part of the Lambda runtime
    from botocore.config import Config

    # Retried, because all ranks ask at once and Parameter Store answers only 40 requests per
    # second.
    patient = Config(retries={"max_attempts": 12, "mode": "adaptive"})
    found = boto3.client("ssm", config=patient).get_parameter(Name=name, WithDecryption=True)
    return str(found["Parameter"]["Value"]).strip().encode()
