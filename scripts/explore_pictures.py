"""The pictures of the live page in the docs: a real run of a simulated survey, in a real browser.

    python scripts/explore_pictures.py [FOLDER]

Simulates a survey in FOLDER (kept, so that a second call is fast), runs the model over it while the
page is open, and writes ``docs/images/explore-*.png``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet
from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
PERSEID = (sys.executable, "-m", "perseid")
SEED = "78"
WIDTH, HEIGHT = 1360, 960
GOOD = (1, 2, 3)
"""Labels that are rated 5: merger, ring, tidal stream."""


@contextmanager
def serving(*command: str) -> Iterator[str]:
    """The address that a command prints."""
    with subprocess.Popen(
        [*PERSEID, *command, "--no-browser"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        try:
            yield next(line for line in process.stdout if line.startswith("explore")).split()[1]
        finally:
            process.kill()


def drag(page: Page, plot: str, *points: tuple[float, float]) -> None:
    """Drag over a plot, by shares of its width and height."""
    page.evaluate("window.scrollTo(0, 0)")
    box = page.locator(f".plot.{plot} svg.chart").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()
    page.locator(".chip.selects").first.wait_for()


def shoot(page: Page, name: str) -> None:
    """Write one picture, once all images are there."""
    page.evaluate("window.scrollTo(0, 0)")
    page.mouse.move(5, 400)
    page.wait_for_timeout(2500)
    path = IMAGES / f"explore-{name}.png"
    page.screenshot(path=path)
    smaller(path)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e3:.0f} kB")


def smaller(path: Path) -> None:
    """The picture in 256 colors: a third of the bytes, and the same to the eye."""
    with Image.open(path) as image:
        few = image.convert("RGB").quantize(256, kmeans=1, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def watch(page: Page, address: str) -> None:
    """The run while it goes on."""
    page.goto(address)
    page.locator("button.rank.done").nth(4).wait_for(timeout=300_000)
    shoot(page, "live")
    page.locator(".status strong", has_text="Complete").wait_for(timeout=600_000)


def look(page: Page, address: str) -> None:
    """Objects, a selection, a map."""
    page.goto(address + "teach")  # waits until the features are there
    page.goto(address + "objects?sort=-anomaly_score")
    page.locator(".plot.map").wait_for()
    page.locator(".objects tr", has_text="bad column").first.click()
    page.locator("#one .near").wait_for()
    shoot(page, "objects")
    drag(page, "scores", (0.55, 0.2), (0.97, 0.9))
    page.get_by_role("button", name="Lasso").click()
    drag(page, "map", (0.3, 0.2), (0.75, 0.15), (0.9, 0.5), (0.6, 0.8), (0.35, 0.6))
    page.locator(".chip.selects").nth(1).wait_for()
    shoot(page, "selection")


def teach(page: Page, address: str, labels: dict[str, int]) -> None:
    """Fifty ratings, as somebody gives them who wants the kinds that the score misses."""
    page.goto(address + "teach?label=1&label=2&label=3")
    for done in range(50):
        page.locator(f'.teach[data-rated="{done}"]').wait_for()
        name = page.locator(".now h3").inner_text()
        page.keyboard.press("5" if labels[name] in GOOD else "1")
    page.locator('.teach[data-rated="50"]').wait_for()
    shoot(page, "teach")


def main() -> None:
    """Make all pictures."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("explore_pictures: there is no chromium on this machine (apt install chromium)")
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    survey, run = folder / "survey", folder / "run"
    if not survey.exists():
        subprocess.run([*PERSEID, "simulate", str(survey), "--rows", "6000", "--seed", SEED,
                        "--held-out", "--rows-per-file", "250"], check=True)  # fmt: skip
    shutil.rmtree(run, ignore_errors=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(120_000)
        with serving("run", "--data", str(survey), "--out", str(run), "--world-size", "24",
                     "--explore") as address:  # fmt: skip
            watch(page, address)
            look(page, address)
            rows = pyarrow.parquet.read_table(run / "catalogue.parquet").to_pylist()
            teach(page, address, {str(row["object_id"]): row["label"] for row in rows})
        browser.close()


if __name__ == "__main__":
    main()
