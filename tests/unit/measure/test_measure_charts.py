"""Charts: what is drawn lies inside the picture and stands for every value."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseid.measure.present.charts import Lane, LineChart, Series, density, distribution, timeline
from perseid.measure.present.svg import Scale, Svg, log_ticks, ticks

NS = "{http://www.w3.org/2000/svg}"


def parsed(text: str) -> ET.Element:
    return ET.fromstring(text)


def box_of(text: str) -> tuple[float, float]:
    _, _, width, height = map(float, parsed(text).attrib["viewBox"].split())
    return width, height


def paths(text: str, kind: str) -> list[tuple[float, float, float, float]]:
    found = []
    for node in parsed(text).iter(f"{NS}path"):
        if kind in node.attrib["class"].split():
            for x, y, w, h in re.findall(r"M(\S+) (\S+?)h(\S+?)v(\S+?)h", node.attrib["d"]):
                found.append((float(x), float(y), float(w), float(h)))
    return found


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(1, 12))
def test_ticks_are_round_and_inside(low: float, span: float, count: int) -> None:
    found = ticks(low, low + span, count)
    assert len(found) <= count + 1
    slack = 1e-6 * span + 1e-9
    assert all(low - slack <= value <= low + span + slack for value in found)


def test_log_ticks() -> None:
    assert log_ticks(32, 512) == [50, 100, 200, 500]
    assert log_ticks(1, 1e6) == [10.0**d for d in range(7)]
    scale = Scale(32, 512, 0, 100, log=True)
    assert scale(32) == 0
    assert scale(512) == pytest.approx(100)
    assert scale(128) == pytest.approx(50)


def test_density_draws_each_cell_once_inside_the_frame() -> None:
    rng = np.random.default_rng(1)
    z = rng.gamma(4, 0.03, 5000)
    text = density(z, z + rng.normal(0, 0.012, 5000), 480)
    cells = [box for level in range(1, 9) for box in paths(text, f"s{level}")]
    assert len(cells) > 200
    assert len({(x, y) for x, y, _, _ in cells}) == len(cells)
    width, height = box_of(text)
    assert all(0 < x < width and 0 < y < height for x, y, _, _ in cells)
    assert "5,000 objects" in parsed(text).attrib["aria-label"]
    assert len(text) < 150_000


def test_density_of_equal_values_and_of_one_object() -> None:
    same = np.full(7, 0.1)
    assert paths(density(same, same, 320), "s8")
    one = np.array([0.0])
    assert paths(density(one, one, 320), "s8")


@pytest.mark.parametrize("ranks", [1, 8, 517])
@pytest.mark.parametrize("width", [320.0, 1000.0])
def test_the_timeline_is_legible_at_any_number_of_ranks(ranks: int, width: float) -> None:
    lanes = [
        Lane(r, (("init", 0.0, 0.5), ("fetch", 0.5, 0.9), ("inference", 0.6, 2.0 + r / 100)))
        for r in range(ranks)
    ]
    text = timeline(lanes, width)
    boxes = paths(text, "stage-inference")
    assert len(boxes) == ranks
    assert all(h >= 0.9 for _, _, _, h in boxes)
    assert box_of(text)[1] < 700
    rows = [node.text for node in parsed(text).iter(f"{NS}text") if node.text.isdecimal()]
    assert rows[0] == "0"
    labels = [n for n in parsed(text).iter(f"{NS}text") if n.attrib["text-anchor"] == "end"]
    heights = sorted(float(n.attrib["y"]) for n in labels)
    assert min(np.diff(heights), default=20) >= 11, "rank labels overlap"


def test_the_timeline_shows_ranks_without_a_record_and_joins_slivers() -> None:
    many = tuple(("inference", i * 0.001, i * 0.001 + 0.001) for i in range(1000))
    text = timeline([Lane(0, many), Lane(1, (), lost=True)], 400)
    assert len(paths(text, "stage-inference")) == 1
    assert len(paths(text, "lost")) == 1
    assert "1 of them left no record" in parsed(text).attrib["aria-label"]


@pytest.mark.parametrize("values", [[1.7], [0.0, 0.0], [5.0] * 490 + [20.0] * 27, [0.01, 900.0]])
def test_the_distribution_counts_every_value(values: list[float]) -> None:
    for width in (320, 1000):
        text = distribution(values, width, ("seconds", "ranks"))
        tips = [node.text for node in parsed(text).iter(f"{NS}title")][1:]
        assert sum(int(tip.split()[0]) for tip in tips if tip) == len(values)
        shown = [
            node for node in parsed(text).iter(f"{NS}text") if node.attrib["class"] == "marked"
        ]
        assert [node.text.split()[0] for node in shown] == ["p50", "p90", "p99", "max"]
        for node in shown:
            length, x = 6.6 * len(node.text), float(node.attrib["x"])
            left = x if node.attrib["text-anchor"] == "start" else x - length
            assert left >= 0
            assert left + length <= box_of(text)[0] + 8


def test_lines_with_ranges_and_incomplete_points() -> None:
    series = [
        Series("partitions of 25MB", ((1, 2.0, 1.5, 2.5), (2, 3.0, 3.0, 3.0)), (2,)),
        Series("partitions of 100MB", ((1, 4.0, 4.0, 4.0),)),
    ]
    text = LineChart(tuple(series), "data size (MB)", "seconds").render(490)
    kinds = [node.attrib["class"] for node in parsed(text).iter(f"{NS}circle")]
    assert kinds.count("open c0") == 1
    assert kinds.count("dot f1") == 2
    assert len([n for n in parsed(text).iter(f"{NS}line") if "range" in n.attrib["class"]]) == 1
    assert parsed(LineChart(tuple(series), "x", "y", x_log=True).render(320)) is not None


def test_words_from_outside_are_escaped() -> None:
    svg = Svg(10, 10)
    svg.text(0, 0, "<b>&")
    svg.rect(0, 0, 1, 1, "bar", 'a"<b>')
    assert [node.text for node in parsed(svg.render('t"<i>')).iter(f"{NS}text")] == ["<b>&"]
