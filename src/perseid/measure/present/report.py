"""``report.html``: one page about one run that works offline and explains each number."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from perseid.errors import BadInputError, NotFoundError
from perseid.measure.folder import RunFolder
from perseid.measure.measured_run import MeasuredRun
from perseid.measure.present import pages
from perseid.measure.present.answer_sections import answer_sections
from perseid.measure.present.findings import (
    detection_section,
    gallery_section,
    predicts_redshifts,
    redshift_section,
)
from perseid.measure.present.run_tables import bill
from perseid.measure.present.text import seconds, significant
from perseid.measure.present.view import (
    Definitions,
    Heading,
    PageView,
    Paragraph,
    Preformatted,
    Section,
    StatusView,
    Tile,
)
from perseid.measure.present.words import DEFINITIONS, THROUGHPUT
from perseid.measure.present.workers import cost_section, duration_section, timeline_section
from perseid.measure.prices import Prices
from perseid.measure.sources.catalogue_columns import CatalogueColumns, read_catalogue
from perseid.pipeline import layout
from perseid.pipeline.schema import to_plain
from perseid.plaintext import counted

NAMED = 24
"""Most missing ranks and partitions that are named at the top."""


def render_report(run: MeasuredRun, prices: Prices | None = None) -> str:
    """Render the page of a stored run as one HTML document.

    If something is missing (the catalogue, labels, redshifts, partitions), its place says so.

    Parameters
    ----------
    run
        A run that `perseid.measure.sources.load.load_runs` read from its folder.
    prices
        Prices to use instead of the list prices.

    Raises
    ------
    BadInputError
        The run is not a run of perseid, so it has no folder.
    """
    folder = run.folder
    if folder is None:
        raise BadInputError(f"{run.name} is not a run of perseid: it has no report page")
    prices, catalogue = prices or Prices(), _catalogue(folder)
    title = _title(run)
    page = PageView(
        title=f"{title}: perseid run report",
        eyebrow="perseid run report",
        heading=title,
        sub=f"{folder.manifest.run_id} · {_began(folder)}",
        status=_status(run, folder),
        tiles=_tiles(run, folder, prices),
        wide_tiles=tuple(
            Tile(THROUGHPUT[key][0], f"{significant(value, 3)} Gb/s", THROUGHPUT[key][1])
            for key, value in run.throughput().items()
        ),
        sections=(
            *([redshift_section(catalogue)] if predicts_redshifts(catalogue) else []),
            *answer_sections(folder),
            timeline_section(run),
            duration_section(run),
            cost_section(run, prices, on_aws=folder.engine.on_aws),
            detection_section(catalogue, folder),
            gallery_section(catalogue, run, folder),
            _request_section(run, folder),
        ),
        foot=f"Made by perseid {folder.manifest.version} from {run.name}",
    )
    return pages.render(page)


def _catalogue(folder: RunFolder) -> CatalogueColumns | None:
    if not any(layout.is_catalogue(key) for key in folder.keys):
        return None
    try:
        return read_catalogue(folder.store)
    # The keys were listed before: a run that is being replaced may have lost its catalogue.
    except NotFoundError:
        return None


def _title(run: MeasuredRun) -> str:
    size = f"{run.data} in partitions of {run.partition}" if run.partition else "A run"
    return f"{size}, {counted(run.expected or 0, 'rank')}"


def _began(folder: RunFolder) -> str:
    return datetime.fromtimestamp(folder.manifest.created, UTC).strftime("%d %B %Y, %H:%M:%S UTC")


def _status(run: MeasuredRun, folder: RunFolder) -> StatusView:
    files, lost = len(folder.manifest.partitions), _lost_partitions(run, folder)
    # Ranks may all be there although a partition could not be read.
    if run.is_complete and not lost:
        words = f"{counted(run.received, 'rank')} and {counted(files, 'partition')}, none missing"
        return StatusView(True, "Complete", words)
    words = f"{run.received} of {run.expected} ranks, {files - len(lost)} of {files} partitions."
    if run.missing:
        words += f" Missing ranks: {_listed([str(rank) for rank in run.missing])}."
    if lost:
        words += f" Missing partitions: {_listed(list(lost))} (first reason: "
        words += f"{next(iter(lost.values()))})."
    if folder.summary is None:
        words += " The run has no summary: it was not finished."
    return StatusView(False, "Incomplete", words)


def _lost_partitions(run: MeasuredRun, folder: RunFolder) -> dict[str, str]:
    """Reason for each partition that was not read, by its key, in natural order."""
    if folder.summary is not None:
        return dict(folder.summary.lost)
    # Without a summary, only the records tell which partitions were read.
    read = {part.key for record in run.records for part in record.partitions}
    return {ref.key: "no record" for ref in folder.manifest.partitions if ref.key not in read}


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"


def _tiles(run: MeasuredRun, folder: RunFolder, prices: Prices) -> tuple[Tile, ...]:
    cost, span, reports = bill(run, prices), run.duration, run.reports
    where = "list prices, without free tier" if folder.engine.on_aws else "would have cost on AWS"
    memory, cold = run.max_memory_mb, sum(report.cold for report in reports)
    none = "no REPORT lines"
    return (
        Tile("Rows", f"{run.rows or 0:,}", _predicted(run)),
        Tile("Duration", f"{seconds(span.seconds).text} s" if span else "–", span.what if span
             else "not known"),
        Tile("Cost as billed", f"${significant(cost.total, 3)}" if cost else "–",
             where if cost else none),
        Tile("Peak memory", "–" if memory is None else f"{memory:.0f} MB",
             none if memory is None else "of any invocation"),
        Tile("Invocations", f"{len(reports):,}" if reports else "–",
             counted(cold, "cold start") if reports else none),
        Tile("Transport", run.transport or "–", _transport_note(run, folder)),
    )  # fmt: skip


def _predicted(run: MeasuredRun) -> str:
    """Say how many of all rows have no prediction."""
    flagged = sum(record.flagged for record in run.records)
    if not run.rows:
        return "no row was read"
    if flagged:
        return f"{flagged:,} of them without a prediction"
    return "all with a prediction"


def _transport_note(run: MeasuredRun, folder: RunFolder) -> str:
    asked = folder.manifest.settings.transport
    took = run.collectives_seconds
    # Asked for a faster way, but merged from the store: the reason is among the notes.
    if run.transport == "store" != asked:
        return f"of the ranks' statistics; {asked} was asked for: see the notes below"
    if not took:
        return "of the ranks' statistics"
    return f"of the ranks' statistics; the collectives took {seconds(took).text} s at most"


def _request_section(run: MeasuredRun, folder: RunFolder) -> Section:
    manifest = folder.manifest
    return Section(
        "request",
        "Request and definitions",
        parts=(
            *(Paragraph(f"Note: {text}.", note=True) for text in run.notes),
            Heading("As it was given"),
            Preformatted(json.dumps(dict(manifest.request), indent=2, ensure_ascii=False)),
            Heading("What all ranks were told"),
            Preformatted(json.dumps(to_plain(manifest.settings), indent=2, ensure_ascii=False)),
            Heading("What the numbers mean"),
            Definitions(tuple(DEFINITIONS.items())),
        ),
    )
