"""The report: every section, nothing from outside, whatever the run lacks."""

from __future__ import annotations

import base64
import itertools
import json
import re
import shutil
import subprocess
import zlib
from collections.abc import Callable
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perseid.cli import main
from perseid.measure.present.findings import predicts_redshifts
from perseid.measure.present.gallery import lupton, png, shown_bands
from perseid.measure.present.palette import HATCHES, STAGES
from perseid.measure.present.report import DEFINITIONS, render_report
from perseid.measure.present.run_tables import run_table
from perseid.measure.present.sweep import render_sweep
from perseid.measure.prices import Prices
from perseid.measure.sources.catalogue_columns import CatalogueColumns
from perseid.measure.sources.load import load_runs
from perseid.science import redshift_metrics

SECTIONS = ["redshift", "timeline", "durations", "cost", "anomalies", "gallery", "request"]
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Text by section, and what a page may not have."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections: dict[str, str] = {}
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.headless_tables = 0
        self.charts = 0
        self.unnamed_charts = 0
        self._open: list[str] = []
        self._section = "head"
        self._heads = 0
        self.feed(text)
        self.close()
        self.unclosed = self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in VOID:
            self._open.append(tag)
        if tag == "section":
            self._section = values["id"] or ""
        if tag == "img":
            self.images.append(values)
        if tag == "svg" and "aria-hidden" not in values:
            self.charts += 1
            self.unnamed_charts += not values.get("aria-label")
        if tag == "table":
            self._heads = 0
        if tag == "th":
            self._heads += 1
            assert values.get("scope") in ("col", "row")
        for name in ("src", "href", "action", "data", "srcset"):
            if name in values:
                self.links.append(values[name] or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "table" and not self._heads:
            self.headless_tables += 1

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.sections[self._section] = self.sections.get(self._section, "") + data


def page_of(made: object) -> tuple[str, Page]:
    text = render_report(load_runs([str(made.path)])[0])
    return text, Page(text)


def check(text: str, page: Page) -> None:
    assert list(page.sections) == ["head", *SECTIONS]
    assert not page.unclosed
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    outside = re.findall(r"(?:https?:)?//[\w.]+", re.sub(r"base64,[^\"]+", "", text))
    assert set(outside) <= {"http://www.w3.org"}, "only the name space of SVG"
    assert "@import" not in text
    assert text.count("url(") == text.count("url(#hatch-"), "patterns of the page itself"
    assert "<script" not in text
    assert page.headless_tables == page.unnamed_charts == 0
    assert all(image.get("alt") for image in page.images)
    assert len(text) < 3_000_000
    for term in DEFINITIONS:
        assert term in page.sections["request"]


def test_a_complete_run(make_run: Callable[..., object]) -> None:
    made = make_run(ranks=4, rows=40, retried=(1,))
    text, page = page_of(made)
    check(text, page)
    assert "Complete" in page.sections["head"]
    assert "4 ranks and 4 partitions, none missing" in page.sections["head"]
    assert "160" in page.sections["head"]
    assert len(page.images) == 24
    assert page.sections["gallery"].count("spectroscopic") == 24
    assert "label: merger" in page.sections["gallery"]
    assert "160 objects compared" in page.sections["redshift"]
    assert "merger" in page.sections["anomalies"]
    for line in ("Lambda compute", "Step Functions", "S3 GET", "Fargate", "IPv4", "Logs", "Total"):
        assert line in page.sections["cost"]
    assert "1 of 5 invocations failed" in page.sections["request"]
    assert page.charts == 6  # three charts, each for a screen and for a phone


def test_the_figures_are_those_of_the_summary(make_run: Callable[..., object]) -> None:
    made = make_run(ranks=3, rows=50)
    summary = json.loads((made.path / "summary.json").read_text())
    _, page = page_of(made)
    for name in ("mae", "bias", "nmad"):
        assert f"{summary['redshift'][name]:.5f}" in page.sections["redshift"]
    for one in summary["anomaly"]["detection"]:
        assert f"{one['roc_auc']:.3f}" in page.sections["anomalies"]
    assert redshift_metrics([0.1], [0.1]).mae == 0


def test_an_incomplete_run_says_so_first(make_run: Callable[..., object]) -> None:
    text, page = page_of(make_run(ranks=5, rows=12, lost=(1, 3)))
    check(text, page)
    assert "Incomplete" in page.sections["head"]
    assert "3 of 5 ranks, 3 of 5 partitions" in page.sections["head"]
    assert "Missing ranks: 1, 3" in page.sections["head"]
    assert "2.npz, 4.npz" in page.sections["head"]
    assert "no record" in page.sections["timeline"]
    assert 'class="status incomplete"' in text


def test_a_run_that_was_not_finished(make_run: Callable[..., object]) -> None:
    text, page = page_of(make_run(ranks=3, rows=6, lost=(2,), finish=False))
    check(text, page)
    assert "it was not finished" in page.sections["head"]
    for ident in ("redshift", "anomalies", "gallery"):
        assert "no catalogue" in page.sections[ident]


def test_no_labels_no_redshifts_no_ids_one_rank(make_run: Callable[..., object]) -> None:
    text, page = page_of(make_run(ranks=1, rows=9, labels=False, z_spec=False, ids=False))
    check(text, page)
    assert "1 rank and 1 partition, none missing" in page.sections["head"]
    assert "None of the 9 objects has a spectroscopic redshift" in page.sections["redshift"]
    assert "no labels" in page.sections["anomalies"]
    assert len(page.images) == 9
    assert "1.pt row" in page.sections["gallery"]


def test_more_ranks_than_partitions(make_run: Callable[..., object]) -> None:
    text, page = page_of(make_run(ranks=4, partitions=2, rows=6))
    check(text, page)
    assert "4 ranks and 2 partitions, none missing" in page.sections["head"]


def test_partitions_that_are_gone_or_changed_are_named(make_run: Callable[..., object]) -> None:
    made = make_run(ranks=3, rows=8)
    (made.data / "1.npz").unlink()
    (made.data / "2.npz").write_bytes(b"not a file of cutouts")
    text, page = page_of(made)
    check(text, page)
    assert len(page.images) == 8
    assert "16 of them have no picture" in page.sections["gallery"]
    assert "no picture: 1.npz" in page.sections["gallery"]


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def test_labels_of_a_users_own_are_not_called_by_our_names(make_run: Callable[..., object]) -> None:
    made = make_run(ranks=2, rows=30, kinds=None)
    text, page = page_of(made)
    check(text, page)
    assert "merger" not in text
    assert "label: 1" in page.sections["gallery"]
    assert "label 1" in page.sections["anomalies"]
    summary = json.loads((made.path / "summary.json").read_text())
    kinds = {one["kind"] for one in summary["anomaly"]["detection"]}
    assert {"all", "label 1"} <= kinds
    assert all(one["kind"] == f"label {one['label']}" for one in summary["top"])


def test_labels_that_a_survey_names_bear_these_names(make_run: Callable[..., object]) -> None:
    made = make_run(ranks=2, rows=30, kinds={"0": "spiral", "1": "elliptical"})
    text, page = page_of(made)
    assert "label: elliptical" in page.sections["gallery"]
    assert "merger" not in text
    assert "label 5" in page.sections["anomalies"], "one that the survey does not name"


@pytest.mark.parametrize(
    ("bands", "says"),
    [
        (["u", "g", "r", "i", "z"], "i, r, g as red, green, blue"),
        (["F070", "F090", "F115", "F150", "F200"], "F150, F115, F090 as red, green, blue"),
        ([], "band 4 of 5, band 3 of 5, band 2 of 5 as red, green, blue"),
        (["g", "r"], "band 4 of 5, band 3 of 5, band 2 of 5 as red, green, blue"),
    ],
)
def test_the_gallery_names_the_bands_that_it_shows(
    make_run: Callable[..., object], bands: list[str], says: str
) -> None:
    made = make_run(ranks=1, rows=5)
    edit(made.path / "combined_data.json", lambda records: [r | {"bands": bands} for r in records])
    _, page = page_of(made)
    assert says in page.sections["gallery"]


def test_fewer_bands_than_three() -> None:
    assert shown_bands(5) == (3, 2, 1)
    assert shown_bands(3) == (2, 1, 0)
    assert shown_bands(2) == (1, 1, 0)
    assert shown_bands(1) == (0, 0, 0)


def test_counts_agree_with_each_other(make_run: Callable[..., object]) -> None:
    made = make_run(ranks=2, rows=10)
    edit(
        made.path / "combined_data.json",
        lambda records: [r | {"rows_flagged": 2} for r in records],
    )
    _, page = page_of(made)
    assert "4 of them without a prediction" in page.sections["head"]
    assert "more without a prediction" not in page.sections["head"]


def test_a_gallery_of_all_there_are_is_no_choice(make_run: Callable[..., object]) -> None:
    _, page = page_of(make_run(ranks=1, rows=3))
    assert "All 3 objects that have a score, highest first" in page.sections["gallery"]
    assert "highest scores of" not in page.sections["gallery"]
    assert "bars" not in page.sections["anomalies"]


def test_an_empty_catalogue_says_that_nothing_was_read(make_run: Callable[..., object]) -> None:
    _, page = page_of(make_run(ranks=2, rows=4, lost=(0, 1)))
    for ident in ("redshift", "anomalies", "gallery"):
        assert (
            "no object was read" in page.sections[ident] or "no catalogue" in page.sections[ident]
        )
        assert "spectroscopic" not in page.sections[ident]
    assert "no row was read" in page.sections["head"]


def test_stages_have_a_pattern_beside_their_color(make_run: Callable[..., object]) -> None:
    """Okabe and Ito's colors differ for all kinds of color vision; patterns need none."""
    text, _ = page_of(make_run(ranks=4, rows=20))
    for stage in ("fetch", "decode", "publish"):
        assert f'class="hatch-{stage}"' in text
        assert f'id="hatch-{stage}"' in text
    assert len(set(STAGES.values())) == len(STAGES)
    assert len({*HATCHES.values(), ""}) == len(HATCHES) + 1
    assert STAGES["inference"] != STAGES["init"], "the two without a pattern"
    for kind in ("protanopia", "deuteranopia", "tritanopia"):
        seen = {stage: simulated(color, kind) for stage, color in STAGES.items()}
        for one, other in itertools.combinations(seen, 2):
            apart = np.linalg.norm(seen[one] - seen[other])
            assert apart > 25 or HATCHES.get(one) != HATCHES.get(other), (kind, one, other)


MATRICES = {
    "protanopia": ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)),
    "deuteranopia": ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)),
    "tritanopia": ((1.256, -0.077, -0.179), (-0.078, 0.931, 0.148), (0.005, 0.691, 0.304)),
}
"""Machado, Oliveira and Fernandes 2009, severity 1, for linear RGB."""


