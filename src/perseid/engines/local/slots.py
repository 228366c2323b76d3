"""The state of one worker of the local engine, and the classification of its attempts' ends."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from perseid.engines.local.process import WorkerProcess
from perseid.engines.worker_messages import AttemptDone, AttemptFailed
from perseid.pipeline.attempts import Ending

NEARLY_FULL = 0.9
"""Fraction of the memory limit above which a worker that was killed counts as out of memory."""


@dataclass
class RunningAttempt:
    """An attempt that is under way in a worker."""

    rank: int
    attempt: int
    request_id: str
    cold: bool
    started_epoch: float
    begun: float | None = None
    """Monotonic time at which the item was sent; None while the worker is in its init."""
    over: float | None = None
    """Monotonic time at which it was found to be overdue; its traceback is requested after that."""
    peak_mb: float = 0.0


@dataclass(eq=False)
class Slot:
    """One worker process and its current attempt."""

    process: WorkerProcess
    job: RunningAttempt | None = None
    init_ms: float | None = None
    """Duration of the init in milliseconds; None until the process is ready."""


def ending_of(message: AttemptDone | AttemptFailed) -> Ending:
    """The ending of an attempt, according to the worker's last message about it."""
    if isinstance(message, AttemptDone):
        return Ending.DONE
    if message.no_result:
        return Ending.NO_RESULT
    # Only a final error skips the retries.
    return Ending.BAD_INPUT if message.final else Ending.RAISED


def classify_exit(status: int | None, peak_mb: float, memory_mb: int) -> tuple[Ending, str]:
    """Classify the end of a worker process; return the ending and a sentence for the user."""
    if status is None:
        return Ending.NO_RESULT, "its process closed its connection without a result"
    if status >= 0:
        return Ending.NO_RESULT, f"its process exited with status {status} without a result"
    name = signal.Signals(-status).name
    # The kernel does not say why it killed a process: nearly full memory counts as the cause.
    if status == -signal.SIGKILL and peak_mb > NEARLY_FULL * memory_mb:
        return Ending.OUT_OF_MEMORY, f"it was killed at {peak_mb:.0f} MB of its {memory_mb} MB"
    if status == -signal.SIGKILL:
        text = "its process was killed (SIGKILL) by a user, or by a machine that ran out of memory"
        return Ending.KILLED, text
    return Ending.KILLED, f"its process was ended by {name}; its log may say why"
