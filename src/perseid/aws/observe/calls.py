"""Calls to AWS, counted: what a client asks is part of what a run costs."""

from __future__ import annotations

from collections import Counter
from typing import Any

from perseid.aws.session import Aws


class Calls:
    """Clients whose requests are counted by service and operation, retries included."""

    def __init__(self, aws: Aws) -> None:
        self.aws = aws
        self.counts: Counter[str] = Counter()
        """E.g. ``{"sfn.DescribeExecution": 12}``."""
        self._known: set[str] = set()

    def client(self, service: str) -> Any:
        """The client of a service, made once."""
        client = self.aws.client(service)
        if service not in self._known:
            self._known.add(service)
            # `before-send` fires for each request on the wire, so retries of botocore are counted,
            # too.
            client.meta.events.register("before-send", self._count)
        return client

    def add(self, name: str, number: int = 1) -> None:
        """Count requests that are made without boto3."""
        self.counts[name] += number

    @property
    def total(self) -> int:
        """All requests so far."""
        return sum(self.counts.values())

    def _count(self, event_name: str, **_: Any) -> None:
        self.counts[event_name.removeprefix("before-send.")] += 1
