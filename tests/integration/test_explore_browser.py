"""The live page in a real browser: one Chromium and one run for all tests of this file."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pyarrow.parquet
import pytest
from axe_playwright_python.sync_playwright import Axe
from explored import ask, make_run, served
from playwright.sync_api import Page, expect, sync_playwright

import perseid

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine (apt install chromium)"
)
TIMEOUT = 60_000
"""Milliseconds: at least ten times of what anything takes here."""


@pytest.fixture(scope="module")
def browser():
    expect.set_options(timeout=TIMEOUT)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("explored"))


@pytest.fixture(scope="module")
def address(run):
    with served(run) as server:
        ask(server.address, "teach")  # waits until the features are there
        yield server.address


@contextmanager
def opened(browser, address: str, width: int = 1400, scheme: str = "light"):
    """A page in a context of its own; no script may fail, nothing may come from elsewhere."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    page: Page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    host = address.split("/")[2]
    page.on("request", lambda asked: problems.append(asked.url)
            if asked.url.split("/")[2:3] != [host] and asked.url[:5] not in ("data:", "blob:")
            else None)  # fmt: skip
    page.goto(address)
    yield page
    context.close()
    assert problems == []


def drag(page: Page, plot: str, *points: tuple[float, float]) -> None:
    """Drag over a plot, by shares of its width and height."""
    chart = page.locator(f".plot.{plot} svg.chart")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=3)
    page.mouse.up()


def test_filter_brush_lasso_take_away_and_open_again(browser, address, tmp_path):
    with opened(browser, address + "objects") as page:
        count = page.locator(".state .count")
        expect(count).to_have_text("120 objects")
        page.get_by_label("Column").select_option("z_pred")
        page.get_by_label("from", exact=True).first.fill("0.5")
        page.get_by_role("button", name="Add filter").click()
        expect(page.locator(".chip").first).to_contain_text("z_pred from 0.5")
        filtered = count.inner_text()
        drag(page, "redshift", (0.2, 0.2), (0.8, 0.8))
        expect(page.locator(".chip.selects")).to_have_count(1)
        brushed = int(count.inner_text().split()[0])
        page.get_by_role("button", name="Lasso").click()
        drag(page, "map", (0.15, 0.1), (0.9, 0.1), (0.9, 0.6), (0.5, 0.9), (0.15, 0.6))
        expect(page.locator(".chip.selects")).to_have_count(2)
        selected = count.inner_text()
        assert re.fullmatch(rf"\d+ of {filtered} selected", selected)
        wanted = int(selected.split()[0])
        assert 0 < wanted <= brushed
        assert page.locator("svg .brush").count() == 2, "each plot shows its own outline"
        expect(page.locator(".objects tbody tr")).to_have_count(min(50, wanted))
        with page.expect_download() as taken:
            page.get_by_role("link", name="CSV").click()
        taken.value.save_as(tmp_path / "selection.csv")
        assert len((tmp_path / "selection.csv").read_text().splitlines()) == wanted + 1
        with page.expect_download() as taken:
            page.locator(".plot.scores [data-png]").click()
        taken.value.save_as(tmp_path / "scores.png")
        assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
        where = page.url
    with opened(browser, where) as page:  # the address says all of it
        count = page.locator(".state .count")
        expect(count).to_have_text(selected)
        page.locator(".chip.selects").first.click()
        expect(page.locator(".chip.selects")).to_have_count(1)
        page.go_back()
        expect(count).to_have_text(selected)
        page.locator("thead a", has_text="Score").click()
        expect(page.locator("th[aria-sort=ascending]")).to_contain_text("Score")


def test_an_object_is_shown_beside_the_table_in_any_band(browser, address):
    with opened(browser, address + "objects") as page:
        page.locator(".objects tbody tr").nth(2).click()
        expect(page.locator("#one h2")).to_have_text("1002")
        big = page.locator("#one .big")
        page.get_by_label("g", exact=True).check()
        expect(big).to_have_attribute("src", re.compile("bands=1"))
        page.locator("[data-stretch]").fill("2")
        expect(big).to_have_attribute("src", re.compile("brightness=4"))
        assert big.evaluate("image => image.decode().then(() => image.naturalWidth)") == 8
        page.locator("a.object").nth(2).focus()
        page.keyboard.press("ArrowDown")
        expect(page.locator("#one h2")).to_have_text("1003")
        page.locator("#one .near a").first.click()
        expect(page.locator("#one h2")).not_to_have_text("1003")


