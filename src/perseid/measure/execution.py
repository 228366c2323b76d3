"""An execution of a state machine: its beginning and end, and the time of each step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One state of the state machine that the execution went through."""

    name: str
    kind: str
    """Type of the state: ``Task``, ``Map``, ``Choice``, …"""
    started: float
    """Time of its start, in seconds since the epoch."""
    ended: float | None = None
    """Time of its end; None if it failed, or had not ended at the end of the history."""


@dataclass(frozen=True)
class ExecutionInput:
    """The part of an execution's input that measuring needs."""

    result_path: str | None = None
    """Path of its results; None if the input does not say it."""
    batch_size: int | None = None
    world_size: int | None = None


@dataclass(frozen=True)
class Execution:
    """One execution of a state machine."""

    arn: str
    status: str
    """``RUNNING``, ``SUCCEEDED``, ``FAILED``, ``ABORTED`` or ``TIMED_OUT``."""
    started: float
    """Time of its start, in seconds since the epoch."""
    ended: float | None = None
    """Time of its end; None while it runs."""
    input: ExecutionInput = ExecutionInput()
    steps: tuple[Step, ...] = ()
    """Top-level states in order, without those inside a map."""
    transitions: int = 0
    """Number of states that this execution entered, without those of a distributed map's
    children."""
    map_run: str | None = None
    """ARN of its last distributed map; None without one."""
    error: str = ""
    cause: str = ""

    @property
    def seconds(self) -> float | None:
        """Duration of the whole execution; None while it runs."""
        return None if self.ended is None else self.ended - self.started

    @property
    def map(self) -> Step | None:
        """The map state; if there are several, the one that took longest."""
        maps = [step for step in self.steps if step.kind == "Map"]
        return max(maps, key=lambda s: (s.ended or s.started) - s.started, default=None)

    def part(self, which: str) -> float | None:
        """Seconds ``before``, in (``map``) or ``after`` the map state; None if unknown."""
        middle = self.map
        if middle is None or middle.ended is None:
            return None
        # From the start of the execution, including what comes before its first state.
        if which == "before":
            return middle.started - self.started
        if which == "map":
            return middle.ended - middle.started
        return None if self.ended is None else self.ended - middle.ended
