"""Make docs/images/report.png: the demo's report, photographed by Chromium and put side by side."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

OUT = Path(__file__).parents[1] / "docs" / "images" / "report.png"
WIDTH, HEIGHT = 1080, 1800
HALVES = (
    "#durations, #cost, #anomalies, #gallery, #request, footer { display: none }",
    "main > :not(#anomalies, #gallery), header, footer { display: none }",
)
"""What each half leaves out of the page."""


def photograph(report: str, style: str, folder: Path) -> Image.Image:
    """The page with one more rule, in a window of `WIDTH` x `HEIGHT`."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("report_picture: there is no chromium on this machine (apt install chromium)")
    page, picture = folder / "page.html", folder / "page.png"
    page.write_text(report.replace("</head>", f"<style>{style}</style></head>", 1), "utf-8")
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}",
        f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={picture}", page.as_uri(),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with Image.open(picture) as image:
        return image.convert("RGB")


def main() -> None:
    """Summary, redshifts and timeline at the left; anomalies and their gallery at the right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path, help="report.html of the demo's run")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    text = args.report.read_text(encoding="utf-8")
    both = Image.new("RGB", (2 * WIDTH, HEIGHT))
    with tempfile.TemporaryDirectory() as folder:
        for column, style in enumerate(HALVES):
            both.paste(photograph(text, style, Path(folder)), (column * WIDTH, 0))
    small = both.resize((1400, round(1400 * HEIGHT / both.width)), Image.Resampling.LANCZOS)
    small.quantize(256, kmeans=3, dither=Image.Dither.NONE).save(args.out, optimize=True)
    print(f"{args.out}: {small.width} x {small.height}, {args.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