def test_rate_twenty_undo_and_open_in_a_second_tab(browser, run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.url.removeprefix("file://"), folder)
    with served(perseid.open_run(folder)) as server:
        with opened(browser, server.address + "teach") as page:
            expect(page.locator(".now h3")).not_to_be_empty()
            page.keyboard.type("51423" * 4)  # as fast as a keyboard gives them
            expect(page.locator(".teach")).to_have_attribute("data-rated", "20")
            page.keyboard.press("u")
            expect(page.locator(".teach")).to_have_attribute("data-rated", "19")
            other = page.context.new_page()
            other.goto(server.address + "teach")
            expect(other.locator(".teach")).to_have_attribute("data-rated", "19")
            other.get_by_role("button", name="interesting").last.click()
            expect(other.locator(".teach")).to_have_attribute("data-rated", "20")
            page.keyboard.press("2")
            expect(page.locator(".teach")).to_have_attribute("data-rated", re.compile("2[01]"))
        rows = pyarrow.parquet.read_table(folder / "ratings.parquet").to_pylist()
        assert [row["rating"] for row in rows[:19]] == [5, 1, 4, 2, 3] * 3 + [5, 1, 4, 2]
        assert len({(row["partition"], row["row"]) for row in rows[:19]}) == 19
        with opened(browser, server.address + "objects?sort=learned_rank") as page:
            expect(page.locator("thead")).to_contain_text("Learned rank")


def test_a_run_that_is_going_on_is_watched_to_its_end(browser, run, tmp_path):
    data, model = (run.manifest.request[name] for name in ("data", "model"))
    command = [
        sys.executable, "-m", "perseid", "run", "--data", data, "--model", model,
        "--out", str(tmp_path / "live"), "--world-size", "2", "--workers", "1",
        "--explore", "--no-browser",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            where = next(line for line in process.stderr if line.startswith("explore")).split()[1]
            with opened(browser, where) as page:
                expect(page.locator(".status strong")).to_have_text("Complete")
                expect(page.locator("button.rank.done")).to_have_count(2)
                expect(page.locator(".tiles")).to_contain_text("2 of 2")
                page.get_by_role("button", name="rank 1, done").click()
                expect(page.locator("#log pre")).to_contain_text("REPORT RequestId")
                page.get_by_role("button", name="Close the log").click()
                page.get_by_role("link", name="Objects").click()
                expect(page.locator(".state .count")).to_have_text("120 objects")
        finally:
            process.terminate()


def test_hostile_ids_run_nothing(browser, tmp_path):
    run = make_run(tmp_path, hostile=True, rows=60)
    with served(run) as server, opened(browser, server.address) as page:
        for path in ("objects#o1", "teach"):
            page.goto(server.address + path)
            expect(page.locator("#one h2, .now h3").first).to_be_visible()
            page.mouse.click(20, 400)
            assert page.evaluate("window.planted") is None


def test_a_survey_that_has_moved_says_why_there_is_no_picture(browser, run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.url.removeprefix("file://"), folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(
        json.dumps({**manifest, "data_url": f"file://{tmp_path}/gone"})
    )
    with served(perseid.open_run(folder)) as server:
        context = browser.new_context()
        page = context.new_page()  # whose pictures fail, which the console says
        page.goto(server.address + "objects")
        expect(page.locator(".picture-reason")).to_contain_text(f"{tmp_path}/gone/1.pt")
        expect(page.locator(".objects tbody tr")).to_have_count(50)
        context.close()


@pytest.mark.parametrize(
    ("width", "scheme", "places"),
    [
        (400, "light", ("objects#o1", "take/html")),
        (1400, "dark", ("", "teach", "report.html")),
    ],
)
def test_every_page_is_accessible_and_fits(browser, address, run, tmp_path, width, scheme, places):
    """With axe-core: these pages, the report of a selection and that of a run."""
    run.report().save(tmp_path / "report.html")
    (tmp_path / "selection.html").write_bytes(ask(address, "take/html").body)
    files = {"take/html": "selection.html", "report.html": "report.html"}
    axe = Axe()
    with opened(browser, address, width, scheme) as page:
        for place in places:
            page.goto("about:blank")
            if place in files:
                page = page.context.new_page()
                page.set_content((tmp_path / files[place]).read_text())
            else:
                page.goto(address + place)
            if "#" in place:
                expect(page.locator("#one h2")).to_have_text("1001")
            found = axe.run(page, options={"resultTypes": ["violations"]})  # the fast way
            assert found.response["violations"] == [], f"{place}: {found.generate_report()}"
            assert page.evaluate("document.documentElement.scrollWidth") <= width, place
