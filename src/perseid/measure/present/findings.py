"""Sections of a report about the results: redshifts, labeled anomalies, the gallery."""

from __future__ import annotations

import numpy as np

from perseid.measure.folder import RunFolder
from perseid.measure.measured_run import MeasuredRun
from perseid.measure.present.charts import density, redshifts_outside
from perseid.measure.present.gallery import Picture, gallery
from perseid.measure.present.view import (
    Beside,
    DataTable,
    Figure,
    Gallery,
    GalleryObject,
    Head,
    Section,
    TableEntry,
)
from perseid.measure.present.words import METRICS, PLACES
from perseid.measure.present.workers import absent
from perseid.measure.sources.catalogue_columns import CatalogueColumns
from perseid.pipeline.survey_columns import read_options
from perseid.plaintext import counted
from perseid.science import Detection, RedshiftMetrics, detection, redshift_metrics
from perseid.survey.kinds import label_name, stored_label_names

PICTURES = 24
"""Number of pictures in the gallery."""
DENSITY_WIDTH = 480.0
NO_CATALOGUE = "The run has no catalogue."
NO_OBJECT = "The catalogue is empty: no object was read."


def redshift_section(catalogue: CatalogueColumns | None) -> Section:
    """Section about the differences between predicted and spectroscopic redshifts."""
    ident, title = "redshift", "Redshifts"
    if catalogue is None:
        return absent(ident, title, NO_CATALOGUE)
    if not len(catalogue):
        return absent(ident, title, NO_OBJECT)
    both = catalogue.compared()
    if not both.any():
        return absent(ident, title, _nothing_compared(catalogue))
    z_spec, z_pred = catalogue.z_spec[both], catalogue.z_pred[both]
    metrics = redshift_metrics(catalogue.z_pred, catalogue.z_spec)
    caption = (
        "Objects in each cell, darker for more (logarithmic; lighter on a dark page). Dashed: "
        "equality."
    )
    outside = redshifts_outside(z_spec, z_pred)
    if outside:
        caption += f" {counted(outside, 'object')} outside the plot."
    plot = Figure.drawn(
        lambda width, kind: density(z_spec, z_pred, width, kind), caption, DENSITY_WIDTH
    )
    lead = "How far the model's redshifts are from the spectroscopic ones."
    return Section(ident, title, lead, (Beside(plot, _metrics_table(metrics)),))


def predicts_redshifts(catalogue: CatalogueColumns | None) -> bool:
    """Whether the model answers with redshifts, as far as its catalogue shows: a classifier has
    objects with an answer, and none of them has a redshift."""
    if catalogue is None:
        return True
    answered = catalogue.z_pred[catalogue.flag == 0]
    return not len(answered) or bool(np.isfinite(answered).any())


def _nothing_compared(catalogue: CatalogueColumns) -> str:
    predicted = int(np.isfinite(catalogue.z_pred).sum())
    known = int(np.isfinite(catalogue.z_spec).sum())
    if not predicted:
        return f"None of the {counted(len(catalogue), 'object')} has a predicted redshift."
    if not known:
        return (
            f"None of the {counted(len(catalogue), 'object')} has a spectroscopic redshift: "
            f"{counted(predicted, 'prediction')} cannot be compared with anything."
        )
    return "No object has both a predicted and a spectroscopic redshift."


def _metrics_table(metrics: RedshiftMetrics) -> DataTable:
    rows = []
    for key, (name, what) in METRICS.items():
        value = getattr(metrics, key)
        text = (
            f"{100 * value:.2f} %"
            if key.startswith("outliers")
            # "z" avoids a negative zero.
            else f"{value:z.{PLACES.get(key, 5)}f}"
        )
        rows.append((TableEntry(name, what), TableEntry(text)))
    compared = counted(metrics.n, "object")
    caption = f"{compared} compared; {metrics.excluded:,} without one of the two values"
    return DataTable((Head("Metric", "word"), Head("Value")), tuple(rows), caption)


