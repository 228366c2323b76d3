"""The grid of a sweep and its figures, without running anything."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
import resvg_py

from perseid.errors import BadInputError
from perseid.measure.cost import Usage
from perseid.measure.grid import GridCell, grid
from perseid.measure.measured_run import MeasuredRun, ModelTime, ResultPath, Span
from perseid.measure.present.palette import SERIES
from perseid.measure.present.sweep import figures, render_sweep
from perseid.measure.prices import Prices
from perseid.measure.report_line import Report

SIZES = ["25MB", "50MB", "75MB", "100MB"]
DATA = ["1GB", "2GB", "4GB", "6GB", "8GB", "10GB", "12.6GB"]


def test_the_published_grid() -> None:
    cells = grid(SIZES, DATA, [512], [None], 3)
    assert len(cells) == 84
    assert cells[0].path == "result-partition-25MB/1GB/1"
    assert [c.files for c in cells[:7]] == [41, 82, 164, 246, 328, 410, 517]
    assert [c.files for c in cells[21:28]] == [11, 21, 41, 62, 82, 103, 130]
    assert [c.repetition for c in cells] == [1] * 28 + [2] * 28 + [3] * 28


def test_paths_are_unique_and_places_are_read_from_them() -> None:
    cells = grid(["25MB"], ["1GB", "all"], [32, 512], [None, 4], 2)
    assert len({cell.path for cell in cells}) == 16
    assert cells[0].path == "result-partition-25MB/1GB/batch-32/1"
    assert GridCell("25MB", "1GB", 32, 4, 2).path == "result-partition-25MB/1GB/batch-32/ranks-4/2"
    place = ResultPath.of("x/" + GridCell("25MB", "1GB", 32, 4, 2).path)
    assert (place.partition, place.data, place.repetition) == ("25MB", "1GB", "2")
    assert GridCell("25MB", "all", 512, None, 1).files is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"partitions": ["big"]}, "'big' is not a size"),
        ({"data": ["some"]}, "'some' is not a size"),
        ({"batches": [0]}, "whole numbers from 1"),
        ({"worlds": [-1]}, "whole numbers from 1"),
        ({"repeat": 0}, "whole numbers from 1"),
        ({"data": ["1GB", "1GB"]}, "given twice"),
    ],
)
def test_a_grid_that_cannot_be(change: dict[str, object], says: str) -> None:
    usual = {
        "partitions": ["25MB"], "data": ["1GB"], "batches": [512], "worlds": [None], "repeat": 1,
    }  # fmt: skip
    with pytest.raises(BadInputError, match=says):
        grid(**{**usual, **change})


def published(
    partition: str, data: str, seconds: float, *, received: int | None = None
) -> MeasuredRun:
    ranks = ResultPath(partition, data, "1").workers
    report = Report("r", 6000, 6000, 10_240, 2900)
    return MeasuredRun(
        f"x/result-partition-{partition}/{data}/1", partition, data, 512, ranks,
        received=ranks if received is None else received, whole=Span(2 * seconds, "whole run"),
        map=Span(seconds, "map"), durations=(6.0,) * ranks, reports=(report,) * ranks,
        usage=Usage((report,) * ranks), model=(ModelTime(6.0, 210e6),) * ranks, bits=ranks * 210e6,
    )  # fmt: skip


def assert_plain(svg: str) -> None:
    """A file that a program without style sheets draws as it is meant."""
    root = ET.fromstring(svg)
    assert root.tag.endswith("svg")
    for word in ("class=", "style", "var(", "url(", "@media", "href", "<script"):
        assert word not in svg
    for node in root.iter():
        tag = node.tag.rpartition("}")[2]
        if tag in ("line", "polyline"):
            assert node.attrib["stroke"].startswith("#"), "black by default, or not drawn at all"
        if tag in ("rect", "circle", "text"):
            assert "fill" in node.attrib
        if tag == "polyline":
            assert node.attrib["fill"] == "none", "or the area under it is filled"
        if tag == "text":
            assert node.attrib["font-family"]
            assert float(node.attrib["font-size"]) > 8


def test_figures_are_files_that_other_programs_draw() -> None:
    """resvg knows SVG as librsvg and word processors do: no variables, no media queries."""
    runs = [published(p, d, s) for p, s in (("25MB", 15.0), ("100MB", 20.0)) for d in DATA[:3]]
    runs.append(published("25MB", "1GB", 18.0, received=40))
    for figure in figures(runs, Prices()):
        svg = figure.file()
        assert_plain(svg)
        drawn = resvg_py.svg_to_bytes(svg_string=svg, width=490)
        pixels = np.asarray(matplotlib.image.imread(io.BytesIO(drawn)))
        assert pixels.shape[1] == 490
        colors = {tuple(np.round(255 * p).astype(int)) for p in pixels[..., :3].reshape(-1, 3)}
        for hexed in SERIES[:2]:
            wanted = tuple(int(hexed[i : i + 2], 16) for i in (1, 3, 5))
            assert wanted in colors, "each line has its own color"
        assert (255, 255, 255) in colors
        assert (0, 0, 0) not in colors, "nothing fell back to black"


def test_the_words_beside_a_figure_say_what_is_there() -> None:
    once = [published("25MB", d, 15.0) for d in DATA[:3]]
    page = render_sweep(once)
    assert "Each dot is one run." in page
    assert "bars" not in page
    assert "open dots" not in page
    page = render_sweep([*once, published("25MB", "1GB", 18.0)])
    assert "Dots are medians of the repetitions, bars their range." in page
    page = render_sweep([*once, published("25MB", "1GB", 18.0, received=7)])
    assert "open dots: a run there was incomplete" in page


def test_each_throughput_has_its_own_meaning() -> None:
    runs = [published("25MB", "1GB", 15.0), published("25MB", "2GB", 20.0)]
    drawn = {figure.name: figure for figure in figures(runs, Prices())}
    assert set(drawn) == {f"{n}-data" for n in ("whole", "map", "model", "a", "b", "c", "cost")}
    x = [point[0] for point in drawn["a-data"].series[0].points]
    assert x == [1024, 2048]
    middle = {n: [p[1] for p in drawn[f"{n}-data"].series[0].points] for n in ("a", "b", "c")}
    assert middle["a"] == pytest.approx([41 * 210e6 / 6 / 1e9, 82 * 210e6 / 6 / 1e9])
    assert middle["b"] == pytest.approx([41 * 210e6 / 15 / 1e9, 82 * 210e6 / 20 / 1e9])
    assert middle["c"] == pytest.approx([41 * 210e6 / 30 / 1e9, 82 * 210e6 / 40 / 1e9])
    assert "model time" in drawn["a-data"].what
    assert "whole run" in drawn["c-data"].what
    costs = [p[1] for p in drawn["cost-data"].series[0].points]
    assert costs == pytest.approx([n * (60 * 0.0000166667 + 0.2e-6) for n in (41, 82)])


def test_repetitions_become_a_median_and_a_range() -> None:
    runs = [published("25MB", "1GB", s) for s in (28.08, 30.53, 26.52)]
    runs.append(published("25MB", "2GB", 40.0))
    figure = next(f for f in figures(runs, Prices()) if f.name == "map-data")
    assert figure.series[0].points[0] == (1024, 28.08, 26.52, 30.53)


def test_batch_and_world_figures_hold_the_rest_still() -> None:
    runs = [
        replace(published("25MB", "1GB", s), batch_size=b)
        for b, s in ((32, 8.26), (64, 6.35), (128, 5.94), (256, 5.65), (512, 6.01))
    ]
    runs.append(replace(published("25MB", "1GB", 50.0), expected=4))
    drawn = {figure.name: figure for figure in figures(runs, Prices())}
    assert set(drawn) == {"whole-batch", "model-batch", "a-batch", "whole-world", "map-world"}
    assert drawn["whole-batch"].chart.x_log
    assert [p[0] for p in drawn["map-world"].series[0].points] == [4, 41]


def test_the_page_names_incomplete_runs_and_draws_them_open() -> None:
    runs = [published("100MB", "1GB", 20.0), published("100MB", "total", 60.0, received=8)]
    page = render_sweep(runs)
    assert "1 of them complete" in page
    assert "result-partition-100MB/total/1 (8 of 130 ranks)" in page
    assert 'class="open c0"' in page
    assert "<script" not in page
    alone = render_sweep(runs[:1])
    assert "no line to draw" in alone
    for figure in figures(runs, Prices()):
        assert_plain(figure.file())
