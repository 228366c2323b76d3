"""Sections of a report about predicted classes, distributions and intervals."""

from __future__ import annotations

from collections.abc import Mapping

from perseid.measure.folder import ClassificationMeasures, DistributionMeasures, RunFolder
from perseid.measure.present.answer_charts import confusion, pit, reliability
from perseid.measure.present.text import MISSING
from perseid.measure.present.view import (
    Beside,
    DataTable,
    Figure,
    Head,
    Section,
    TableEntry,
)
from perseid.plaintext import counted

WIDTH = 480.0
"""Width of a chart that has a table beside it, in pixels."""


def answer_sections(folder: RunFolder) -> tuple[Section, ...]:
    """Sections for those kinds of answers that the model gives."""
    summary = folder.summary
    if summary is None:
        return ()
    sections = []
    if summary.classification is not None:
        sections.append(_classes(summary.classification))
    if summary.distributions is not None:
        sections.append(_distributions(summary.distributions))
    if summary.coverage:
        sections.append(_intervals(summary.coverage))
    return tuple(sections)


def _classes(found: ClassificationMeasures) -> Section:
    lead = (
        f"{_percent(found.accuracy)} of {counted(found.n, 'labeled object')} have the right class "
        f"predicted; {counted(found.excluded, 'more has', 'more have')} no prediction, or a "
        "label that is not a class."
    )
    matrix = Figure.drawn(
        lambda width, kind: confusion(found.classes, found.confusion, width, kind),
        "Objects of the row's class that are predicted as the column's class; darker for a larger "
        "share of the row.",
        WIDTH,
    )
    heads = (Head("Class", "word"), Head("Objects"), Head("Precision"), Head("Recall"), Head("F1"))
    rows = tuple(
        (
            TableEntry(name),
            TableEntry(f"{sum(of_class):,}"),
            *(TableEntry(_percent(score)) for score in scores),
        )
        for name, of_class, scores in zip(found.classes, found.confusion, found.scores, strict=True)
    )
    caption = (
        "Precision: share of the objects predicted as the class that belong to it; recall: share "
        "of the class that is predicted so; F1: harmonic mean of both"
    )
    table = DataTable(heads, rows, caption)
    curve = Figure.drawn(
        lambda width, kind: reliability(found.reliability, width, kind),
        "How often the predicted class is right, in bins of its probability; below the dashed line "
        f"the model is overconfident. Calibration error: {_percent(found.calibration_error)}.",
        WIDTH,
    )
    return Section("classes", "Classes", lead, (Beside(matrix, table), curve))


def _distributions(found: DistributionMeasures) -> Section:
    lead = (
        f"{counted(found.n, 'object')} of known redshift have a predicted distribution; CRPS "
        f"{MISSING if found.crps is None else f'{found.crps:.5f}'} (mean, in units of redshift; of "
        "a point prediction it is the mean absolute error)."
    )
    plot = Figure.drawn(
        lambda width, kind: pit(found.pit, width, kind),
        "Flat if distributions are calibrated; a hill in the middle: they are too wide; hills at "
        "both ends: too narrow.",
        WIDTH,
    )
    return Section("distributions", "Predicted distributions", lead,
                   (Beside(plot, _coverage_table(found.coverage)),))  # fmt: skip


def _intervals(coverage: Mapping[str, float]) -> Section:
    lead = "How many true redshifts lie in the intervals around the predicted ones."
    return Section("intervals", "Intervals of redshift", lead, (_coverage_table(coverage),))


def _coverage_table(coverage: Mapping[str, float]) -> DataTable:
    rows = tuple(
        (TableEntry(_percent(float(level))), TableEntry(_percent(share)))
        for level, share in coverage.items()
    )
    return DataTable((Head("Promised", "word"), Head("Inside")), rows,
                     "Share of true redshifts inside intervals")  # fmt: skip


def _percent(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.4g} %"
