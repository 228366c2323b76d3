"""Count calls to AWS, because a client's requests are part of a run's cost."""

from __future__ import annotations

from collections import Counter
from typing import Any

from perseid.aws.session import Aws


class Calls:
    """Clients whose requests are counted by service and operation, including retries."""

    def __init__(self, aws: Aws) -> None:
        self.aws = aws
        self.counts: Counter[str] = Counter()
        """Number of requests by service and operation, e.g. ``{"sfn.DescribeExecution": 12}``."""
        self._known: set[str] = set()

    def client(self, service: str) -> Any:
        """The client of a service, created once."""
        client = self.aws.client(service)
        if service not in self._known:
            self._known.add(service)
            # `before-send` fires for every request on the wire, so botocore's retries are counted,
            # too.
            client.meta.events.register("before-send", self._count)
        return client

    def add(self, name: str, number: int = 1) -> None:
        """Add requests that were made without boto3."""
        self.counts[name] += number

    @property
    def total(self) -> int:
        """Number of all requests so far."""
        return sum(self.counts.values())

    def _count(self, event_name: str, **_: Any) -> None:
        self.counts[event_name.removeprefix("before-send.")] += 1