def simulated(color: str, kind: str) -> np.ndarray:
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    seen = np.clip(np.array(MATRICES[kind]) @ rgb**2.2, 0, 1) ** (1 / 2.2)
    return 255 * seen


@pytest.mark.parametrize(
    "entry",
    [["fetch", -5.0, 3.0], ["fetch", 9.0, 3.0], ["fetch", "x", 3.0], ["fetch", 1e400, 3.0], "fetch",
     {"stage": 1}, ["<b>", 1.79e9, 1.79e9 + 1], None],
)  # fmt: skip
def test_no_time_axis_begins_below_zero(make_run: Callable[..., object], entry: object) -> None:
    made = make_run(ranks=2, rows=4)
    edit(
        made.path / "combined_data.json",
        lambda records: [r | {"timeline": [*r["timeline"], entry]} for r in records],
    )
    text, page = page_of(made)
    check(text, page)
    chart = text[text.index('id="timeline"') : text.index('id="durations"')]
    labels = re.findall(r'text-anchor="middle">([^<]*)<', chart)
    assert labels
    assert all(float(label) >= 0 for label in labels)


def test_517_ranks(make_run: Callable[..., object]) -> None:
    text, page = page_of(make_run(ranks=517, rows=1, lost=(500,), labels=False, ids=False))
    check(text, page)
    assert "516 of 517 ranks" in page.sections["head"]
    assert len(text) < 1_000_000


