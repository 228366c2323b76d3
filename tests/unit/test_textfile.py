"""Text of other tools: every encoding of every file that users give."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseid import textfile
from perseid.comm.cost_model import Constants
from perseid.compat import fmi_config
from perseid.errors import BadInputError
from perseid.measure.calibration import Calibration
from perseid.measure.prices import load_prices
from perseid.measure.sources.load import load_runs
from perseid.measure.sources.published import read_times
from perseid.model.intervals import BESIDE as BESIDE_MODEL
from perseid.model.intervals import read_calibration
from perseid.model.signature_files import signature_of
from perseid.pipeline.request import RunRequest
from perseid.pipeline.run_state import stored_logs
from perseid.storage import Storage
from perseid.textfile import csv_rows, decimal, decode, parse_json, read_text

CAI = Path(__file__).parents[1] / "data" / "cai"


def crlf(text: str) -> str:
    return text.replace("\n", "\r\n")


ENCODINGS: dict[str, Callable[[str], bytes]] = {
    "UTF-8": str.encode,
    "UTF-8 with a mark": lambda text: text.encode("utf-8-sig"),
    "UTF-8 with a mark, CRLF": lambda text: crlf(text).encode("utf-8-sig"),
    "CR alone": lambda text: text.replace("\n", "\r").encode(),
    "UTF-16": lambda text: crlf(text).encode("utf-16"),
    "UTF-16, big end first": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "UTF-16 without a mark": lambda text: text.encode("utf-16-le"),
    "UTF-16 without a mark, big end first": lambda text: text.encode("utf-16-be"),
    "UTF-32": lambda text: text.encode("utf-32"),
    "Windows-1252": lambda text: text.encode("cp1252"),
    "gzip": lambda text: gzip.compress(text.encode()),
    "gzip of UTF-16": lambda text: gzip.compress(text.encode("utf-16")),
    "gzip in two parts": lambda text: (
        gzip.compress(text[:40].encode()) + gzip.compress(text[40:].encode())
    ),
}


def request(path: Path) -> object:
    return RunRequest.parse(path).data


def prices(path: Path) -> object:
    return load_prices(path).lambda_request


def calibration(path: Path) -> object:
    return Calibration.load(path)


def configuration(path: Path) -> object:
    return fmi_config.load(path, 1024).rendezvous


def history(path: Path) -> object:
    (run,) = load_runs([str(path)])
    return run.whole, run.map, run.data


def log(path: Path) -> object:
    return [(run.data, run.durations, run.expected) for run in load_runs([str(path)])]


def records(path: Path) -> object:
    (run,) = load_runs([str(path)])
    return run.rows, run.received, run.durations


def times(path: Path) -> object:
    return read_times(path)


def constants(path: Path) -> object:
    return Constants.load(path)


def signature(path: Path) -> object:
    return signature_of(path)


def intervals(path: Path) -> object:
    return read_calibration(str(path).removesuffix(BESIDE_MODEL))


HISTORY = [
    {"id": 1, "type": "ExecutionStarted", "timestamp": 1e9, "executionStartedEventDetails":
     {"input": '{"result_path": "result-partition-25MB/1GB/é"}'}},
    {"id": 2, "type": "MapStateEntered", "timestamp": 1e9 + 4,
     "stateEnteredEventDetails": {"name": "é"}},
    {"id": 3, "type": "MapStateExited", "timestamp": 1e9 + 54,
     "stateExitedEventDetails": {"name": "é"}},
    {"id": 4, "type": "ExecutionSucceeded", "timestamp": 1e9 + 60},
]  # fmt: skip
CALIBRATION = {
    "rows_per_second": 100, "scaling": 1.8, "ready_seconds": 1, "rank_seconds": 1, "base_mb": 100,
    "row_bytes": 20_000, "variation": 0.1, "doubt": 2, "source": "é", "measured": "now",
}  # fmt: skip
SIGNATURE = json.dumps(
    {"name": "é", "inputs": {"i": {"kind": "image", "bands": 3, "size": [8, 8]}},
     "outputs": {"z": {"kind": "redshift"}}}, ensure_ascii=False)  # fmt: skip
INTERVALS = {"schema": 1, "model": "m", "objects": 9, "data": "é",
             "half_width_over_1_plus_z": {"0.68": 0.02}}  # fmt: skip
FMI = {"backends": {"Direct": {"enabled": True, "host": "é.example.org", "port": 7}}, "model": {}}
INPUTS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "request": ("r.json", '{"data": "/daté", "results": "/r"}', request),
    "prices": ("p.json", json.dumps({"lambda_request": {"usd": 3e-7, "source": "é"}}), prices),
    "calibration": ("c.json", json.dumps(CALIBRATION, ensure_ascii=False), calibration),
    "FMI configuration": ("f.json", json.dumps(FMI, ensure_ascii=False), configuration),
    "history": ("h.json", json.dumps({"events": HISTORY}, ensure_ascii=False), history),
    "constants": ("k.json", '{"source": "é", "rates": {"put": 0.5}}', constants),
    "signature": ("s.json", SIGNATURE, signature),
    "intervals": (f"m.onnx{BESIDE_MODEL}", json.dumps(INTERVALS, ensure_ascii=False), intervals),
    "log": ("l.log", (CAI / "log_example.txt").read_text() + "é\n", log),
    "records": ("combined_data.json",
                (CAI / "result-partition-100MB/1GB/1/combined_data.json").read_text(), records),
    "times": ("t.csv", (CAI / "results/total_execution_time.csv").read_text(), times),
    "times with ;": ("t.csv", (CAI / "results/total_execution_time.csv").read_text().replace(
        ",", ";").replace(".", ","), times),
    "times out of a spreadsheet": (
        "t.csv", "sep=;\n" + (CAI / "results/state_machine_logs.csv").read_text().replace(
            ",", ";").replace(".", ","), times),
}  # fmt: skip


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_input_in_every_encoding(kind: str, encoding: str, tmp_path: Path) -> None:
    name, text, read = INPUTS[kind]
    plain, other = tmp_path / "plain" / name, tmp_path / "other" / name
    for path in (plain, other):
        path.parent.mkdir()
    plain.write_bytes(text.encode())
    other.write_bytes(ENCODINGS[encoding](text))
    assert read(other) == read(plain)


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (bytes(range(256)) * 8, "is not text"),
        (gzip.compress(b"[]" * 500, mtime=0)[:-9], "damaged gzip file"),
        (b"\x1f\x8b\x08garbage", "damaged gzip file"),
        (b'{"a":' * 100_000, "nested too deeply|not|no "),
        (b"", "not|no "),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    kind: str, data: bytes, says: str, tmp_path: Path
) -> None:
    name, _, read = INPUTS[kind]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(BadInputError, match=says) as caught:
        read(path)
    assert name in str(caught.value)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_runs_own_log_in_every_encoding(encoding: str, tmp_path: Path) -> None:
    store = Storage(f"file://{tmp_path}")
    text = "START RequestId: 1\nnaïve café\n" * 3
    store.put("logs/0.log", ENCODINGS[encoding](text))
    store.put("logs/1.log", bytes(range(256)) * 8)
    (_, said), (_, other) = stored_logs(store)
    assert said == text
    assert "ABCDEF" in other


def test_a_text_that_never_ends_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textfile, "MAX_BYTES", 1 << 16)
    for read in (read_text, RunRequest.parse, load_prices):
        with pytest.raises(BadInputError, match="/dev/zero is too long for such a file"):
            read("/dev/zero")


def test_a_key_that_stands_twice_is_named(tmp_path: Path) -> None:
    """The later one would win in silence: another survey, another price."""
    for text in ('{"data": "a", "x": {"b": 1, "c": 2, "b": 3}}', '{"b": 1, "b": 1}'):
        (tmp_path / "r.json").write_text(text)
        with pytest.raises(BadInputError, match=r"r\.json .* key 'b' stands in it twice"):
            RunRequest.parse(tmp_path / "r.json")


@pytest.mark.parametrize("layers", [1, 2])
def test_a_small_file_does_not_unpack_to_a_gigabyte(layers: int) -> None:
    data = b" " * (65 << 20)
    for _ in range(layers):
        data = gzip.compress(data, 1, mtime=0)
    with pytest.raises(BadInputError, match=r"^the log is more than 64 MiB of text"):
        decode(data, "the log")


def test_gzip_within_gzip_is_unpacked_a_few_times(tmp_path: Path) -> None:
    """A file that unpacks to itself would be unpacked for ever."""
    data = b"[1, 2]"
    for _ in range(textfile.MAX_LAYERS):
        data = gzip.compress(data)
    assert decode(data, "it") == "[1, 2]"
    with pytest.raises(BadInputError, match="it is not text"):
        decode(gzip.compress(data), "it")


def test_a_table_of_times_that_cannot_be_read_is_a_note(tmp_path: Path) -> None:
    tree = tmp_path / "aws"
    shutil.copytree(CAI, tree)
    (tree / "results" / "total_execution_time.csv").write_bytes(bytes(range(256)) * 8)
    (run,) = load_runs([str(tree / "result-partition-25MB" / "1GB" / "1")])
    assert (run.received, run.whole) == (41, None)
    assert any("total_execution_time.csv is not text" in note for note in run.notes)


def test_one_broken_run_of_a_tree_is_a_row_that_says_so(tmp_path: Path) -> None:
    tree = tmp_path / "result-partition-100MB" / "1GB"
    shutil.copytree(CAI / "result-partition-100MB" / "1GB", tree)
    (tree / "2" / "combined_data.json").write_text('[{"total_cpu')
    first, second, third = load_runs([str(tmp_path)])
    assert (first.received, third.received) == (11, 11)
    assert second.is_complete is False
    assert "it cannot be read" in second.notes[0]


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r\0\ufeff"), min_size=1))
def test_utf8_comes_back_as_it_was(text: str) -> None:
    printable = "x" * 200 + text
    assert decode(printable.encode(), "x") == printable
    assert decode(gzip.compress(printable.encode("utf-8-sig")), "x") == printable


@given(st.binary(max_size=300))
def test_any_bytes_are_text_or_a_sentence(data: bytes) -> None:
    with suppress(BadInputError):
        assert "\r" not in decode(data, "the file")


def test_one_broken_byte_does_not_change_the_rest() -> None:
    assert decode("a é ü ".encode() + b"\xff z", "x") == "a é ü \ufffd z"
    assert decode("naïve café".encode("cp1252"), "x") == "naïve café"


@given(
    st.lists(
        st.lists(st.text(alphabet='ab",;|\t é', max_size=6), min_size=3, max_size=3), max_size=5
    ),
    st.sampled_from(",;\t|"),
)
def test_tables_come_back_whatever_separates_their_cells(rows: list[list[str]], mark: str) -> None:
    out = io.StringIO()
    csv.writer(out, delimiter=mark).writerows([["one", "two", "three"], *rows])
    found = [list(row.values()) for row in csv_rows(out.getvalue(), "x")]
    assert found == [row for row in rows if any(cell.strip() for cell in row)]


def test_a_table_may_begin_with_empty_lines() -> None:
    for begin in ("", "\n\n", " \n;;\n", "\nsep=;\n", "sep=;\n\n"):
        assert list(csv_rows(begin + "a;b\n1,5;2\n", "x")) == [{"a": "1,5", "b": "2"}]


def test_numbers_with_a_comma() -> None:
    assert [decimal(text) for text in ("1.5", "1,5", " 26,642 ", "1.234,5", "1,234.5", "-3")] == [
        1.5, 1.5, 26.642, 1234.5, 1234.5, -3]  # fmt: skip
    with pytest.raises(ValueError, match="could not convert"):
        decimal("many")


def test_a_file_that_is_not_there_or_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(BadInputError, match="cannot be read"):
            read_text(path)
    with pytest.raises(BadInputError, match="nested too deeply"):
        parse_json("[" * 200_000, "x")
