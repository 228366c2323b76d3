"""How the ranks of a run join a communicator once their inference is done."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from perseid.pipeline.items import WorkItem
from perseid.pipeline.records import STORE
from perseid.pipeline.schema import from_plain
from perseid.rendezvous import LossTimeouts


@dataclass(frozen=True)
class JoinSettings:
    """The rendezvous and the time limits with which the ranks of a run join a communicator."""

    rendezvous: str
    """Address of the rendezvous, ``HOST:PORT``."""
    key: str | None = field(default=None, repr=False)
    """Key of the job, 64 hexadecimal digits; None for an open server."""
    transport: str = "auto"
    """Transport: ``auto``, ``direct`` or ``relay``."""
    deadline: float = 120.0
    """Seconds within which all ranks must have joined."""
    timeout: float = 120.0
    """Seconds that a call waits for another rank."""
    losses: LossTimeouts = field(default_factory=LossTimeouts)
    """Time-outs after which a rank counts as lost."""
    certificate: str | None = field(default=None, repr=False)
    """The job's certificate with its private key (PEM), with which connections are encrypted; None
    means that they are not."""

    @classmethod
    def of_item(cls, item: WorkItem) -> JoinSettings | None:
        """Read the settings from an item's options; None if the statistics go through the store.

        The options must hold ``rendezvous_endpoint`` and, unless the server is open,
        ``rendezvous_key``; ``meeting_seconds`` changes how long ranks wait for each other, ``ends``
        (seconds since the epoch) says when this worker must be done.
        """
        options = item.options
        where = options.rendezvous_endpoint
        if item.transport == STORE or options.script is not None or not where:
            return None
        seconds = cls.deadline if options.meeting_seconds is None else options.meeting_seconds
        left = max(0.0, (math.inf if options.ends is None else options.ends) - time.time())
        return cls(
            where,
            options.rendezvous_key,
            item.transport,
            min(seconds, left / 2),
            min(seconds, left / 4),
            loss_timeouts(item),
            options.certificate,
        )

    def to_json(self) -> dict[str, object]:
        """The settings as plain JSON values. They contain the key: send them through a worker's
        pipe, never write them to a file."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> JoinSettings:
        """The reverse of `to_json`."""
        return from_plain(cls, value, "the settings for joining")


def loss_timeouts(item: WorkItem) -> LossTimeouts:
    """The requested time-outs after which a rank counts as lost."""
    said = item.options
    given = {
        "death": said.death_timeout,
        "link": said.link_timeout,
        "silence": said.silence_timeout,
    }
    return LossTimeouts(**{name: value for name, value in given.items() if value is not None})
