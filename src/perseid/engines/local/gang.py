"""The collective merge of a local run: all ranks join one communicator after the map.

During the map only a few ranks run at a time. Their outputs are on disk, so when the last rank is
done, each worker process joins the communicator for its share of the ranks.
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
from perseid.plaintext import counted
from perseid.rendezvous import Config, EmbeddedServer, job_key

MOST_RANKS = 128
"""Maximum number of ranks that merge collectively with transport `auto`; larger runs merge from the
store. On one machine the ranks would share a few cores, and each has a registration, some
connections and two threads (docs/decisions.md)."""
JOIN_SECONDS = 30.0
"""Seconds within which all ranks must join; they all start at the same time."""
CALL_SECONDS = 60.0
"""Seconds that one call waits for another rank."""
RANK_SECONDS = 0.1
"""Seconds added to both for each rank, since the ranks share a few cores with other programs."""
SPARE_SECONDS = 60.0
"""Seconds beyond both for scoring and writing; a worker that has not answered by then is ended."""
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class CollectiveOutcome:
    """The outcome of a collective merge, as seen by the driver."""

    note: str = ""
    """Reason why the ranks' statistics go through the store; empty if the merge succeeded."""
    seconds: float = 0.0
    lost: tuple[WorkerProcess, ...] = ()
    """Workers that died or did not answer."""
    stopped: bool = False
    """Whether the user stopped the merge before its end."""


def skip_reason(items: Sequence[WorkItem], done: int) -> str | None:
    """Why these ranks do not merge collectively; empty if not requested; None if they do."""
    first = items[0]
    if first.transport == STORE or first.options.script is not None:
        return ""
    if len(items) != first.world_size:
        return f"only {len(items)} of {first.world_size} ranks worked; the others were done before"
    if done != len(items):
        return f"{len(items) - done} of {len(items)} ranks failed"
    if first.transport == "auto" and len(items) > MOST_RANKS:
        return (
            f"{len(items)} ranks on one machine are more than the {MOST_RANKS} that merge "
            "collectively with `transport` auto; direct has no limit"
        )
    return None


@dataclass
class _Assignment:
    """Each worker's share of the ranks, and the state of its merge."""

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
        Idle workers, at least one.
    items
        Work items, one per rank.
    who
        By rank, the process that worked on it, which still has the rank's objects. Processes that
        have ended may be among them.
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
                # The rank's process has ended, so the worker with the fewest ranks reads the
                # objects from the store.
                process = min(shares, key=lambda one: len(shares[one]))
            shares[process].append(rank)
        self._assigned = _Assignment({one: ranks for one, ranks in shares.items() if ranks})

    def merge(self, stop: StopRequests) -> CollectiveOutcome:
        """Run the merge. Returns within the deadlines, or soon after the user stops it."""
        began = time.monotonic()
        # Run, transport and time-outs are the same in each item.
        first = next(iter(self._items.values()))
        secret = secrets.token_bytes(32)  # for this run only; it never leaves this process
        # On loopback with a free port, so nothing outside this machine can connect.
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
        # Workers that did not answer may hang in the network, so they are ended like dead ones.
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
            except OSError:  # the worker has died since its last rank
                self._assigned.lost.append(process)

    def _listen(self, stop: StopRequests) -> None:
        assigned = self._assigned
        # The workers' own deadlines come first, so that their notes say what went wrong.
        both = JOIN_SECONDS + CALL_SECONDS + 2 * RANK_SECONDS * len(self._items)
        deadline = time.monotonic() + both + SPARE_SECONDS
        with selectors.DefaultSelector() as selector:
            for process in assigned.waiting:
                # Only the channels; outputs are read in each round below.
                selector.register(process.channel, selectors.EVENT_READ, process)
            while assigned.waiting and not stop.count and time.monotonic() < deadline:
                for key, _ in selector.select(POLL_SECONDS):
                    self._hear(key.data)
                    if key.data not in assigned.waiting:
                        selector.unregister(key.fileobj)
                for process in assigned.waiting:
                    process.output.read()  # a full pipe would block the worker

    def _hear(self, process: WorkerProcess) -> None:
        assigned = self._assigned
        messages: list[Message] = []
        # An invalid message has no answer in it: the deadline ends this worker.
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
            return f"{counted(len(late), 'rank')} did not finish the collective merge in time"
        # One reason is enough: what breaks a collective reaches all of its ranks.
        return next((note for note in assigned.notes.values() if note), "")
