"""Options of the local engine for its workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from perseid.engines.retry import RetryPolicy
from perseid.engines.worker_command import WORKER
from perseid.errors import BadInputError
from perseid.model.runtime.processor import usable_threads
from perseid.pipeline.request import RunRequest


@dataclass(frozen=True)
class LocalOptions:
    """Options of the local engine for its workers."""

    workers: int | None = None
    """Number of processes at once; None for as many as the cores allow with `threads` each."""
    threads: int = 1
    """Number of threads that each worker computes with."""
    memory_mb: int = 1769
    """Limit of a rank's resident memory, in MiB; a rank that exceeds it is ended. With 1,769 MB,
    Lambda provides one vCPU."""
    timeout: float = 900.0
    """Time limit of an attempt, in seconds; the default is the maximum of Lambda."""
    init_timeout: float = 120.0
    """Time limit for a process to become ready, in seconds from its start."""
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    """When a failed rank is tried again."""
    more_memory: bool = False
    """Whether a rank that exceeded its limit may take twice as much at its next attempt, if the
    machine has that much available."""
    second_attempts: bool = True
    """Whether an idle worker starts a second attempt at a straggler
    (`perseid.engines.retry.is_straggler`)."""
    command: Sequence[str] = WORKER
    """Command line of the worker program, which calls `perseid.engines.worker_program.main`."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """Additional environment variables of the workers and of the scripts that they start."""

    def __post_init__(self) -> None:
        for name in ("workers", "threads", "memory_mb", "timeout", "init_timeout"):
            value = getattr(self, name)
            # None means a default, which is not known here.
            if value is not None and value <= 0:
                raise BadInputError(f"{name} must be above 0, not {value}")

    @property
    def concurrency(self) -> int:
        """Number of workers that run at once."""
        # At least one, even if a worker has more threads than the machine has cores.
        return self.workers or max(1, cores() // self.threads)


def cores() -> int:
    """Number of cores that this process may use, from its affinity and its cgroup's quota."""
    return usable_threads()


def options_of(request: RunRequest) -> LocalOptions:
    """The options of the local engine that a request states."""
    return LocalOptions(
        workers=request.workers,
        threads=request.threads or 1,
        memory_mb=request.memory_mb,
        timeout=request.timeout,
        retry=RetryPolicy(request.retries),
    )
