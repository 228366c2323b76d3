"""``report.html``: one page about one run that works offline, each number with its meaning."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from html import escape

import numpy as np

from perseid.errors import BadInputError, NotFoundError
from perseid.measure.folder import RunFolder
from perseid.measure.present import html
from perseid.measure.present.charts import Lane, density, distribution, stages_used, timeline
from perseid.measure.present.gallery import Picture, gallery
from perseid.measure.present.table import USED_NOTE, bill
from perseid.measure.present.text import dollars, plural, quantity, seconds, significant
from perseid.measure.prices import Prices
from perseid.measure.runs import MeasuredRun, percentiles
from perseid.measure.sources.catalogue import Catalogue, read_catalogue
from perseid.pipeline import layout
from perseid.pipeline.manifest import Manifest
from perseid.science import Detection, RedshiftMetrics, detection, redshift_metrics
from perseid.storage import Storage
from perseid.survey.kinds import ANOMALY_KINDS

GALLERY = 24
DENSITY_WIDTH = 480.0
METRICS = {
    "mae": ("MAE", "mean |z_pred - z_spec|"),
    "mse": ("MSE", "mean (z_pred - z_spec)²"),
    "bias": ("Bias", "mean dz, dz = (z_pred - z_spec) / (1 + z_spec)"),
    "nmad": ("NMAD", "1.48 × median |dz - median dz|; “precision” in the papers"),
    "r2": ("R²", "1 - MSE / variance of z_spec: grows with the spread of the sample"),
    "outliers": ("Outliers", "share with |dz| > 0.15"),
    "outliers_low_z": ("Outliers, near", "share with |dz| > 0.05"),
}
PLACES = {"mse": 6, "r2": 4}
"""Decimal places other than five."""
THROUGHPUT = {
    "a": ("Throughput (a), model", "sum over ranks of bits / model time"),
    "b": ("Throughput (b), map", "all bits / time of the map: first start to last end"),
    "c": ("Throughput (c), whole run", "all bits / time of the whole run"),
}
DEFINITIONS = {
    "Complete": "Every rank left its record, every partition was read, every row is in the "
    "catalogue exactly once. Anything less is incomplete.",
    "Duration of an invocation": "As Lambda's REPORT line has it: time in the handler, without "
    "init. All invocations count, failed ones and retries too; none is left out.",
    "Billed": "Configured memory × billed duration (handler and init, whole milliseconds), plus "
    "requests, state transitions, storage, Fargate, IPv4 and logs.",
    "Cost by memory used": USED_NOTE.partition(": ")[2],
    "Cost of a local run": "What the same invocations, as long as they took on this machine, "
    "would have cost on AWS; no free tier. Another machine has other durations.",
    "Stages": "Wall-clock time of a rank. Fetch and decode run beside inference, so stages do "
    "not add up to the total.",
    "Transport": "How the ranks' statistics were merged: directly between the ranks, through the "
    "rendezvous' relay, or through the store. Collectives: seconds of the slowest rank in them, "
    "waiting for the others included.",
    "Anomaly score": "Mahalanobis distance of an object's features from those of the whole "
    "survey, divided by the root of their number: about 1 for a plain object "
    "of a large survey.",
    "ROC AUC": "Probability that an object of the kind scores above a plain one; 0.5 is chance.",
    "Average precision": "Area under precision against recall; chance is the share of the kind "
    "among it and the plain objects, so it is lower the rarer the kind.",
    "Bits": "32 bits a value of images and magnitudes that went through the model.",
}


def render_report(run: MeasuredRun, prices: Prices | None = None) -> str:
    """The page of a stored run (`measure.sources.load.load_runs` of a run's folder).

    What the run does not have (no catalogue yet, no labels, no redshifts, partitions that are
    gone) is said in its place.

    Raises
    ------
    NotInstalledError
        pyarrow or astropy is missing.
    """
    folder = _folder(run)
    manifest = folder.manifest
    prices = prices or Prices()
    catalogue = _catalogue(run)
    sections = [
        _redshift_section(catalogue),
        _timeline_section(run),
        _duration_section(run),
        _cost_section(run, prices),
        _detection_section(catalogue),
        _gallery_section(catalogue, manifest),
        _request_section(run, manifest),
    ]
    title = f"{_title(run)}: perseid run report"
    foot = f"Made by perseid {escape(manifest.version)} from {escape(run.name)}"
    return html.page(title, _head(run, manifest, prices), sections, foot)


def _folder(run: MeasuredRun) -> RunFolder:
    if run.folder is None:
        raise BadInputError(f"{run.name} is no run of perseid: there is no page of it")
    return run.folder


def _catalogue(run: MeasuredRun) -> Catalogue | None:
    folder = _folder(run)
    if layout.CATALOGUE not in folder.keys:
        return None
    try:
        return read_catalogue(folder.store)
    except NotFoundError:
        return None


def _title(run: MeasuredRun) -> str:
    size = f"{run.data} in partitions of {run.partition}" if run.partition else "A run"
    return f"{size}, {plural(run.expected or 0, 'rank')}"


def _head(run: MeasuredRun, manifest: Manifest, prices: Prices) -> str:
    began = datetime.fromtimestamp(manifest.created, UTC).strftime("%d %B %Y, %H:%M:%S UTC")
    return (
        f'<p class="eyebrow">perseid run report</p>\n<h1>{escape(_title(run))}</h1>\n'
        f'<p class="sub">{escape(manifest.run_id)} · {began}</p>\n'
        + _status(run, manifest)
        + html.tiles(_tiles(run, manifest, prices))
        + html.tiles(_throughput_tiles(run), "three")
    )


def _status(run: MeasuredRun, manifest: Manifest) -> str:
    files = len(manifest.partitions)
    lost = _lost_partitions(run, manifest)
    if run.is_complete and not lost:
        return (
            '<p class="status complete" role="status"><strong>Complete</strong> <span>'
            f"{plural(run.received, 'rank')} and {plural(files, 'partition')}, none missing"
            "</span></p>"
        )
    words = f"{run.received} of {run.expected} ranks, {files - len(lost)} of {files} partitions."
    if run.missing:
        words += f" Missing ranks: {_listed([str(rank) for rank in run.missing])}."
    if lost:
        words += f" Missing partitions: {_listed(list(lost))} (first reason: "
        words += f"{next(iter(lost.values()))})."
    if _folder(run).summary is None:
        words += " The run has no summary: it was not finished."
    return (
        f'<p class="status incomplete" role="status"><strong>Incomplete</strong> '
        f"<span>{escape(words)}</span></p>"
    )


def _lost_partitions(run: MeasuredRun, manifest: Manifest) -> dict[str, str]:
    """Partitions that were not read, in natural order, each with the reason that is known."""
    summary = _folder(run).summary
    if summary is not None:
        return dict(summary.lost)
    read = {part.key for record in run.records for part in record.partitions}
    return {ref.key: "no record" for ref in manifest.partitions if ref.key not in read}


def _listed(names: list[str], most: int = 24) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _tiles(run: MeasuredRun, manifest: Manifest, prices: Prices) -> list[tuple[str, str, str]]:
    cost = bill(run, prices)
    span = run.duration
    flagged = sum(record.flagged for record in run.records)
    cold = sum(report.cold for report in run.reports)
    return [
        (
            "Rows",
            f"{run.rows or 0:,}",
            f"{flagged:,} more without a prediction" if flagged else "all with a prediction",
        ),
        ("Duration", f"{seconds(span.seconds).text} s" if span else "–", span.what if span else ""),
        (
            "Cost as billed",
            f"${significant(cost.total, 3)}" if cost else "–",
            _billing(run) if cost else "no REPORT lines",
        ),
        ("Peak memory", _memory(run), "of any invocation"),
        ("Invocations", f"{len(run.reports):,}", plural(cold, "cold start")),
        ("Transport", run.transport or "–", _transport_note(run, manifest)),
    ]


def _billing(run: MeasuredRun) -> str:
    return "list prices, without free tier" if _on_aws(run) else "would have cost on AWS"


def _on_aws(run: MeasuredRun) -> bool:
    return _folder(run).engine.on_aws


def _throughput_tiles(run: MeasuredRun) -> list[tuple[str, str, str]]:
    return [
        (THROUGHPUT[key][0], f"{significant(value, 3)} Gb/s", THROUGHPUT[key][1])
        for key, value in run.throughput().items()
    ]


def _memory(run: MeasuredRun) -> str:
    return "–" if run.max_memory_mb is None else f"{run.max_memory_mb:.0f} MB"


def _transport_note(run: MeasuredRun, manifest: Manifest) -> str:
    asked = str(manifest.settings.get("transport", "store"))
    took = run.collectives_seconds
    if run.transport == "store" != asked:
        return f"of the ranks' statistics; {asked} was asked for: see the notes below"
    if not took:
        return "of the ranks' statistics"
    return f"of the ranks' statistics; the collectives took {seconds(took).text} s at most"


def _redshift_section(catalogue: Catalogue | None) -> str:
    lead = "How far the model's redshifts are from the spectroscopic ones."
    if catalogue is None:
        return _absent("redshift", "Redshifts", "The run has no catalogue.")
    both = catalogue.compared()
    if not both.any():
        return _absent(
            "redshift",
            "Redshifts",
            "The survey has no spectroscopic redshifts: "
            f"{len(catalogue):,} predictions cannot be compared with anything.",
        )
    z_spec, z_pred = catalogue.z_spec[both], catalogue.z_pred[both]
    metrics = redshift_metrics(catalogue.z_pred, catalogue.z_spec)
    plot = html.figure(
        lambda width, kind: density(z_spec, z_pred, width, kind),
        "Objects in each cell, darker for more (logarithmic; lighter on a dark page). "
        "Dashed: equality.",
        DENSITY_WIDTH,
    )
    body = f'<div class="split">{plot}<div>{_metrics_table(metrics)}</div></div>'
    return html.section("redshift", "Redshifts", lead, body)


def _metrics_table(metrics: RedshiftMetrics) -> str:
    rows = []
    for key, (name, what) in METRICS.items():
        value = getattr(metrics, key)
        text = (
            f"{100 * value:.2f} %"
            if key.startswith("outliers")
            else f"{value:z.{PLACES.get(key, 5)}f}"
        )
        rows.append([html.small(name, what), text])
    caption = f"{metrics.n:,} objects compared; {metrics.excluded:,} without one of the two values"
    return html.table(["Metric", "Value"], rows, caption=caption)


def _absent(ident: str, title: str, words: str) -> str:
    return html.section(ident, title, "", f"<p>{escape(words)}</p>")


def _timeline_section(run: MeasuredRun) -> str:
    lanes = _lanes(run)
    if not any(lane.bars for lane in lanes):
        return _absent("timeline", "Workers in time", "No rank left a timeline.")
    legend = "".join(
        f'<li><i class="stage-{stage}"></i>{stage}</li>' for stage in stages_used(lanes)
    )
    if any(not lane.bars for lane in lanes):
        legend += '<li><i class="lost"></i>no record</li>'
    body = f'<ul class="legend">{legend}</ul>' + html.figure(
        lambda width, kind: timeline(lanes, width, kind),
        "One row a rank. Fetch and decode overlap with inference; where rows are high enough they "
        "have the upper part.",
    )
    return html.section("timeline", "Workers in time", "What each rank did, and when.", body)


def _lanes(run: MeasuredRun) -> list[Lane]:
    """A lane for every expected rank, in seconds since the first moment of all."""
    found = {record.rank: record.timeline for record in run.records}
    starts = [start for bars in found.values() for _, start, _ in bars]
    zero = min(starts, default=0.0)
    return [
        Lane(rank, tuple((s, a - zero, b - zero) for s, a, b in found.get(rank, ())))
        for rank in range(run.expected or 0)
    ]


def _duration_section(run: MeasuredRun) -> str:
    if not run.durations:
        return _absent("durations", "Durations", "Nothing says how long the workers took.")
    chart = html.figure(
        lambda width, kind: distribution(run.durations, width, f"{run.duration_of}, s", kind),
        f"{plural(len(run.durations), 'invocation')}, failed ones and retries included; none is "
        "left out.",
    )
    stages = _stage_table(run)
    lead = f"{escape(run.duration_of)} of every invocation."
    return html.section("durations", "Durations", lead, chart + stages)


def _stage_table(run: MeasuredRun) -> str:
    rows = []
    records = [record.stages for record in run.records if record.stages]
    for stage in records[0] if records else ():
        p50, p90, p99, top = percentiles([stages.get(stage, 0.0) for stages in records])
        if top > 0:
            rows.append([stage, *(seconds(value).text for value in (p50, p90, p99, top))])
    if not rows:
        return ""
    return "<h3>Stages, seconds a rank</h3>" + html.table(
        ["Stage", "p50", "p90", "p99", "max"], rows
    )


def _cost_section(run: MeasuredRun, prices: Prices) -> str:
    cost = bill(run, prices)
    if cost is None:
        return _absent("cost", "Cost", "No REPORT line says what was configured and billed.")
    top = max(line.usd for line in cost.lines) or 1.0
    rows = [
        [
            html.small(line.name, line.note),
            f'{quantity(line.quantity)} <span class="unit">{escape(line.unit)}</span>',
            escape(dollars(line.usd)),
            html.bar(line.usd / top),
        ]
        for line in cost.lines
    ]
    foot = ["Total as billed", "", significant(cost.total, 4), ""]
    heads = ["Line", "Quantity", "USD", ""]
    used = significant(cost.memory_used_variant, 4)
    variant = f"By memory used it would be {used} USD: {DEFINITIONS['Cost by memory used']}"
    what = "What this run cost" if _on_aws(run) else "What these invocations would have cost on AWS"
    lead = f"{what}: {escape(prices.stamp())}, without free tier."
    body = html.table(heads, rows, foot=foot) + f'<p class="note">{escape(variant)}</p>'
    return html.section("cost", "Cost", lead, body)


def _detection_section(catalogue: Catalogue | None) -> str:
    title = "Anomalies by kind"
    if catalogue is None:
        return _absent("anomalies", title, "The run has no catalogue.")
    if catalogue.label is None:
        return _absent(
            "anomalies",
            title,
            "The survey has no labels: how well the score finds anomalies cannot be said.",
        )
    known = ~np.ma.getmaskarray(catalogue.label)
    labels = np.ma.getdata(catalogue.label)[known]
    found = detection(catalogue.score[known], labels, ANOMALY_KINDS)
    if not found:
        return _absent("anomalies", title, "No labelled anomaly has a score.")
    lead = "How well the anomaly score tells labelled anomalies from plain objects."
    heads = ["Kind", "Objects", "ROC AUC", "Average precision", ""]
    caption = f"Each kind against {found[0].plain:,} plain objects; bars: ROC AUC from 0.5 to 1"
    body = html.table(heads, [_detection_row(one) for one in found], caption=caption)
    return html.section("anomalies", title, lead, body)


def _detection_row(one: Detection) -> list[str]:
    kind = "all kinds" if one.kind == "all" else one.kind
    bar = html.bar(2 * (one.roc_auc - 0.5))
    return [escape(kind), str(one.n), f"{one.roc_auc:.3f}", f"{one.average_precision:.3f}", bar]


def _gallery_section(catalogue: Catalogue | None, manifest: Manifest) -> str:
    title = "The most anomalous objects"
    if catalogue is None:
        return _absent("gallery", title, "The run has no catalogue.")
    pictures = gallery(catalogue, Storage(manifest.data_url), GALLERY)
    if not pictures:
        return _absent("gallery", title, "No object has an anomaly score.")
    lost = sum(picture.image is None for picture in pictures)
    lead = (
        f"The {len(pictures)} highest scores of {len(catalogue):,} objects; i, r, g as red, green, "
        "blue (Lupton et al. 2004), each cutout with its own stretch."
    )
    if lost:
        lead += f" {lost} of them have no picture: their partitions cannot be read any more."
    items = "".join(f"<li>{_figure(picture)}</li>" for picture in pictures)
    return html.section("gallery", title, lead, f'<ol class="gallery">{items}</ol>')


def _figure(one: Picture) -> str:
    alt = f"Cutout of object {one.title}, anomaly rank {one.rank}"
    image = (
        f'<img src="{one.image}" alt="{escape(alt)}" width="32" height="32">'
        if one.image
        else f'<div class="none" title="{escape(one.why)}">no picture: {escape(one.partition)} '
        "cannot be read</div>"
    )
    z = f"z {_z(one.z_pred)} predicted, {_z(one.z_spec)} spectroscopic"
    kind = f"<span>label: {escape(one.kind)}</span>" if one.kind is not None else ""
    return (
        f"{image}<b>{one.rank}. {escape(one.title)}</b><span>score {one.score:.2f}</span>"
        f"<span>{z}</span>{kind}"
    )


def _z(value: float) -> str:
    return f"{value:.3f}" if value == value else "–"


def _request_section(run: MeasuredRun, manifest: Manifest) -> str:
    request = json.dumps(dict(manifest.request), indent=2, ensure_ascii=False)
    settings = json.dumps(dict(manifest.settings), indent=2, ensure_ascii=False)
    warnings = "".join(f'<p class="note">Note: {escape(text)}.</p>' for text in run.notes)
    body = (
        f"{warnings}<h3>As it was given</h3><pre>{escape(request)}</pre>"
        f"<h3>What all ranks were told</h3><pre>{escape(settings)}</pre>"
        f"<h3>What the numbers mean</h3>{html.definitions(DEFINITIONS)}"
    )
    return html.section("request", "Request and definitions", "", body)