def detection_section(catalogue: CatalogueColumns | None, folder: RunFolder) -> Section:
    """Section about how well the score separates labeled objects from those with label 0."""
    ident, title = "anomalies", "Anomalies by label"
    if catalogue is None:
        return absent(ident, title, NO_CATALOGUE)
    if not len(catalogue):
        return absent(ident, title, NO_OBJECT)
    if catalogue.label is None:
        words = "The survey has no labels: how well the score finds anomalies cannot be said."
        return absent(ident, title, words)
    names = _label_names(folder)
    # A masked label means that the object has none; it is not an object with label 0.
    known = ~np.ma.getmaskarray(catalogue.label)
    labels = np.ma.getdata(catalogue.label)[known]
    kinds = {int(label): label_name(int(label), names) for label in np.unique(labels)}
    found = detection(catalogue.score[known], labels, kinds)
    if not found:
        return absent(ident, title, "No labeled object has a score, or none has label 0.")
    heads = (Head("Label", "word"), Head("Objects"), Head("ROC AUC"), Head("Average precision"),
             Head("ROC AUC from 0.5 to 1", "bar"))  # fmt: skip
    caption = f"Each label against {counted(found[0].plain, 'object')} with label 0"
    rows = tuple(_detection_row(one) for one in found)
    lead = "How well the anomaly score separates labeled objects from those with label 0."
    return Section(ident, title, lead, (DataTable(heads, rows, caption),))


def _detection_row(one: Detection) -> tuple[TableEntry, ...]:
    return (
        TableEntry("all labels but 0" if one.kind == "all" else one.kind),
        TableEntry(f"{one.n:,}"),
        TableEntry(f"{one.roc_auc:.3f}"),
        TableEntry(f"{one.average_precision:.3f}"),
        TableEntry(share=2 * (one.roc_auc - 0.5)),
    )


def gallery_section(
    catalogue: CatalogueColumns | None, run: MeasuredRun, folder: RunFolder
) -> Section:
    """Section with pictures of the objects with the highest scores."""
    ident, title = "gallery", "The most anomalous objects"
    if catalogue is None:
        return absent(ident, title, NO_CATALOGUE)
    if not len(catalogue):
        return absent(ident, title, NO_OBJECT)
    names = _label_names(folder)
    options = read_options(folder.manifest.settings)
    pictures = gallery(catalogue, folder.manifest.data_url, names, PICTURES, options)
    if not pictures:
        return absent(ident, title, "No object has an anomaly score.")
    # All records name the same bands; ranks without rows name none.
    bands = next((record.bands for record in run.records if record.bands), ())
    lead = f"{_chosen(pictures, catalogue)} {_bands_shown(pictures, bands)}"
    lost = sum(picture.image is None for picture in pictures)
    if lost:
        lead += f" {lost} of them have no picture: their partitions cannot be read any more."
    return Section(ident, title, lead, (Gallery(tuple(_shown(one) for one in pictures)),))


def _label_names(folder: RunFolder) -> dict[int, str]:
    manifest = folder.manifest
    return stored_label_names(manifest.settings.options.to_json(), manifest.data_url)


def _chosen(pictures: list[Picture], catalogue: CatalogueColumns) -> str:
    scored = int((catalogue.rank > 0).sum())
    without = len(catalogue) - scored
    if len(pictures) == scored:
        words = f"All {scored:,} objects that have a score" if scored > 1 else "The one object "\
            "that has a score"  # fmt: skip
        words += ", highest first" if scored > 1 else ""
    else:
        words = f"The {len(pictures)} highest scores of {counted(scored, 'object')}"
    return f"{words}; {counted(without, 'more has', 'more have')} none." if without else f"{words}."


def _bands_shown(pictures: list[Picture], names: tuple[str, ...]) -> str:
    """Say which bands are shown as red, green and blue; by number if their names are unknown."""
    first = next((one for one in pictures if one.bands), None)
    if first is None:
        return ""
    known = len(names) == first.band_count
    if known:
        shown = [names[band] for band in first.bands]
    else:
        shown = [f"band {band + 1} of {first.band_count}" for band in first.bands]
    stretch = "(Lupton et al. 2004), each cutout with its own stretch."
    if len(set(first.bands)) == 1:
        return f"{shown[0]} in gray {stretch}"
    return f"{', '.join(shown)} as red, green, blue {stretch}"


def _shown(one: Picture) -> GalleryObject:
    lines = [f"score {one.score:.2f}",
             f"z {_z(one.z_pred)} predicted, {_z(one.z_spec)} spectroscopic"]  # fmt: skip
    if one.label is not None:
        lines.append(f"label: {one.label.removeprefix('label ')}")
    what = f"Cutout of object {one.title}, anomaly rank {one.rank}"
    if one.image is None:
        what = f"no picture: {one.partition} cannot be read"
    return GalleryObject(one.image, what, f"{one.rank}. {one.title}", tuple(lines))


def _z(value: float) -> str:
    # NaN is the only value that differs from itself.
    return f"{value:.3f}" if value == value else "–"
