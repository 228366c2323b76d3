"""The live page in a real browser: one Chromium and one run for all tests of this file."""

from __future__ import annotations

import re
import shutil
from contextlib import contextmanager

import pytest
from axe_playwright_python.sync_playwright import Axe
from explored import make_run, served
from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine (apt install chromium)"
)


@pytest.fixture(scope="module")
def browser():
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
        yield server.address


@contextmanager
def opened(browser, address: str, width: int = 1400, scheme: str = "light"):
    """A page in a context of its own; no script may fail, nothing may come from elsewhere."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    page: Page = context.new_page()
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
    box = page.locator(f".plot.{plot} svg.chart").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=3)
    page.mouse.up()


def test_open_filter_brush_and_open_again(browser, address):
    with opened(browser, address + "objects") as page:
        count = page.locator(".count")
        expect(count).to_have_text("120 objects")
        page.get_by_label("Column").select_option("z_pred")
        page.get_by_label("from", exact=True).first.fill("0.5")
        page.get_by_role("button", name="Add filter").click()
        expect(page.locator(".chip").first).to_contain_text("z_pred from 0.5")
        filtered = count.inner_text()
        drag(page, "redshift", (0.3, 0.3), (0.6, 0.6))
        expect(count).to_contain_text("selected")
        expect(page.locator(".chip.selects")).to_have_count(1)
        selected = count.inner_text()
        assert selected.endswith(f"of {filtered} selected")
        rows = page.locator(".objects tbody tr")
        expect(rows).to_have_count(min(50, int(selected.split()[0])))
        where = page.url
    with opened(browser, where) as page:  # the address says all of it
        expect(page.locator(".count")).to_have_text(selected)
        page.locator(".chip.selects").click()
        expect(page.locator(".count")).to_have_text(filtered)
        page.go_back()
        expect(page.locator(".count")).to_have_text(selected)


def test_an_object_is_shown_beside_the_table_in_any_band(browser, address):
    with opened(browser, address + "objects") as page:
        page.locator(".objects tbody tr").nth(2).click()
        expect(page.locator("#one h2")).to_have_text("1002")
        big = page.locator("#one .big")
        page.get_by_label("g", exact=True).check()
        expect(big).to_have_attribute("src", re.compile("bands=1"))
        page.locator("[data-stretch]").fill("2")
        expect(big).to_have_attribute("src", re.compile("brightness=4"))
        assert page.evaluate("document.querySelector('#one .big').naturalWidth") == 8
        page.locator("a.object").nth(2).focus()
        page.keyboard.press("ArrowDown")
        expect(page.locator("#one h2")).to_have_text("1003")


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1400, "dark")])
@pytest.mark.parametrize("path", ["", "objects", "object/1"])
def test_every_page_is_accessible_and_fits(browser, address, path, width, scheme):
    with opened(browser, address + path, width, scheme) as page:
        found = Axe().run(page)
        assert found.response["violations"] == [], found.generate_report()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
