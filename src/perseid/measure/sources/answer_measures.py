"""Reads what a summary says about classes and distributions; malformed values are left out."""

from __future__ import annotations

from perseid.measure.fields import Fields, as_number
from perseid.measure.folder import ClassificationMeasures, DistributionMeasures


def classification(summary: Fields) -> ClassificationMeasures | None:
    """The summary's ``classification``; None if it is missing or incomplete."""
    found = summary.inner("classification")
    classes, rows = found.texts("classes"), found.items("confusion")
    confusion = tuple(tuple(_counts(row)) for row in rows)
    scores = found.rows("by_class")
    # The charts need a square matrix with a name and scores for each class.
    if not classes or {len(row) for row in confusion} != {len(classes)}:
        return None
    if len(confusion) != len(classes) or len(scores) != len(classes):
        return None
    bins = [(b.number("confidence"), b.number("accuracy"), b.count("n") or 0)
            for b in found.rows("reliability")]  # fmt: skip
    return ClassificationMeasures(
        classes=classes,
        confusion=confusion,
        n=found.count("n") or 0,
        excluded=found.count("excluded") or 0,
        accuracy=found.number("accuracy"),
        calibration_error=found.number("calibration_error"),
        scores=tuple(
            (one.number("precision"), one.number("recall"), one.number("f1")) for one in scores
        ),
        reliability=tuple((x, y, n) for x, y, n in bins if x is not None and y is not None),
    )


def distributions(summary: Fields) -> DistributionMeasures | None:
    """The summary's ``distributions``; None if there is none."""
    found = summary.inner("distributions")
    pit = tuple(_counts(found.items("pit")))
    # Without any object there is nothing to draw.
    if not pit or not sum(pit):
        return None
    return DistributionMeasures(found.count("n") or 0, found.number("crps"), pit, coverage(found))


def coverage(of: Fields) -> dict[str, float]:
    """The ``coverage`` in a part of the summary, by the probability as text."""
    found = of.inner("coverage")
    shares = {name: found.number(name) for name in found.names() if as_number(name) is not None}
    return {name: share for name, share in shares.items() if share is not None}


def _counts(value: object) -> list[int]:
    """A list of whole numbers of at least 0, in which anything else becomes 0."""
    numbers = [as_number(one) for one in value] if isinstance(value, (list, tuple)) else []
    return [round(number) if number is not None and number > 0 else 0 for number in numbers]