def test_words_of_a_request_cannot_become_markup(
    make_run: Callable[..., object], tmp_path: Path
) -> None:
    made = make_run(ranks=1, rows=3)
    manifest = made.path / "manifest.json"
    plain = json.loads(manifest.read_text())
    plain["request"]["<script>x</script>"] = 1
    manifest.write_text(json.dumps(plain))
    text, page = page_of(made)
    check(text, page)
    assert "<script>x</script>" in page.sections["request"]


def test_colors_follow_the_bands() -> None:
    image = np.random.default_rng(0).normal(0, 0.01, (5, 32, 32)).astype(np.float32)
    image[3, 10:20, 10:20] = 5  # the i band is red
    rgb = lupton(image)
    red, green, blue = rgb[16:22, 12:18].reshape(-1, 3).mean(axis=0)
    assert red > 200
    assert max(green, blue) < 60
    assert rgb[:8].mean() < 40, "the sky is dark"
    assert rgb[:8].max() < 128
    image[3, 2:4, 2:4] = np.nan
    assert lupton(image).shape == (32, 32, 3)
    assert lupton(np.zeros((5, 8, 8), np.float32)).max() < 80
    assert lupton(image[:1]).shape == (32, 32, 3)
    faint = np.tile(np.linspace(0, 1, 32, dtype=np.float32), (5, 32, 1))
    assert lupton(faint).max() > 150, "light all over is not noise"


