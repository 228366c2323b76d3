"""Write docs/notebooks/first-run.ipynb with its outputs: `python scripts/notebook.py`.

The test executes the same cells. The notebook is written here, so that its source is reviewed as
text; run this after a change of the cells below.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

PAGE = Path(__file__).parents[1] / "docs" / "notebooks" / "first-run.ipynb"
SECONDS = 300
CELLS = (
    "# A first run\n\nA survey of image cutouts in, a catalogue of redshifts and anomalies out. "
    "This notebook simulates a small survey, so that nothing else is needed; "
    "[the Python interface](../reference/api.md) has every name.",
    ("!perseid simulate survey --rows 150 --seed 2026 --held-out 2>/dev/null\n"
     "!perseid split survey partitions --size 500KB 2>/dev/null"),
    "`perseid.run` takes every key of a request; it shows a bar while the ranks work.",
    "import perseid\n\n"
    "run = perseid.run(\"partitions\", world_size=4, results=\"runs/first\")\nrun",
    "What was found: redshifts against known ones, anomalies against labels.",
    "{key: run.summary[\"redshift\"][key] for key in (\"nmad\", \"bias\", \"outliers\", \"n\")}",
    "The catalogue has one row an object, for astropy, pandas or Arrow.",
    "catalogue = run.catalogue()\ncatalogue.to_astropy()[:5]",
    "Memory, duration and cost, as the command `perseid table` prints them.",
    "run.table()",
    "The report is one page with pictures of the strangest objects; `save` writes it to a file.",
    "run.report().save(\"report.html\")\nrun.report()",
    "A run is found again by its place, also from another process or machine.",
    "perseid.open_run(\"runs/first\").status()",
    "The same survey by another number of workers gives the same catalogue, bit for bit.",
    "again = perseid.run(\"partitions\", world_size=2, results=\"runs/second\", progress=False)\n"
    "again.catalogue().equals(catalogue)",
)  # fmt: skip
"""Words and programs, in turn."""


def cells() -> nbformat.NotebookNode:
    """The notebook without outputs."""
    book = nbformat.v4.new_notebook()
    book.cells = [
        nbformat.v4.new_code_cell(text) if number % 2 else nbformat.v4.new_markdown_cell(text)
        for number, text in enumerate(CELLS)
    ]
    for number, cell in enumerate(book.cells):
        cell["id"] = f"cell-{number}"
    book.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    return book


def execute(book: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Run every cell in the folder, with this interpreter's programs; raises where one fails."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    client = NotebookClient(book, timeout=SECONDS, resources={"metadata": {"path": str(folder)}})
    return client.execute()


def main() -> None:
    """Write the executed notebook."""
    with tempfile.TemporaryDirectory() as folder:
        book = execute(cells(), Path(folder))
        text = nbformat.writes(book).replace(folder, "/home/you")
    for cell in book.cells:
        cell.metadata.pop("execution", None)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
