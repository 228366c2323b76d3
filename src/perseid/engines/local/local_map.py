"""The map of a local run: an event loop over worker processes, driven by its caller."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Sequence

from perseid.engines.local.gang import CollectiveOutcome, Gang, skip_reason
from perseid.engines.local.kept_workers import KeptWorkers
from perseid.engines.local.local_options import LocalOptions
from perseid.engines.local.memory_limits import MemoryLimits
from perseid.engines.local.process import Reaper, WorkerProcess
from perseid.engines.local.rank_logs import RankLogs
from perseid.engines.local.schedule import Schedule
from perseid.engines.local.slots import RunningAttempt, Slot, classify_exit, ending_of
from perseid.engines.local.worker_pool import WorkerPool
from perseid.engines.log_lines import end_lines, standing_line, start_lines
from perseid.engines.stopping import StopRequests
from perseid.engines.worker_messages import (
    Assignment,
    AttemptDone,
    AttemptFailed,
    Message,
    Progressed,
    Ready,
)
from perseid.errors import RunError
from perseid.pipeline.attempts import Attempt, Ending, EngineReport
from perseid.pipeline.events import RankEvent, RankState, Report, StageEvent
from perseid.pipeline.items import WorkItem
from perseid.storage import Storage

POLL_SECONDS = 0.05
"""Interval between checks of memory and deadlines, in seconds, with few workers."""
POLL_A_WORKER = 0.003
"""Interval per worker, in seconds, with many workers. A check takes about 0.2 ms, so all checks
together take less than a tenth of a core."""
GRACE_SECONDS = 2.0
"""Seconds that workers may take to end after Ctrl-C before they are killed."""
MAX_FAILED_STARTS = 6
"""Number of failed starts, without a successful one, after which no worker is started."""


class LocalMap:
    """The workers, their jobs and the schedule of one run.

    Parameters
    ----------
    items
        Work items of one run, at least one.
    options
        Limits, retries and the program of the workers.
    reaper
        Kills the workers if this process dies.
    report
        Called with each event, in this thread.
    kept
        Idle processes to reuse; workers that are idle at the end are returned to it.
    """

    def __init__(
        self,
        items: Sequence[WorkItem],
        options: LocalOptions,
        reaper: Reaper,
        report: Report,
        kept: KeptWorkers | None = None,
    ) -> None:
        self._items = {item.rank: item for item in items}
        self._options = options
        self._report = report
        self._logs = RankLogs(Storage(items[0].results_url))
        former = self._logs.load(set(self._items))
        self._schedule = Schedule(self._items, options.retry, former)
        self._pool = WorkerPool(items[0], options, reaper, kept, self._hear)
        self._memory = MemoryLimits(options.memory_mb, options.more_memory)
        self._next_poll = 0.0
        self._ever_ready = False
        self._failed_starts = 0
        self._who: dict[int, WorkerProcess] = {}
        """By rank, the process that completed it."""
        self._began = time.monotonic()
        self._resources = contextlib.ExitStack()
        self._resources.enter_context(self._logs)
        self._resources.callback(self._pool.close)
        for rank in self._items:
            self._report(RankEvent(rank, RankState.WAITING, 0))
        for rank in former:
            self._logs.add(rank, standing_line(RankState.WAITING))

    @property
    def finished(self) -> bool:
        """Whether every rank is done or has finally failed."""
        return self._schedule.finished

    def conclude(self, stop: StopRequests) -> EngineReport:
        """Run the collective merge, unless the user stopped the run, and end all workers."""
        wall = time.monotonic() - self._began
        try:
            merged = CollectiveOutcome() if stop.count else self._merge(stop)
            if not stop.count:
                self._pool.give_back()
        finally:
            self.close(stop)
        if self._logs.failure:
            self._report(StageEvent("map", f"some logs are missing: {self._logs.failure}"))
        return EngineReport(
            attempts=tuple(self._schedule.attempts),
            failures=dict(self._schedule.failed),
            wall_seconds=wall,
            meeting_seconds=merged.seconds,
            transport_note=merged.note,
            concurrency=self._options.concurrency,
            done=tuple(sorted(self._schedule.done)),
            stopped=merged.stopped or (stop.count > 0 and not self._schedule.all_decided),
        )

    def close(self, stop: StopRequests) -> None:
        """End every worker and finish writing the logs."""
        with self._resources:
            self._end_all(stop)
            if stop.count:
                self._logs.hurry(GRACE_SECONDS)

    def _merge(self, stop: StopRequests) -> CollectiveOutcome:
        """Run the collective merge, unless there is a reason to skip it."""
        items = list(self._items.values())
        note = skip_reason(items, len(self._schedule.done))
        idle = [slot.process for slot in self._pool if slot.job is None]
        if note is None and not idle:
            note = "no worker was left for the collective merge"
        if note is not None:
            return CollectiveOutcome(note)
        self._report(StageEvent("collectives"))
        merged = Gang(idle, items, self._who).merge(stop)
        for slot in self._pool:
            if slot.process in merged.lost:
                self._pool.drop(slot)
        return merged

    def turn(self) -> None:
        """Assign waiting ranks, then handle messages that arrive within `POLL_SECONDS`."""
        self._assign()
        self._pool.listen(POLL_SECONDS)
        now = time.monotonic()
        if now >= self._next_poll:
            self._next_poll = now + max(POLL_SECONDS, POLL_A_WORKER * len(self._pool))
            for slot in self._pool:
                self._check(slot)

    # Assigning ranks to workers.

    def _assign(self) -> None:
        while self._schedule.ready(time.monotonic()) and self._pool.has_room:
            rank, attempt = self._schedule.start(time.monotonic())
            self._begin(rank, attempt)
        if self._options.second_attempts and self._pool.has_room:
            straggler = self._schedule.start_straggler(time.monotonic())
            if straggler is not None:
                self._begin(*straggler)

    def _begin(self, rank: int, attempt: int) -> None:
        slot = self._pool.at_hand()
        job = RunningAttempt(rank, attempt, str(uuid.uuid4()), slot is None, time.time())
        if slot is None:
            try:
                slot = self._pool.start()
            except OSError as error:
                self._not_started(job, error)
                return
        slot.job = job
        self._report(RankEvent(rank, RankState.RUNNING, attempt))
        if slot.init_ms is not None:
            self._send(slot)

    def _send(self, slot: Slot) -> None:
        job = slot.job
        assert job is not None
        output = slot.process.output.take()
        self._logs.add(job.rank, start_lines(job.request_id, cold=job.cold, output=output))
        job.begun = time.monotonic()
        # Memory that the process already holds, mainly the model, counts toward the attempt.
        job.peak_mb = max(job.peak_mb, slot.process.resident())
        if not job.cold:
            job.started_epoch = time.time()
        try:
            slot.process.channel.send(Assignment(self._items[job.rank], job.attempt))
        except OSError:
            self._lost(slot)

    # Handling the messages of workers.

    def _hear(self, slot: Slot) -> None:
        if slot not in self._pool:
            return
        try:
            messages = slot.process.channel.drain()
        except RunError as error:
            # The process sent something that is no valid message, so it is not trusted with
            # another rank.
            self._finish(slot, Ending.RAISED, str(error), keep=False)
            return
        for message in messages:
            if slot in self._pool and slot.job is not None:
                self._follow(slot, slot.job, message)
        # Messages first: a worker may report an error and exit at once.
        if slot in self._pool and slot.process.channel.ended:
            self._lost(slot)

    def _follow(self, slot: Slot, job: RunningAttempt, message: Message) -> None:
        if isinstance(message, Ready):
            self._ever_ready = True
            slot.init_ms = (time.monotonic() - slot.process.started) * 1000
            self._send(slot)
        elif isinstance(message, Progressed):
            self._report(RankEvent(job.rank, RankState.RUNNING, job.attempt, message.rows))
        elif isinstance(message, AttemptDone | AttemptFailed):
            self._attempt_ended(slot, job, message)

    def _attempt_ended(
        self, slot: Slot, job: RunningAttempt, last: AttemptDone | AttemptFailed
    ) -> None:
        job.peak_mb = max(job.peak_mb, last.peak_mb)
        if isinstance(last, AttemptFailed):
            rows, clean, said = 0, last.clean, last.message
        else:
            rows, clean, said = last.rows, True, self._memory_note(job)
        keep = clean and job.begun is not None
        seconds = last.work_seconds
        self._finish(slot, ending_of(last), said, keep=keep, work_seconds=seconds, rows=rows)

    def _memory_note(self, job: RunningAttempt) -> str:
        limit = self._memory.of(job.rank)
        if job.peak_mb > limit:
            # The peak fell between two checks. The record is complete and correct, so it counts.
            return f"it peaked at {job.peak_mb:.0f} MB, above its {limit} MB: Lambda would end it"
        return ""

    # Detecting failures.

    def _check(self, slot: Slot) -> None:
        """Check the memory and deadlines of a worker, and whether it is alive at all."""
        if slot not in self._pool:
            return
        job, options = slot.job, self._options
        if slot.process.exit_status() is not None:
            self._hear(slot)  # its last messages may not have been read
            if slot in self._pool:
                self._lost(slot)
        elif job is not None:
            now = time.monotonic()
            resident = slot.process.resident()
            job.peak_mb = max(job.peak_mb, resident)
            limit = self._memory.of(job.rank)
            if resident > limit:
                text = f"it took {resident:.0f} MB, above its {limit} MB of memory"
                self._finish(slot, Ending.OUT_OF_MEMORY, text, keep=False)
            elif job.begun is None and now - slot.process.started > options.init_timeout:
                text = f"it was not ready within {options.init_timeout:g} s of its start"
                self._too_late(slot, job, text)
            elif job.begun is not None and now - job.begun > options.timeout:
                self._too_late(slot, job, f"it was not done within {options.timeout:g} s")

    def _too_late(self, slot: Slot, job: RunningAttempt, text: str) -> None:
        # Set before waiting for the traceback, which must not count as work.
        job.over = time.monotonic()
        slot.process.dump()
        self._finish(slot, Ending.TIMED_OUT, text, keep=False)

    def _lost(self, slot: Slot) -> None:
        """Handle a process that has ended or closed its connection."""
        deadline = time.monotonic() + 1.0
        # The socket closes shortly before the exit status becomes available.
        while (status := slot.process.exit_status()) is None and time.monotonic() < deadline:
            time.sleep(0.001)
        # It was idle when it ended, so no attempt is lost.
        if slot.job is None:
            self._pool.drop(slot)
            return
        ending, text = classify_exit(status, slot.job.peak_mb, self._memory.of(slot.job.rank))
        self._finish(slot, ending, text, keep=False)

    def _not_started(self, job: RunningAttempt, error: OSError) -> None:
        attempt = Attempt(
            job.rank, job.attempt, job.request_id, Ending.RAISED,
            f"no process could be started for it: {error.strerror}", job.started_epoch,
            0.0, self._memory.of(job.rank), 0.0, 0.0,
        )  # fmt: skip
        self._note_end(attempt, start_lines(job.request_id, cold=True))

    # Recording how attempts end.

    def _finish(
        self,
        slot: Slot,
        ending: Ending,
        message: str,
        *,
        keep: bool,
        work_seconds: float = 0.0,
        rows: int = 0,
    ) -> None:
        job = slot.job
        assert job is not None
        attempt = self._measure(slot, job, ending, message, work_seconds, rows)
        if ending is Ending.OUT_OF_MEMORY:
            self._memory.ran_out(job.rank)
        # The output from before the assignment precedes START, so it is already in the log.
        head = start_lines(job.request_id, cold=job.cold) if job.begun is None else ""
        output = slot.process.output.take()
        slot.job = None
        if not keep:
            self._pool.drop(slot)
        self._note_end(attempt, head, output)
        if ending is Ending.DONE:
            self._who[job.rank] = slot.process
            # The first successful attempt wins; another would only write the same results again.
            self._stop_rivals(job.rank)
        # If no worker ever became ready, the model or installation is broken, not a rank.
        elif job.begun is None and ending is not Ending.STOPPED and not self._ever_ready:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                self.leave_waiting(message)

    def leave_waiting(self, message: str) -> None:
        """Fail the waiting ranks with this message; running attempts continue."""
        for event in self._schedule.give_up(message):
            self._report(event)

    def _measure(
        self,
        slot: Slot,
        job: RunningAttempt,
        ending: Ending,
        message: str,
        work_seconds: float,
        rows: int,
    ) -> Attempt:
        now = job.over or time.monotonic()
        waited = (now - slot.process.started) * 1000 if slot.init_ms is None else slot.init_ms
        return Attempt(
            rank=job.rank,
            attempt=job.attempt,
            request_id=job.request_id,
            ending=ending,
            message=message,
            started=slot.process.started_epoch if job.cold else job.started_epoch,
            duration_ms=0.0 if job.begun is None else (now - job.begun) * 1000,
            memory_mb=self._memory.of(job.rank),
            max_memory_mb=job.peak_mb,
            init_ms=waited if job.cold else None,
            work_seconds=work_seconds,
            rows=rows,
            cores=self._options.threads,
        )

    def _note_end(self, attempt: Attempt, head: str, output: str = "") -> None:
        event = self._schedule.end(attempt, time.monotonic())
        rank = attempt.rank
        last = self._schedule.decided(rank) and not self._schedule.rivals(rank)
        said = "" if event is None else standing_line(event.state)
        self._logs.add(rank, head + end_lines(attempt, output) + said, last=last)
        if event is not None:
            self._report(event)
        if rank in self._schedule.failed and self._items[rank].options.talks:
            self._end_talks(rank)

    def _end_talks(self, lost: int) -> None:
        """Stop the other ranks of a failed one: they would wait for its messages forever."""
        message = f"rank {lost}, which it talks to, failed: {self._schedule.failed[lost]}"
        for slot in list(self._pool):
            if slot.job is not None:
                rank = slot.job.rank
                self._finish(slot, Ending.STOPPED, message, keep=False)
                self._report(self._schedule.fail(rank, message))
        self.leave_waiting(message)

    def _stop_rivals(self, rank: int) -> None:
        for slot in self._pool:
            if slot.job is not None and slot.job.rank == rank:
                self._finish(slot, Ending.STOPPED, "another attempt was faster", keep=False)

    def _end_all(self, stop: StopRequests) -> None:
        """End every worker, with SIGTERM first if it is busy, unless the user asked twice."""
        busy = [slot for slot in self._pool if slot.job is not None]
        for slot in busy:
            slot.process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        while stop.count < 2 and time.monotonic() < deadline:
            if all(slot.process.exit_status() is not None for slot in busy):
                break
            time.sleep(0.01)
        for slot in self._pool:
            if slot.job is None:
                self._pool.drop(slot)
            else:
                self._finish(slot, Ending.STOPPED, "the run was stopped", keep=False)
