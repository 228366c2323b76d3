"""The collective merge of a local run: all its ranks in one communicator, after the map.

During the map only a few ranks run at a time. Their outputs lie on disks, so when the last rank is
done, each worker process takes its share of the ranks into the communicator.
"""

from __future__ import annotations

import contextlib
import secrets
import selectors
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from perseid.engines.local.process import WorkerProcess
from perseid.engines.stopping import StopRequests
from perseid.engines.worker_messages import MergeAssignment, MergeDone, Message
from perseid.errors import PerseidError, RunError
from perseid.pipeline.items import WorkItem
from perseid.pipeline.join_settings import JoinSettings, loss_timeouts
from perseid.pipeline.records import STORE
from perseid.rendezvous import Config, EmbeddedServer, job_key

MOST_RANKS = 128
"""A larger run of `auto` merges from the store: on one machine its ranks would share a few cores,
and each has a registration, some connections and two threads (docs/decisions.md)."""
JOIN_SECONDS = 30.0
"""Until all ranks must have come; they all start at once."""
CALL_SECONDS = 60.0
"""That one call waits for another rank."""
RANK_SECONDS = 0.1
"""More of both for each rank: they share a machine's few cores with whatever else runs there."""
SPARE_SECONDS = 60.0
"""Beyond both, for scoring and writing: a worker that has not answered by then is ended."""
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class CollectiveOutcome:
    """How a collective merge went, as the driver saw it."""

    note: str = ""
    """Why the ranks' statistics go through the store; empty if they need not."""
    seconds: float = 0.0
    lost: tuple[WorkerProcess, ...] = ()
    """Workers that died, or did not answer."""
    stopped: bool = False
    """The user stopped it before it was over."""


def skip_reason(items: Sequence[WorkItem], done: int) -> str | None:
    """Why these ranks do not merge collectively; empty: not asked for; None: they do."""
    first = items[0]
    if first.transport == STORE or first.options.script is not None:
        return ""
    if len(items) != first.world_size:
        return (
            f"only {len(items)} of {first.world_size} ranks worked, the others had done so before"
        )
    if done != len(items):
        return f"{len(items) - done} of {len(items)} ranks failed"
    if first.transport == "auto" and len(items) > MOST_RANKS:
        return (
            f"{len(items)} ranks on one machine are more than the {MOST_RANKS} that "
            "`transport` auto lets merge collectively; direct has no limit"
        )
    return None


@dataclass
class _Assignment:
    """A worker's share of the ranks, and how their merge went."""

    ranks: dict[WorkerProcess, list[int]]
    waiting: set[WorkerProcess] = field(default_factory=set)
    lost: list[WorkerProcess] = field(default_factory=list)
    notes: dict[int, str] = field(default_factory=dict)
    """What went wrong, by rank; empty for a rank whose merge succeeded."""


class Gang:
    """The collective merge of all ranks of one run.

    Parameters
    ----------
    processes
        Workers that have nothing else to do; at least one.
    items
        One a rank.
    who
        Which process worked on a rank, as far as it is alive: it has the rank's objects at hand.
    """

    def __init__(
        self,
        processes: Sequence[WorkerProcess],
        items: Sequence[WorkItem],
        who: Mapping[int, WorkerProcess],
    ) -> None:
        self._items = {item.rank: item for item in items}
        shares: dict[WorkerProcess, list[int]] = {process: [] for process in processes}
        for rank in self._items:
            process = who.get(rank)
            if process not in shares:
                # Its process is gone; the one with the fewest ranks reads its objects from the
                # store.
                process = min(shares, key=lambda one: len(shares[one]))
            shares[process].append(rank)
        self._assigned = _Assignment({one: ranks for one, ranks in shares.items() if ranks})

    def merge(self, stop: StopRequests) -> CollectiveOutcome:
        """Run the merge. Returns within the deadlines, or soon after the user stops it."""
        began = time.monotonic()
        # What concerns all ranks (run, transport, time-outs) is the same in each item.
        first = next(iter(self._items.values()))
        secret = secrets.token_bytes(32)  # of this run alone; it never leaves this process
        config = Config(host="127.0.0.1", port=0, http_port=None, tcpunch=False, secret=secret)
        try:
            with EmbeddedServer(config) as server:
                key = job_key(secret, first.run_id).hex()
                self._begin(self._join_settings(server.address, key, first))
                self._listen(stop)
        except (PerseidError, OSError) as error:
            text = f"no rendezvous could be started: {error}"
            return CollectiveOutcome(text, time.monotonic() - began)
        assigned = self._assigned
        seconds, lost = time.monotonic() - began, (*assigned.lost, *assigned.waiting)
        return CollectiveOutcome(self._note(), seconds, lost, bool(stop.count and assigned.waiting))

    def _join_settings(self, address: str, key: str, item: WorkItem) -> JoinSettings:
        more = RANK_SECONDS * len(self._items)
        join, call = JOIN_SECONDS + more, CALL_SECONDS + more
        return JoinSettings(address, key, item.transport, join, call, loss_timeouts(item))

    def _begin(self, settings: JoinSettings) -> None:
        for process, ranks in self._assigned.ranks.items():
            items = tuple(self._items[rank] for rank in ranks)
            try:
                process.channel.send(MergeAssignment(settings, items))
                self._assigned.waiting.add(process)
            except OSError:
                self._assigned.lost.append(process)

    def _listen(self, stop: StopRequests) -> None:
        assigned = self._assigned
        both = JOIN_SECONDS + CALL_SECONDS + 2 * RANK_SECONDS * len(self._items)
        deadline = time.monotonic() + both + SPARE_SECONDS
        with selectors.DefaultSelector() as selector:
            for process in assigned.waiting:
                selector.register(process.channel, selectors.EVENT_READ, process)
            while assigned.waiting and not stop.count and time.monotonic() < deadline:
                for key, _ in selector.select(POLL_SECONDS):
                    self._hear(key.data)
                    if key.data not in assigned.waiting:
                        selector.unregister(key.fileobj)
                for process in assigned.waiting:
                    process.output.read()  # a full pipe would stop it

    def _hear(self, process: WorkerProcess) -> None:
        assigned = self._assigned
        messages: list[Message] = []
        with contextlib.suppress(RunError):
            messages = process.channel.drain()
        for message in messages:
            if isinstance(message, MergeDone):
                assigned.waiting.discard(process)
                assigned.notes |= {one.rank: one.note for one in message.notes}
        if process in assigned.waiting and process.channel.ended:
            assigned.waiting.discard(process)
            assigned.lost.append(process)

    def _note(self) -> str:
        assigned = self._assigned
        lost = [rank for process in assigned.lost for rank in assigned.ranks[process]]
        late = [rank for process in assigned.waiting for rank in assigned.ranks[process]]
        if lost:
            named = ", ".join(map(str, sorted(lost)[:10])) + (", …" if len(lost) > 10 else "")
            return f"the process of rank {named} was lost during the collective merge"
        if late:
            return f"{len(late)} ranks did not finish the collective merge in time"
        return next((note for note in assigned.notes.values() if note), "")
