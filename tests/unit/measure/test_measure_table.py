"""The two tables, from every kind of source."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from perseid.cli import main
from perseid.errors import BadInputError, NotFoundError
from perseid.measure.measured_run import MeasuredRun, ResultPath, percentiles, size_label, size_mb
from perseid.measure.present.report import render_report
from perseid.measure.present.run_tables import bill, partition_table, run_table, tables
from perseid.measure.present.text import (
    MISSING,
    Cell,
    TableColumn,
    TextTable,
    dollars,
    quantity,
    significant,
)
from perseid.measure.prices import Prices
from perseid.measure.sources.load import load_runs
from perseid.measure.sources.load_options import LoadOptions
from perseid.measure.sources.published import read_times
from perseid.plaintext import counted


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_incomplete_published_run_says_what_is_missing(cai: Path) -> None:
    (run,) = load_runs([str(cai / "result-partition-100MB" / "total" / "2")])
    assert (run.received, run.expected, run.is_complete) == (8, 130, False)
    assert run.whole.seconds == 63.12, "of the execution that its records name: timing/2"
    assert run.map.seconds == 58.47
    (row,) = rows(run_table([run], Prices()).render("csv"))
    assert row["Ranks received / expected"] == "8/130"
    assert "INCOMPLETE" in row["Notes"]
    assert "12GB/timing/2" in row["Notes"]
    assert row["Cost Estimate ($)"] == row["Memory Used (MB)"] == ""


def test_the_published_tree_with_its_hand_kept_times(cai: Path) -> None:
    found = {tuple(run.name.split("/")[-3:]): run for run in load_runs([str(cai)])}
    assert len(found) == 9
    run = found["result-partition-25MB", "1GB", "1"]
    assert (run.received, run.expected, run.batch_size) == (41, 41, 512)
    assert run.whole.seconds == 26.642
    values = [record.model_seconds for record in run.records]
    assert run.durations == tuple(values)
    assert percentiles(values) == pytest.approx(
        (np.median(values), np.percentile(values, 90), np.percentile(values, 99), max(values))
    )
    bits = sum(record.bits for record in run.records)
    by = run.throughput()
    assert by["a"] == pytest.approx(sum(r.bits / r.model_seconds for r in run.records) / 1e9)
    assert by["c"] == pytest.approx(bits / 26.642 / 1e9)
    assert "b" not in by
    slow = found["result-partition-100MB", "1GB", "1"]
    assert any("sources disagree" in note for note in slow.notes)


def test_times_belong_to_the_run_that_they_were_taken_of(cai: Path, tmp_path: Path) -> None:
    """Plain runs and the batch sweep have repetitions of the same numbers; scaling runs too."""
    tree = tmp_path / "aws"
    shutil.copytree(cai, tree)
    names = ["result-partition-25MB/1GB/1", "result-partition-25MB/1GB/Batches/32/1",
             "result-partition-25MB/1GB/Batches/512/1",
             "result-partition-100MB/total100GB/1"]  # fmt: skip
    sources = [str(tree / name) for name in names]
    plain, swept, usual, scaled = load_runs(sources)
    assert plain.whole.seconds == 26.642
    assert swept.whole is usual.whole is None, "no table there has the batch sweep"
    assert (scaled.whole.seconds, scaled.map.seconds) == (116.81, 65.13), "983GB/1"
    logs = tree / "results" / "state_machine_logs.csv"
    shutil.copy(tree / "results" / "state_machine_logs.branch-AAAI.csv", logs)
    plain, swept, usual, scaled = load_runs(sources)
    assert plain.whole.seconds == 26.642
    assert any("state_machine_logs.csv says 20.02 s" in note for note in plain.notes)
    assert [run.whole.seconds for run in (swept, usual)] == [39.2, 21.44]
    assert [run.map.seconds for run in (swept, usual)] == [31.59, 16.1]
    assert scaled.whole is None


def test_ranks_that_the_published_paths_do_not_tell(cai: Path, tmp_path: Path) -> None:
    (scaled,) = load_runs([str(cai / "result-partition-100MB" / "total100GB")])
    assert (scaled.received, scaled.expected, scaled.is_complete) == (983, None, None)
    assert scaled.rows == 4_987_095
    names = ("total100GB", "total1000GB")
    for name in names:
        home = tmp_path / "result-partition-100MB" / name / "1"
        home.mkdir(parents=True)
        shutil.copy(cai / "result-partition-100MB/total100GB/1/combined_data.json", home)
    again = load_runs([str(tmp_path)])
    sizes = rows(partition_table(again, Prices()).render("csv"))
    assert [(row["Data Size"], row["Ranks received / expected"]) for row in sizes] == [
        ("total100GB", "983/?"), ("total1000GB", "983/?")]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "received", "expected"),
    [
        ("25MB/1GB/3", 40, None),  # 1 GB may be 40 files of 25 MB, or 41
        ("25MB/1GB/3", 41, 41),
        ("25MB/1GB/3", 39, 41),
        ("25MB/10GB/1", 400, None),
        ("100MB/8GB/Batches/128/run 1", 80, None),
        ("100MB/total/1", 122, 130),  # the survey has 130 files, whatever a GB is
        ("100MB/12.6GB/1", 126, 130),
        ("100MB/total256GB/1", 1000, None),
    ],
)
def test_incomplete_is_said_only_where_the_number_of_ranks_is_known(
    cai: Path, tmp_path: Path, path: str, received: int, expected: int | None
) -> None:
    home = tmp_path / f"result-partition-{path}"
    home.mkdir(parents=True)
    (one, *_) = json.loads((cai / "result-partition-100MB/1GB/1/combined_data.json").read_text())
    del one["result_path"]
    (home / "combined_data.json").write_text(json.dumps([one] * received))
    (run,) = load_runs([str(home)])
    assert (run.received, run.expected) == (received, expected)
    (row,) = rows(run_table([run], Prices()).render("csv"))
    assert ("INCOMPLETE" in row["Notes"]) == (expected is not None and received < expected)
    assert ("completeness not known" in row["Notes"]) == (expected is None)


def test_the_sample_log_by_hand(cai: Path) -> None:
    runs = load_runs([str(cai / "log_example.txt")])
    assert [(r.partition, r.data, r.received, r.expected) for r in runs] == [
        ("75MB", "8GB", 2, 110), ("75MB", "8GB", 1, 110), ("75MB", "10GB", 1, 137),
        ("75MB", "10GB", 1, 137), ("75MB", "10GB", 1, 137), ("75MB", "total", 1, 173),
        ("75MB", "total", 1, 173), ("75MB", "total", 1, 173),
    ]  # fmt: skip
    by_run, by_size = tables(runs)
    first = rows(by_run.render("csv"))[0]
    # (40908 + 33810) ms x 10 GB x 0.0000166667 + 2 x 0.2e-6 + 5 transitions x 25e-6, and its logs
    assert float(first["Cost Estimate ($)"]) == pytest.approx(0.0124530 + 4e-7 + 1.25e-4, abs=5e-6)
    assert float(first["Cost by memory used ($)"]) == pytest.approx(
        (40.24333 * 5948 + 33.80985 * 5998) / 1024 * 0.00001667
    )
    assert (first["Memory Used (MB)"], first["Duration of"]) == ("5998", "slowest worker")
    sizes = {row["World Size"]: row for row in rows(by_size.render("csv"))}
    assert sizes["110"]["Runs"] == "2"
    assert float(sizes["110"]["Duration (s)"]) == 33.80985
    assert float(sizes["110"]["max (s)"]) == 40.24333


def test_a_log_of_invocations_that_say_nothing_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "init.log"
    line = "REPORT RequestId: {} Duration: {} ms Billed Duration: {} ms "
    line += "Memory Size: 128 MB Max Memory Used: 88 MB\n"
    path.write_text("".join(line.format(i, 580 + i, 581 + i) for i in range(41)))
    (run,) = load_runs([str(path)])
    assert (run.received, run.expected, run.is_complete) == (41, None, None)
    (row,) = rows(run_table([run], Prices()).render("csv"))
    assert row["Ranks received / expected"] == "41/?"
    assert "function not named" in row["Notes"]
    assert float(row["max (s)"]) == 0.62
    (told,) = load_runs([str(path)], LoadOptions(expected=42))
    assert told.is_complete is False


def test_a_run_of_ours(make_run: Callable[..., object]) -> None:
    made = make_run(ranks=4, rows=10, retried=(2,))
    (run,) = load_runs([str(made.path)])
    assert run.is_complete
    assert (run.received, run.expected, run.rows) == (4, 4, 40)
    assert sorted(run.durations) == sorted(r.duration_ms / 1e3 for r in made.reports)
    assert run.map.seconds == 12.5
    assert run.whole.what == "whole run"
    (row,) = rows(run_table([run], Prices()).render("csv"))
    assert float(row["Memory Used (MB)"]) == 411
    assert "1 of 5 invocations failed" in row["Notes"]
    compute = sum(r.memory_mb / 1024 * r.billed_ms / 1e3 for r in made.reports) * 0.0000166667
    requests = 5 * 0.2e-6
    transitions = (3 + 5) * 0.000025
    # a rank: 2 reads and 2 looks at its partition, 2 looks for its record, 3 objects read back, 4
    # written; a run: 6 written, 3 pages, 3 read; initialize, summarize and cold workers look once,
    # initialize twice more at an empty place; it checks data and model with 5 reads, and summarize
    # looks for the catalogue
    looks = 2 + sum(r.cold for r in made.reports) + 2 + 5 + 1
    s3 = (4 * (2 + 2 + 2 + 3) + 3 + looks) * 0.0004e-3 + (4 * 4 + 6 + 3) * 0.005e-3
    assert float(row["Cost Estimate ($)"]) == pytest.approx(
        compute + requests + transitions + s3, rel=2e-3
    )
    (sizes,) = rows(partition_table([run], Prices()).render("csv"))
    assert (sizes["Requests"], sizes["World Size"]) == ("5", "4")


def test_a_run_without_a_summary_is_not_complete(make_run: Callable[..., object]) -> None:
    made = make_run(ranks=3, rows=4, finish=False)
    (run,) = load_runs([str(made.path)])
    assert (run.received, run.is_complete) == (3, False)
    assert "not finished" in run.notes[0]


def test_a_folder_of_runs_a_glob_and_a_file(make_run: Callable[..., object], cai: Path) -> None:
    made = make_run(ranks=2, rows=4, name="runs/b10")
    make_run(ranks=2, rows=4, name="runs/b9")
    names = [Path(r.name).name for r in load_runs([str(made.path.parent)])]
    assert names == ["b9", "b10"]
    assert len(load_runs([str(made.path.parent / "b*")])) == 2
    assert len(load_runs([f"file://{made.path}"])) == 1
    combined = made.path / "combined_data.json"
    assert load_runs([str(combined)])[0].expected_from == "manifest"
    assert len(load_runs([str(cai / "result-partition-100MB" / "1GB" / "*" / "*.json")])) == 3


def test_our_records_are_read_as_the_existing_ones(
    make_run: Callable[..., object], tmp_path: Path
) -> None:
    made = make_run(ranks=3, rows=10)
    place = tmp_path / "result-partition-1MB" / "3MB" / "1"
    place.mkdir(parents=True)
    shutil.copy(made.path / "combined_data.json", place)
    (ours,), (theirs,) = load_runs([str(made.path)]), load_runs([str(place)])
    assert theirs.rows == ours.rows == 30
    assert theirs.throughput()["a"] == pytest.approx(ours.throughput()["a"])
    assert (theirs.received, theirs.expected) == (3, 3)


def test_a_folder_of_log_streams_is_one_log(tmp_path: Path) -> None:
    for rank in range(3):
        (tmp_path / f"stream-{rank}.log").write_text(
            f"2026-01-01T00:00:0{rank}.000Z START RequestId: r{rank} Version: $LATEST\n"
            f"received: {{'RANK': '{rank}', 'WORLD_SIZE': '3', 'SCRIPT': 'x', "
            "'RESULT_PATH': 'result-partition-25MB/1GB/7', 'BATCH_SIZE': 512}\n"
            f"2026-01-01T00:00:09.000Z END RequestId: r{rank}\n"
            f"REPORT RequestId: r{rank} Duration: 8000.00 ms Billed Duration: 8000 ms "
            "Memory Size: 10240 MB Max Memory Used: 2900 MB\n"
        )
    (run,) = load_runs([str(tmp_path)])
    assert (run.received, run.expected, run.is_complete) == (3, 3, True)
    assert run.map.seconds == 9.0
    assert (run.partition, run.data, run.batch_size) == ("25MB", "1GB", 512)


def test_objects_of_a_run_that_are_broken_are_named(make_run: Callable[..., object]) -> None:
    made = make_run(ranks=2, rows=3)
    for name in ("summary.json", "combined_data.json", "manifest.json"):
        path = made.path / name
        whole = path.read_text()
        path.write_text(whole[: len(whole) // 2])
        with pytest.raises(BadInputError, match=name):
            load_runs([str(made.path)])
        path.write_text(whole)


def test_optional_files_that_cannot_be_read_are_notes(make_run: Callable[..., object]) -> None:
    made = make_run(ranks=3, rows=3)
    (made.path / "engine.json").write_bytes(bytes(range(256)) * 8)
    (made.path / "logs" / "1.log").write_bytes(b"\x1f\x8bbroken")
    (made.path / "logs" / "2.log").unlink()
    (made.path / "logs" / "2.log").symlink_to(made.path / "logs" / "nowhere")
    (run,) = load_runs([str(made.path)])
    assert (run.received, run.is_complete) == (3, True)
    assert len(run.reports) == 1, "of the log that can be read"
    notes = " ".join(run.notes)
    assert "engine.json is not text" in notes
    assert "1.log is a damaged gzip file" in notes


def test_a_folder_of_logs_of_which_one_is_broken(tmp_path: Path) -> None:
    line = "REPORT RequestId: a Duration: 1.0 ms Billed Duration: 2 ms Memory Size: 128 MB "
    (tmp_path / "a.log").write_text(line + "Max Memory Used: 88 MB\n")
    (tmp_path / "b.log.gz").write_bytes(b"\x1f\x8bbroken")
    (run,) = load_runs([str(tmp_path)])
    assert len(run.reports) == 1
    assert any("b.log.gz is a damaged gzip file" in note for note in run.notes)
    (tmp_path / "a.log").unlink()
    with pytest.raises(BadInputError, match="damaged gzip"):
        load_runs([str(tmp_path)])


def test_a_run_that_talked_directly_pays_for_its_rendezvous(
    make_run: Callable[..., object],
) -> None:
    made = make_run(ranks=2, rows=3)
    before = bill(load_runs([str(made.path)])[0], Prices())
    path = made.path / "combined_data.json"
    path.write_text(path.read_text().replace('"transport": "store"', '"transport": "direct"'))
    after = bill(load_runs([str(made.path)])[0], Prices())
    minute = (0.25 * 0.04048 + 0.5 * 0.004445 + 0.005) / 60
    assert after.total - before.total == pytest.approx(minute, rel=1e-6)
    (arm,) = load_runs([str(made.path)], LoadOptions(architecture="arm"))
    (task,) = [line for line in bill(arm, Prices()).lines if line.name == "Fargate vCPU"]
    assert task.usd == pytest.approx(0.25 * 0.04048 / 60), "the stack's task is x86 in any case"


def test_storage_of_the_workers_on_aws_is_billed(make_run: Callable[..., object]) -> None:
    """By hand: of 2,560 MB the first 512 are free; for the billed seconds, as memory is."""
    made = make_run(ranks=3, rows=3)
    (made.path / "engine.json").write_text(json.dumps({"engine": "aws", "tmp_mb": 2560}))
    (run,) = load_runs([str(made.path)])
    (line,) = [line for line in bill(run, Prices()).lines if "/tmp" in line.name]
    seconds = sum(report.billed_ms for report in made.reports) / 1e3
    assert line.quantity == pytest.approx(2 * seconds)
    assert line.usd == pytest.approx(2 * seconds * 0.0000000309)


def test_the_transport_and_what_the_collectives_took(make_run: Callable[..., object]) -> None:
    made = make_run(ranks=3, rows=3)
    (row,) = rows(run_table(load_runs([str(made.path)]), Prices()).render("csv"))
    assert (row["Transport"], row["Collectives (s)"]) == ("store", "")
    path = made.path / "combined_data.json"
    records = json.loads(path.read_text())
    for number, record in enumerate(records):
        record["transport"] = "direct" if number else "direct+relay"
        record["stages"]["collectives"] = 0.25 * number
    path.write_text(json.dumps(records))
    (run,) = load_runs([str(made.path)])
    table = run_table([run], Prices())
    (row,) = rows(table.render("csv"))
    assert (row["Transport"], float(row["Collectives (s)"])) == ("direct, direct+relay", 0.5)
    assert any("slowest rank" in note for note in table.footnotes)
    page = render_report(run)
    assert "direct, direct+relay" in page
    assert "the collectives took 0.5" in page


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="is not there"):
        load_runs([str(tmp_path / "nowhere")])
    with pytest.raises(NotFoundError, match="nothing matches"):
        load_runs([str(tmp_path / "*.log")])
    with pytest.raises(BadInputError, match="there is no run in"):
        load_runs([str(tmp_path)])
    (tmp_path / "a.json").write_text("[1, 2]")
    with pytest.raises(BadInputError, match="not a list of rank records"):
        load_runs([str(tmp_path / "a.json")])
    (tmp_path / "a.json").write_text('[{"batch_size": 1}]')
    with pytest.raises(BadInputError, match="total_cpu_time"):
        load_runs([str(tmp_path / "a.json")])
    (tmp_path / "a.json").write_text("[")
    with pytest.raises(BadInputError, match="not a list of records"):
        load_runs([str(tmp_path / "a.json")])
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "combined_data.json").write_text('[{"batch_size":')
    with pytest.raises(BadInputError, match=r"combined_data\.json is not JSON"):
        load_runs([str(tmp_path / "tree")])
    for number in (0, -3):
        with pytest.raises(BadInputError, match=f"at least 1, not {number}"):
            LoadOptions(expected=number)
    times = tmp_path / "times.csv"
    times.write_text("a,b\n1,2\n")
    with pytest.raises(BadInputError, match="not a table of execution times"):
        read_times(times)


def test_places_follow_the_published_grid() -> None:
    grid = {
        "25MB": [41, 82, 164, 246, 328, 410, 517], "50MB": [21, 41, 82, 123, 164, 205, 259],
        "75MB": [14, 28, 55, 82, 110, 137, 173], "100MB": [11, 21, 41, 62, 82, 103, 130],
    }  # fmt: skip
    data = ["1GB", "2GB", "4GB", "6GB", "8GB", "10GB", "total"]
    for partition, workers in grid.items():
        found = [ResultPath.of(f"s3://b/result-partition-{partition}/{d}/3/").workers for d in data]
        assert found == workers
    place = ResultPath.of("scaling/result-partition-100MB/12GB/timing/2")
    assert (place.partition, place.data, place.repetition) == ("100MB", "12GB", "2")
    assert ResultPath.of("elsewhere/1") is None


def test_size_labels() -> None:
    assert [size_label(rows * 20_508) for rows in (51, 1278, 5113, 659_817)] == [
        "1MB", "25MB", "100MB", "12.6GB",
    ]  # fmt: skip
    assert (size_mb("1.5GB"), size_mb("512KB"), size_mb("many")) == (1536, 0.5, None)


def test_percentiles_leave_nothing_out() -> None:
    values = [1.0] * 95 + [4.0] * 5
    assert percentiles(values) == (1.0, 1.0, 4.0, 4.0)
    assert percentiles([3.0]) == (3.0,) * 4
    assert all(np.isnan(percentiles([])))


def test_an_unknown_number_is_never_a_zero() -> None:
    text = run_table([MeasuredRun("nothing")], Prices()).render("text")
    assert "0/?" in text
    assert "completeness not known" in text


def test_the_three_forms_say_the_same(make_run: Callable[..., object]) -> None:
    table = run_table(load_runs([str(make_run(ranks=2, rows=4).path)]), Prices())
    text, markdown = table.render("text"), table.render("markdown")
    (row,) = rows(table.render("csv"))
    shown = [cell.text for cell in table.rows[0].values()]
    assert all(value.split(";")[0] in text for value in shown if value != MISSING)
    assert all(value in markdown for value in shown)
    assert set(row) == {column.head for column in table.columns}
    assert markdown.count("|") == (len(table.columns) + 1) * 3
    assert all(note in markdown for note in table.footnotes)
    with pytest.raises(BadInputError, match="no table format"):
        table.render("pdf")


def test_text_tables_keep_their_columns() -> None:
    table = TextTable(
        "T",
        (TableColumn("a", "A long head of words"), TableColumn("b", "Notes", numeric=False)),
        (
            {"a": Cell("1.50", 1.5), "b": Cell("word " * 20)},
            {"a": Cell("10.00", 10), "b": Cell("x")},
        ),
    )
    lines = table.render("text").splitlines()
    rule = next(line for line in lines if set(line) == {"-", " "})
    assert max(map(len, lines)) <= len(rule)
    assert [line[:8].strip() for line in lines if "." in line] == ["1.50", "10.00"]


@pytest.mark.parametrize("width", [50, 80, 100, 132, 250])
def test_tables_fit_the_terminal_and_lose_no_column(cai: Path, width: int) -> None:
    for table in tables(load_runs([str(cai)])):
        text = table.render("text", width)
        assert max(map(len, text.splitlines())) <= width
        words = " ".join(text.split())
        assert "Columns without a value are left out: " in words
        for column in (c for c in table.filled() if c.key != "notes"):
            for row in table.rows:
                assert all(word in text for word in row[column.key].text.split())
        if width > 200:
            assert text.count("p99 (s)") == 1


def test_the_command_fits_the_terminal_that_it_writes_to(
    cai: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    assert main(["table", str(cai / "log_example.txt")]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 72


def test_numbers_as_people_read_them() -> None:
    assert [significant(v) for v in (0, 0.97167, 1234.5, 0.000054)] == [
        "0", "0.9717", "1234", "0.00005400",
    ]  # fmt: skip
    assert [quantity(v) for v in (0, 517, 12_345, 97.887, 1.278e-9)] == [
        "0", "517", "12,345", "97.89", "1.3e-09",
    ]  # fmt: skip
    assert (dollars(3e-9), dollars(0.38)) == ("< 0.0000001", "0.380")
    assert (counted(1, "rank"), counted(2056, "row")) == ("1 rank", "2,056 rows")


def test_the_command(cai: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = str(cai / "log_example.txt")
    assert main(["table", log]) == 0
    out = capsys.readouterr().out
    assert "Runs\n" in out
    assert "Partition sizes\n" in out
    assert out.count("AWS does not bill it") + out.count("AWS\n    does not bill it") == 1
    assert main(["table", log, "--format", "csv", "--out", str(tmp_path / "t.csv")]) == 0
    assert len(rows((tmp_path / "t.csv").read_text())) == 8
    assert len(rows((tmp_path / "t-partitions.csv").read_text())) == 3
    prices = tmp_path / "p.json"
    prices.write_text(json.dumps({"lambda_gb_second_x86": 0.0000333334}))
    capsys.readouterr()
    main(["table", log, "--format", "csv", "--table", "runs"])
    plain = rows(capsys.readouterr().out)
    main(["table", log, "--format", "csv", "--table", "runs", "--prices", str(prices)])
    dear = rows(capsys.readouterr().out)
    main(["table", log, "--format", "csv", "--table", "runs", "--arch", "arm"])
    arm = rows(capsys.readouterr().out)
    costs = [float(table[0]["Cost Estimate ($)"]) for table in (arm, plain, dear)]
    assert costs == sorted(costs)
    assert costs[0] < costs[1] < costs[2]
    assert main(["table", str(tmp_path / "none")]) == 2
    assert "is not there" in capsys.readouterr().err
