"""The page of a run: its progress while it goes on, and its times and cost afterwards."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from perseid.api.progress_display import duration
from perseid.api.run import Run
from perseid.errors import PerseidError
from perseid.explore.explored_run import ExploredRun
from perseid.explore.live import LiveRun, LiveView, RankView
from perseid.measure.present.charts import Lane, stages_used, timeline
from perseid.measure.present.text import significant
from perseid.measure.present.view import Figure, Legend, Tile
from perseid.pipeline.events import RankState
from perseid.plaintext import counted

MARKS = {
    RankState.WAITING: "·", RankState.RUNNING: "▸", RankState.RETRYING: "↻",
    RankState.DONE: "✓", RankState.FAILED: "✕",
}  # fmt: skip
"""Sign of each state, so that color is not needed to tell them apart."""
LOG_LINES = 2000
"""Maximum number of lines of a log that are shown, from its end."""


@dataclass(frozen=True)
class RankRow:
    """One rank in the list of ranks."""

    rank: int
    state: str
    mark: str
    rows: str
    attempt: str
    seconds: str
    memory: str
    message: str


@dataclass(frozen=True)
class RunView:
    """The part of the page that changes while the run goes on."""

    going: bool
    state: str
    """``running``, ``complete``, ``incomplete`` or ``not ended``."""
    words: str
    fraction: float
    percent: str
    left: str
    tiles: tuple[Tile, ...]
    ranks: tuple[RankRow, ...]
    counted: bool
    """Whether the engine reports how many ranks are running, but not which."""
    gantt: Figure | None
    legend: Legend | None
    notes: tuple[str, ...]


def run_view(explored: ExploredRun, live: LiveRun) -> RunView:
    """Content of the page, for the present state of the run."""
    view = live.view()
    lanes = _lanes(view)
    drawn = any(lane.bars for lane in lanes)
    stages = stages_used(lanes)
    return RunView(
        going=view.going,
        state=_state(explored, view),
        words=view.words,
        fraction=view.fraction,
        percent=f"{100 * view.fraction:.0f} %",
        left=view.left_words,
        tiles=_tiles(explored, view),
        ranks=tuple(_row(rank) for rank in view.ranks),
        counted=view.counts is not None,
        gantt=Figure.drawn(lambda w, k: timeline(lanes, w, k), "One row a rank.")
        if drawn
        else None,
        legend=Legend(tuple((stage, stage) for stage in stages)) if drawn else None,
        notes=view.notes,
    )


def _state(explored: ExploredRun, view: LiveView) -> str:
    if view.going:
        return "running"
    try:
        return "complete" if explored.run.incomplete is None else "incomplete"
    except PerseidError:
        return "not ended"


def _tiles(explored: ExploredRun, view: LiveView) -> tuple[Tile, ...]:
    done, failed = view.count(RankState.DONE), view.count(RankState.FAILED)
    memory, world = view.memory_mb, explored.run.manifest.world_size
    ended = max((rank.ended for rank in view.ranks if rank.ended), default=None)
    # A page that is opened days later shows the duration of the run, not its age.
    until = time.time() if view.going else (ended or view.began)
    # Elsewhere nothing is billed, and the tile says what AWS would charge.
    on_aws = explored.run.engine.on_aws
    waiting = view.count(RankState.WAITING)
    pace = f"{view.rows_a_second:,.0f} rows/s lately" if view.rows_a_second >= 0.5 else "rows read"
    return (
        Tile("Ranks done", f"{done} of {world}", f"{failed} failed, {view.retried} tried again"),
        Tile("Running", str(view.count(RankState.RUNNING)), f"{waiting} waiting"),
        Tile("Rows", f"{view.rows:,}", pace if view.going else "predicted"),
        Tile("Time", duration(until - view.began), _left(view)),
        Tile("Cost so far" if view.going else "Cost of the workers",
             f"${significant(view.usd, 3)}" if view.usd else "–",
             "of ranks that are done" if on_aws else "what it would cost on AWS"),
        Tile("Peak memory", f"{memory:.0f} MB" if memory else "–", "of any rank that is done"),
    )  # fmt: skip


def _left(view: LiveView) -> str:
    if not view.going:
        return "until the last rank ended"
    return f"{view.left_words} left" if view.left_words else "since it began"


def _row(rank: RankView) -> RankRow:
    memory = rank.memory_mb
    # A running rank shows the time so far.
    seconds = "" if rank.began is None else duration((rank.ended or time.time()) - rank.began)
    return RankRow(
        rank.rank,
        rank.state.value,
        MARKS[rank.state],
        f"{rank.rows:,}" if rank.rows else "",
        str(rank.attempt) if rank.attempt else "",
        seconds,
        f"{memory:.0f} MB" if memory else "",
        rank.message,
    )


def _lanes(view: LiveView) -> Sequence[Lane]:
    """Bars of the timeline: stages of ranks that are done, and elapsed time of running ones."""
    starts = [rank.began for rank in view.ranks if rank.began is not None]
    zero, now = min(starts, default=0.0), time.time()
    lanes = []
    for rank in view.ranks:
        bars = rank.record.timeline if rank.record else ()
        if not bars and rank.began is not None:
            bars = (("init", rank.began, rank.ended or now),)
        # The timeline begins with the first rank, not at the epoch.
        shifted = tuple((stage, start - zero, end - zero) for stage, start, end in bars)
        lanes.append(Lane(rank.rank, shifted, lost=rank.state is RankState.FAILED))
    return lanes


def log_lines(run: Run, rank: int) -> str:
    """The last lines of a rank's log."""
    lines = [line for _, line in run.logs(rank)]
    if not lines:
        return f"rank {rank} has logged nothing yet"
    # The end of a log is what explains a failure.
    left = f"… {counted(len(lines) - LOG_LINES, 'line')} before\n" if len(lines) > LOG_LINES else ""
    return left + "\n".join(lines[-LOG_LINES:])