def test_png_round_trip() -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    data = png(rgb)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    start = data.index(b"IDAT")
    size = int.from_bytes(data[start - 4 : start], "big")
    rows = np.frombuffer(zlib.decompress(data[start + 4 : start + 4 + size]), np.uint8)
    assert (rows.reshape(5, 22)[:, 1:].reshape(rgb.shape) == rgb).all()


def test_the_command(
    make_run: Callable[..., object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_run(ranks=2, rows=4)
    assert main(["report", str(made.path)]) == 0
    assert str(made.path / "report.html") in capsys.readouterr().out
    assert main(["report", str(made.path), "--out", str(tmp_path / "sub" / "r.html")]) == 0
    assert (tmp_path / "sub" / "r.html").read_bytes() == (made.path / "report.html").read_bytes()
    assert main(["report", str(tmp_path / "data")]) == 2
    assert main(["report", str(Path(__file__).parents[2] / "data" / "cai")]) == 2
    assert "is not a single run of perseid" in capsys.readouterr().err


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PROBE = """<!doctype html><iframe id="page" style="width:{width}px;height:844px;border:0"
srcdoc="{text}"></iframe><script>
document.getElementById('page').onload = event => {{
  const doc = event.target.contentDocument, inner = event.target.contentWindow.innerWidth;
  const wide = [...doc.querySelectorAll('body *')].filter(e => !e.closest('{without}') &&
    e.getBoundingClientRect().right > inner + 1).map(e => e.tagName + '.' + e.className);
  document.documentElement.dataset.probe =
    [inner, doc.documentElement.scrollWidth, wide.join('|')].join(';');
}};
</script>"""
"""A frame of the width: a headless window may not be narrower than 500 px."""


def probe(
    text: str, folder: Path, width: int, without: str = ".scroll, svg"
) -> tuple[int, int, str]:
    """The width of the window, of the page in it, and what sticks out."""
    path = folder / "probe.html"
    path.write_text(PROBE.format(width=width, text=escape(text), without=without), encoding="utf-8")
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", f"--user-data-dir={folder / 'profile'}",
            "--window-size=1400,900", "--dump-dom", path.as_uri(),
        ],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    found = re.search(r'<html data-probe="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    inner, scroll, wide = found[1].split(";", 2)
    return int(inner), int(scroll), wide


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt install chromium)")
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_in_a_real_browser(
    make_run: Callable[..., object], tmp_path: Path, width: int
) -> None:
    text, _ = page_of(make_run(ranks=9, rows=20, lost=(4,), retried=(2,)))
    inner, scroll, wide = probe(text, tmp_path, width)
    assert inner == width
    assert scroll <= width
    assert not wide


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt install chromium)")
@pytest.mark.parametrize("width", [390, 760, 1280])
def test_no_column_of_a_sweeps_tables_is_hidden(
    make_run: Callable[..., object], tmp_path: Path, width: int
) -> None:
    """Every cell lies in the window: nothing is to be scrolled to."""
    runs = load_runs([str(make_run(ranks=12, rows=4, retried=(1,)).path)])
    text = render_sweep(runs)
    inner, scroll, wide = probe(text, tmp_path, width, "svg")
    assert (inner, wide) == (width, "")
    assert scroll <= width
    for column in run_table(runs, Prices()).filled():
        assert column.head in text or column.key == "notes"


def test_pictures_decode(make_run: Callable[..., object]) -> None:
    _, page = page_of(make_run(ranks=1, rows=3))
    for link in page.links:
        assert base64.b64decode(link.partition(",")[2]).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("z_pred", "flag", "there"),
    [([0.1, np.nan], [0, 2], True), ([np.nan] * 2, [0, 0], False), ([np.nan] * 2, [2, 2], True)],
    ids=["redshifts", "classifier", "no answer"],
)
def test_a_model_without_redshifts_has_no_section_about_them(z_pred, flag, there):
    none = np.zeros(2)
    columns = CatalogueColumns(
        none, none, None, np.array(z_pred), none, None, np.array(flag), none, none
    )
    assert predicts_redshifts(columns) is there
    assert predicts_redshifts(None)
