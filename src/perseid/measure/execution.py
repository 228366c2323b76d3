"""An execution of a state machine: when it began and ended, and how long each step took."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One state of the state machine, as the execution went through it."""

    name: str
    kind: str
    """``Task``, ``Map``, ``Choice``, …"""
    started: float
    """Seconds since the epoch."""
    ended: float | None = None
    """None: it had not ended where the history ends, or it failed."""


@dataclass(frozen=True)
class ExecutionInput:
    """What the execution was given, as far as measuring needs it."""

    result_path: str | None = None
    """Where its results go; None if its input does not say."""
    batch_size: int | None = None
    world_size: int | None = None


@dataclass(frozen=True)
class Execution:
    """One execution of a state machine."""

    arn: str
    status: str
    """``RUNNING``, ``SUCCEEDED``, ``FAILED``, ``ABORTED`` or ``TIMED_OUT``."""
    started: float
    """Seconds since the epoch."""
    ended: float | None = None
    input: ExecutionInput = ExecutionInput()
    steps: tuple[Step, ...] = ()
    """Top-level states in order; those inside a map are not among them."""
    transitions: int = 0
    """States that this execution entered; children of a distributed map have their own."""
    map_run: str | None = None
    """ARN of its (last) distributed map."""
    error: str = ""
    cause: str = ""

    @property
    def seconds(self) -> float | None:
        """The whole execution; None while it runs."""
        return None if self.ended is None else self.ended - self.started

    @property
    def map(self) -> Step | None:
        """The map state; where there are several, the one that took longest."""
        maps = [step for step in self.steps if step.kind == "Map"]
        return max(maps, key=lambda s: (s.ended or s.started) - s.started, default=None)

    def part(self, which: str) -> float | None:
        """Seconds ``before``, in (``map``) or ``after`` the map state; None if not known."""
        middle = self.map
        if middle is None or middle.ended is None:
            return None
        if which == "before":
            return middle.started - self.started
        if which == "map":
            return middle.ended - middle.started
        return None if self.ended is None else self.ended - middle.ended
