"""How the local engine treats its workers."""

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
    """How the local engine treats its workers."""

    workers: int | None = None
    """Processes at once; None: as many as this process has cores for `threads` threads each."""
    threads: int = 1
    """Threads a worker computes with."""
    memory_mb: int = 1769
    """Resident memory that a rank may take, MiB; a rank above it is ended (1,769 MB is the memory
    that Lambda gives one vCPU with)."""
    timeout: float = 900.0
    """Seconds that a rank may work; Lambda's longest."""
    init_timeout: float = 120.0
    """Seconds from a process' start until it is ready."""
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    """When a failed rank is tried again."""
    more_memory: bool = False
    """Whether a rank that took more than `memory_mb` may have twice as much at its next attempt, as
    far as the machine has it."""
    second_attempts: bool = True
    """Whether an idle worker doubles a straggler (`perseid.engines.retry.is_straggler`)."""
    command: Sequence[str] = WORKER
    """The worker's program: one that calls `perseid.engines.worker_program.main`."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """Further variables of the workers and of the scripts that they start."""

    def __post_init__(self) -> None:
        for name in ("workers", "threads", "memory_mb", "timeout", "init_timeout"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise BadInputError(f"{name} must be above 0, not {value}")

    @property
    def concurrency(self) -> int:
        """How many workers run at once."""
        return self.workers or max(1, cores() // self.threads)


def cores() -> int:
    """Cores that this process may use, by its affinity and its control group's quota."""
    return usable_threads()


def options_of(request: RunRequest) -> LocalOptions:
    """The local engine's options as a request says them."""
    return LocalOptions(
        workers=request.workers,
        threads=request.threads or 1,
        memory_mb=request.memory_mb,
        timeout=request.timeout,
        retry=RetryPolicy(request.retries),
    )
