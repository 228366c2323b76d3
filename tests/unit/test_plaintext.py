"""Text of others where it is shown: terminals, lines of logs, spreadsheets."""

from __future__ import annotations

import csv
import html
import io
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_model, tiny_survey

import perseid
from perseid.api.terminal import SafeStream
from perseid.cli import main
from perseid.measure.present.text import Cell, TableColumn, TextTable
from perseid.plaintext import COMMAND_LINE, counted, csv_cell, markup, one_line, option, printable

ANY = st.text(
    alphabet=st.one_of(st.characters(), st.sampled_from("\x1b\x07\x9b\r\n\t\u202e\u2028=+-@|<")),
    max_size=40,
)


@given(ANY)
def test_nothing_that_moves_a_cursor_or_turns_text_is_left(text: str) -> None:
    safe = printable(text)
    assert printable(safe) == safe
    left = {c for c in safe if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")}
    assert left <= {"\n", "\t"}
    assert not set(safe) & set("\u202e\u2066\u200f")
    assert len(one_line(text).splitlines()) <= 1


@given(ANY)
def test_no_cell_of_a_table_is_a_formula_or_breaks_its_row(text: str) -> None:
    table = TextTable(
        text,
        (TableColumn("a", "Name", numeric=False), TableColumn("b", "Number")),
        ({"a": Cell(text, text), "b": Cell("-1", -1.0)},),
        (text,),
    )
    (head, row) = csv.reader(io.StringIO(table.render("csv")))
    assert head == ["Name", "Number"]
    assert row == [csv_cell(text), "-1.0"]
    assert not row[0].startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    markdown = table.render("markdown")
    assert "<" not in markdown
    assert len([line for line in markdown.splitlines() if line.startswith("|")]) == 3
    for form in ("text", "markdown", "csv"):
        assert not {c for c in table.render(form) if unicodedata.category(c) == "Cc"} - {"\n", "\t"}


@given(ANY)
def test_no_text_is_markup(text: str) -> None:
    shown = markup(text)
    assert not set(shown) & set("<>\"'")
    assert html.unescape(shown) == printable(text)


def test_text_that_is_harmless_stays_as_it_is() -> None:
    for text in ("25MB", "Größe α 星 🌌", "a-b", "s3://b/1.pt", "8/130", "–"):
        assert printable(text) == one_line(text) == csv_cell(text) == text


def test_a_stream_that_lacks_a_character_shows_its_escape() -> None:
    raw = io.BytesIO()
    stream = SafeStream(io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    print("é \x1b[2J", file=stream, flush=True)
    assert raw.getvalue() == b"\\xe9 \\x1b[2J\n"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "\uff1d1"])
def test_formulas_are_text(text: str) -> None:
    assert csv_cell(text).startswith("'")


def test_a_number_and_its_noun_agree():
    assert [counted(n, "row") for n in (0, 1, 2, 2056)] == [
        "0 rows",
        "1 row",
        "2 rows",
        "2,056 rows",
    ]
    assert counted(1, "object has", "objects have") == "1 object has"


PLURALS = re.compile(r"(?<!of )(?<![\d.,/])\b1 [a-z]+s\b(?!/s)")
"""As in "1 rows", and none of "1 of 1 ranks", "0.1 seconds" and "1 rows/s"."""


def test_no_command_says_1_rows(tmp_path, capsys):
    """A survey of one row in one partition, through the commands that count."""
    tiny_survey(tmp_path / "data", rows=1, per_partition=1)
    data, run = str(tmp_path / "data"), str(tmp_path / "run")
    model = str(tiny_model(tmp_path / "m.onnx"))
    for words in (
        ["survey", "info", data],
        ["split", data, str(tmp_path / "split"), "--rows", "1"],
        ["run", "--data", data, "--model", model, "--out", run, "--dry-run"],
        ["run", "--data", data, "--model", model, "--out", run, "--workers", "1"],
        ["catalogue", run, "--to", str(tmp_path / "catalogue.csv")],
        ["status", run],
        ["model", "info", model],
    ):
        assert main(words) == 0
        said = "".join(capsys.readouterr())
        wrong = [m[0] for m in PLURALS.finditer(said)]
        assert not wrong, (words, wrong)
    found = perseid.open_run(run)
    for shown in (found.catalogue(), perseid.open_survey(data)):
        assert not PLURALS.search(repr(shown))


def test_options_are_named_as_they_were_given(monkeypatch, tmp_path, capsys) -> None:
    survey, model = tmp_path / "survey", tiny_model(tmp_path / "model.onnx")
    tiny_survey(survey)
    assert option("memory_mb", 512) == "`memory_mb=512`"
    with pytest.raises(perseid.errors.BadInputError, match=r"^`keep` names the column nope"):
        perseid.run(survey, model=model, keep="nope", results=tmp_path / "out", progress=False)
    words = ["run", "--data", survey, "--model", model, "--out", tmp_path / "out"]
    assert main([*map(str, words), "--keep", "nope"]) == 2
    assert "perseid: --keep names the column nope" in capsys.readouterr().err
    assert option("results") == "`results`"  # the command has ended
    monkeypatch.setenv(COMMAND_LINE, "1")
    assert option("results") == "--out"
    assert option("fit", "crop") == "--fit crop"
    assert option("replace", True) == "--replace"
    assert option("memory_mb", 512) == "--memory 512"
    assert option("columns", {"ra": "NAME", "dec": "D"}) == "--columns ra=NAME,dec=D"


def test_a_message_shows_no_whole_array(tmp_path) -> None:
    survey = tiny_survey(tmp_path / "survey")
    keys = {"results": survey.images, "engine": [survey] * 3, "progress": "x" * 10_000}
    for wrong in ({"data": survey}, *({"data": tmp_path, key: keys[key]} for key in keys)):
        with pytest.raises(perseid.errors.BadInputError) as caught:
            perseid.run(**wrong)
        assert len(str(caught.value)) < 200
