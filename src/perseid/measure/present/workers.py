"""Sections of a report about the workers: their timeline, durations and cost."""

from __future__ import annotations

from collections.abc import Iterable

from perseid.measure.measured_run import MeasuredRun, percentiles
from perseid.measure.present.charts import (
    Lane,
    distribution,
    splits_rows,
    stages_used,
    timeline,
)
from perseid.measure.present.palette import STAGES
from perseid.measure.present.run_tables import bill
from perseid.measure.present.text import dollars, quantity, seconds, significant
from perseid.measure.present.view import (
    DataTable,
    Figure,
    Head,
    Heading,
    Legend,
    Paragraph,
    Section,
    TableEntry,
)
from perseid.measure.present.words import DEFINITIONS
from perseid.measure.prices import Prices
from perseid.plaintext import counted

OVERLAP = (
    "Fetch and decode overlap with inference: they are in the upper part of each row, all other "
    "stages in the lower one."
)


def absent(ident: str, title: str, words: str) -> Section:
    """A section that only says why it is empty."""
    return Section(ident, title, parts=(Paragraph(words),))


def timeline_section(run: MeasuredRun) -> Section:
    """Section that shows what each rank did, and when."""
    title, lanes = "Workers in time", _lanes(run)
    stages = stages_used(lanes)
    if not stages:
        return absent("timeline", title, "No rank left a timeline.")
    entries = [(stage, stage) for stage in stages]
    if any(lane.lost for lane in lanes):
        entries.append(("lost", "no record"))
    caption = "One row per rank."
    if splits_rows(len(lanes)) and {"fetch", "decode"} & set(stages):
        caption += f" {OVERLAP}"
    figure = Figure.drawn(lambda width, kind: timeline(lanes, width, kind), caption)
    lead = "What each rank did, and when."
    return Section("timeline", title, lead, (Legend(tuple(entries)), figure))


def _lanes(run: MeasuredRun) -> list[Lane]:
    """A lane for every expected rank, in seconds since the first start of any rank."""
    known = {record.rank: record.timeline for record in run.records}
    starts = [start for bars in known.values() for _, start, _ in bars]
    zero = min(starts, default=0.0)
    return [
        Lane(
            rank,
            tuple((stage, start - zero, end - zero) for stage, start, end in known.get(rank, ())),
            lost=rank not in known,
        )
        # Ranks without a record get an empty lane, so that they are seen.
        for rank in range(run.expected or 0)
    ]


def duration_section(run: MeasuredRun) -> Section:
    """Section about the durations of all workers."""
    if not run.durations:
        return absent("durations", "Durations", "Nothing says how long the workers took.")
    count, of = len(run.durations), run.duration_of
    # Without REPORT lines, only ranks that left a record have a duration, and no retry shows.
    whose, retries = ("rank", "")
    if run.reports:
        whose, retries = "invocation", ", failed ones and retries included"
    caption = f"{counted(count, whose)}{retries}; none is left out."
    lead = f"{of[0].upper()}{of[1:]}, of every {whose}."
    figure = Figure.drawn(
        lambda width, kind: distribution(run.durations, width, (f"{of}, s", f"{whose}s"), kind),
        caption,
    )
    return Section("durations", "Durations", lead, (figure, *_stage_table(run)))


def _stage_table(run: MeasuredRun) -> Iterable[Heading | DataTable]:
    """Table with percentiles of each stage, over the ranks whose records have stages."""
    records = [record.stages for record in run.records if record.stages]
    named = {name for stages in records for name in stages}
    # Known stages in the order of the timeline, then others (scripts may have their own), then the
    # total.
    order = [*(stage for stage in STAGES if stage in named), *sorted(named - {*STAGES, "total"})]
    rows = []
    for stage in [*order, *({"total"} & named)]:
        values = percentiles([stages.get(stage, 0.0) for stages in records])
        # A stage that took no time in any rank is not worth a row.
        if values[-1] > 0:
            rows.append((TableEntry(stage), *(TableEntry(seconds(value).text) for value in values)))
    if not rows:
        return ()
    heads = (Head("Stage", "word"), *(Head(name) for name in ("p50", "p90", "p99", "max")))
    caption = f"Over {counted(len(records), 'rank')}"
    return (Heading("Stages, seconds per rank"), DataTable(heads, tuple(rows), caption))


def cost_section(run: MeasuredRun, prices: Prices, *, on_aws: bool) -> Section:
    """Section with the bill, one line per service."""
    cost = bill(run, prices)
    if cost is None:
        return absent("cost", "Cost", "No REPORT line says what was configured and billed.")
    # Bars are relative to the most expensive line.
    top = max(line.usd for line in cost.lines) or 1.0
    rows = tuple(
        (
            TableEntry(line.name, line.note),
            TableEntry(quantity(line.quantity), unit=line.unit),
            TableEntry(dollars(line.usd)),
            TableEntry(share=line.usd / top),
        )
        for line in cost.lines
    )
    foot = (
        TableEntry("Total as billed"),
        TableEntry(),
        TableEntry(significant(cost.total, 4)),
        TableEntry(),
    )
    heads = (Head("Line", "word"), Head("Quantity"), Head("USD"), Head("", "bar"))
    used = significant(cost.memory_used_variant, 4)
    variant = f"By memory used it would be {used} USD: {DEFINITIONS['Cost by memory used']}"
    what = "What this run cost" if on_aws else "What these invocations would have cost on AWS"
    lead = f"{what}: {prices.stamp()}, without free tier."
    parts = (DataTable(heads, rows, foot=foot), Paragraph(variant, note=True))
    return Section("cost", "Cost", lead, parts)
