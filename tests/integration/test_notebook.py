"""The notebook of the docs is made of the cells in its script, and every one of them runs."""

from __future__ import annotations

import runpy
from pathlib import Path

import nbformat

SCRIPT = Path(__file__).parents[2] / "scripts" / "notebook.py"


def test_the_notebook_runs_and_shows_results_in_place(tmp_path, monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)  # of the servers that other tests have started
    made = runpy.run_path(str(SCRIPT))
    kept = nbformat.read(made["PAGE"], as_version=4)
    sources = [cell["source"] for cell in kept.cells]
    assert sources == list(made["CELLS"]), "run python scripts/notebook.py"
    book = made["execute"](made["cells"](), tmp_path)
    code = [cell for cell in book.cells if cell["cell_type"] == "code"]
    shown = [output for cell in code for output in cell["outputs"]]
    html = [
        output["data"]["text/html"] for output in shown if "text/html" in output.get("data", {})
    ]
    assert any("<progress" in text for text in html)  # while it runs
    assert any(">complete<" in text for text in html)  # the run
    assert any("Cost Estimate" in text for text in html)  # the table
    assert any("<iframe" in text for text in html)  # the report
    assert code[-1]["outputs"][0]["data"]["text/plain"] == "True"
    assert (tmp_path / "report.html").stat().st_size > 10_000
