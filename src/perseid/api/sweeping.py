"""Many runs over one survey: a grid of partition, data, world and batch sizes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from perseid.api.runs import run
from perseid.engines.base import Engine
from perseid.engines.local import LocalEngine
from perseid.errors import BadInputError
from perseid.jsontext import parse_json
from perseid.measure.grid import DEFAULT_BATCH, WHOLE, GridCell, grid
from perseid.measure.measured_run import MeasuredRun, size_mb
from perseid.measure.present.run_tables import partition_table, run_table
from perseid.measure.present.sweep import figures, render_sweep
from perseid.measure.prices import Prices, prices_of
from perseid.measure.sources.load import load_runs
from perseid.measure.sources.load_options import LoadOptions
from perseid.pipeline.run_state import last_summary
from perseid.plaintext import html_table, option
from perseid.storage import Location, Storage
from perseid.survey import discover
from perseid.survey.split import split

__all__ = ["DEFAULT_BATCH", "WHOLE", "CellResult", "GridCell", "Sweep", "sweep"]

PARTITIONS = "partitions"
DONE = "split.json"
"""Marks a folder of partitions as complete, and names the survey they were made from."""


@dataclass(frozen=True)
class CellResult:
    """Outcome of one run of a sweep."""

    cell: GridCell
    status: str
    """``complete``, ``incomplete`` or ``mixed``."""
    received: int
    """Ranks that left a record."""
    expected: int
    seconds: float | None
    """None if an earlier call had already completed it."""
    number: int = 1
    """Number of the run in the sweep, from 1."""
    total: int = 1
    """Number of runs in the sweep."""


@dataclass(frozen=True)
class Sweep:
    """A finished sweep: the outcome of each run, its measurements, and their report.

    Examples
    --------
    >>> done = perseid.sweep("survey/", "sweep/", repeat=1)  # doctest: +SKIP
    >>> [(one.cell.path, one.status, one.seconds) for one in done.cells]  # doctest: +SKIP
    """

    folder: Path
    """Folder of its runs and of everything that `publish` writes."""
    cells: tuple[CellResult, ...]
    """One result per run, in the order in which they ran."""
    architecture: str = "x86"
    """Processor architecture whose prices apply to the runs."""

    def _repr_html_(self) -> str:
        rows = [(one.cell.path, one.status, f"{one.received:,} of {one.expected:,}")
                for one in self.cells]  # fmt: skip
        return html_table(("run", "state", "ranks"), rows)

    @property
    def incomplete(self) -> int:
        """Number of runs that are not complete; calling `sweep` again retries them."""
        return sum(one.status != "complete" for one in self.cells)

    @cached_property
    def runs(self) -> list[MeasuredRun]:
        """Memory, duration and cost of every run."""
        places = [str(self.folder / one.cell.path) for one in self.cells]
        return load_runs(places, LoadOptions(self.architecture))

    def publish(self, prices: Prices | str | Path | None = None) -> list[Path]:
        """Write ``runs.csv``, ``partitions.csv``, ``sweep.html`` and the figures; their paths."""
        prices = prices_of(prices)
        files = {
            self.folder / "runs.csv": run_table(self.runs, prices).render("csv"),
            self.folder / "partitions.csv": partition_table(self.runs, prices).render("csv"),
            self.folder / "sweep.html": render_sweep(self.runs, prices),
        }
        for figure in figures(self.runs, prices):
            files[self.folder / "plots" / f"{figure.name}.svg"] = figure.file()
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return list(files)


def sweep(
    data: str | Path,
    out: str | Path,
    *,
    partition_sizes: Sequence[str] = ("25MB",),
    data_sizes: Sequence[str] = (WHOLE,),
    world_sizes: Sequence[int | None] = (None,),
    batch_sizes: Sequence[int] = (DEFAULT_BATCH,),
    repeat: int = 3,
    model: str = "default",
    engine: Engine | None = None,
    architecture: str = "x86",
    report: Callable[[CellResult], None] | None = None,
) -> Sweep:
    """Run a parameter grid over a survey, skipping runs that are already complete.

    Parameters
    ----------
    data
        A survey: a file, folder or URL. It is split again into partitions of each size.
    out
        Folder of the sweep.
    partition_sizes, data_sizes
        Sizes such as ``25MB`` and ``1GB``. A run takes ceil(data / partition) partitions; ``all``
        means all of them.
    world_sizes
        Numbers of ranks; None means one per partition.
    batch_sizes
        Most rows per call of the model.
    repeat
        Repetitions of each combination.
    model
        An exported model, or ``default``.
    engine
        Engine on which the runs work; default: this machine.
    architecture
        Processor architecture whose prices apply to the runs: ``x86`` or ``arm``.
    report
        Called after each run.

    Raises
    ------
    BadInputError
        A size cannot be parsed, or the survey is smaller than a requested size.

    Examples
    --------
    >>> done = perseid.sweep("survey/", "sweep/", data_sizes=["1GB", "2GB"])  # doctest: +SKIP
    >>> done.publish()  # doctest: +SKIP
    """
    folder = Path(out)
    cells = grid(partition_sizes, data_sizes, batch_sizes, world_sizes, repeat)
    parts = {size: _partitioned(str(data), folder, size) for size in partition_sizes}
    for cell in cells:
        _check(cell, parts[cell.partition])
    results = []
    for number, cell in enumerate(cells, 1):
        place = folder / cell.path
        result = _completed(cell, place)
        if result is None:
            result = _run_cell(cell, parts[cell.partition], place, model, engine or LocalEngine())
        result = replace(result, number=number, total=len(cells))
        if report is not None:
            report(result)
        results.append(result)
    return Sweep(folder, tuple(results), architecture)


def _partitioned(survey: str, out: Path, size: str) -> Path:
    """Split the survey into partitions of a size, once for all runs of the sweep."""
    if not size_mb(size):
        raise BadInputError(f"{size!r} is not a size: give one such as 25MB or 1GB")
    folder = out / PARTITIONS / size
    mark = folder / DONE
    source = Location.parse(survey).url
    if mark.is_file():
        known = parse_json(mark.read_text())["survey"]
        if known != source:
            raise BadInputError(
                f"{folder} holds partitions of {known}, not of {source}: choose another "
                f"{option('out')}"
            )
        return folder
    done = split(survey, folder, size=size, overwrite=True)
    mark.write_text(json.dumps({"survey": source, "rows": done.rows, "files": done.partitions}))
    return folder


def _check(cell: GridCell, folder: Path) -> None:
    """Raise `BadInputError` if the survey is smaller than a cell of the grid needs."""
    have = parse_json((folder / DONE).read_text())["files"]
    if cell.files is not None and cell.files > have:
        raise BadInputError(
            f"{cell.data} in partitions of {cell.partition} are {cell.files} files, and the survey "
            f"has {have}: leave {cell.data} out of {option('data_sizes')}"
        )


def _completed(cell: GridCell, place: Path) -> CellResult | None:
    """The result of an earlier call; None if the run is not complete."""
    summary = last_summary(Storage(place)) if place.is_dir() else None
    if summary is None or summary["status"] != "complete":
        return None
    ranks = summary["ranks"]
    return CellResult(cell, "complete", ranks["received"], ranks["expected"], None)


def _run_cell(cell: GridCell, folder: Path, place: Path, model: str, engine: Engine) -> CellResult:
    data = [folder / info.key for info in discover(folder).partitions[: cell.files]]
    began = time.monotonic()
    summary = run(
        data,
        engine=engine,
        replace=True,
        progress=False,
        results=str(place),
        batch_size=cell.batch_size,
        model=model,
        world_size=cell.world_size or len(data),
    ).summary
    ranks, seconds = summary["ranks"], time.monotonic() - began
    return CellResult(cell, summary["status"], ranks["received"], ranks["expected"], seconds)
