"""Whole runs on moto: the same zips, handlers and state machine as on ministack, by the CLI."""

from __future__ import annotations

import json

import pytest

from perseid.cli import main
from perseid.measure.cost import cost
from perseid.measure.sources.load import load_runs
from perseid.storage import Storage

SMALL_ACCOUNT = 10
"""Workers that its limit lets run at once."""
AT_ONCE = 6
"""What the account lets run, as conftest says."""


def perseid(*words: object) -> int:
    return main([str(word) for word in words])


def run(data, results, *more: object) -> int:
    return perseid("run", "--engine", "aws", "--data", data, "--out", results, "--quiet", *more)


@pytest.fixture(scope="module")
def data(moto, put_survey):
    url = f"{moto.bucket}/three"
    put_survey(url, 3, rows=40)
    return url


@pytest.fixture(scope="module")
def three(moto, data):
    """A finished run of three ranks; its URL."""
    results = f"{moto.bucket}/runs/three"
    assert run(data, results) == 0
    return results


def same_catalogue(results: str, data: str, local: object) -> bool:
    """As the local engine's, byte for byte but for the run's own name (names of one length)."""
    assert perseid("run", "--data", data, "--out", local, "--workers", 2, "--quiet") == 0
    texts = []
    for storage in (Storage(results), Storage(str(local))):
        name = json.loads(storage.get("manifest.json"))["run_id"].encode()
        texts.append(storage.get("catalogue.parquet").replace(name, b"?"))
    return texts[0] == texts[1]


def read(url, name):
    return json.loads(Storage(url).get(name))


def refused(moto) -> int:
    """Calls of functions that the account was too busy for."""
    return moto.server.log.read_text().count('/invocations HTTP/1.1" 429')


def test_a_run_of_three_ranks_gives_the_local_engines_catalogue(three, data, tmp_path):
    summary = read(three, "summary.json")
    assert (summary["status"], summary["rows"]["received"]) == ("complete", 120)
    assert same_catalogue(three, data, tmp_path / "three")


def test_what_the_run_left_is_told_by_the_command_line(three, tmp_path, capsys):
    assert perseid("status", three) == 0
    assert "complete: 3 of 3 ranks" in capsys.readouterr().out
    assert perseid("logs", three, "--rank", 1) == 0
    said = capsys.readouterr().out
    assert '"rank":1' in said
    assert '"rank":0' not in said
    assert said.count("REPORT RequestId") == 1
    assert perseid("table", three) == 0
    table = capsys.readouterr().out
    assert "whole execution" in table
    assert "3/3" in table
    assert perseid("report", three, "--out", tmp_path / "r.html") == 0
    assert "What this run cost" in (tmp_path / "r.html").read_text()


def test_the_histories_of_both_doubles_have_the_same_parts(three):
    """Parts of the execution's time, from events that another program wrote than ministack."""
    (execution,) = read(three, "engine.json")["executions"]
    assert execution["status"] == "SUCCEEDED"
    parts = [execution[f"{part}_seconds"] for part in ("before", "map", "after")]
    assert all(part > 0 for part in parts)
    assert sum(parts) == pytest.approx(execution["seconds"], abs=0.01)
    assert execution["map"]["succeeded"] == 3


@pytest.mark.slow
def test_more_ranks_than_may_run_at_once_wait_for_their_turn(moto, put_survey, tmp_path):
    """41 ranks, 6 functions at once: calls beyond are refused with the name that AWS gives."""
    data, results = f"{moto.bucket}/of-41", f"{moto.bucket}/runs/of-41"
    put_survey(data, 41, rows=4)
    before = refused(moto)
    assert run(data, results) == 0
    assert refused(moto) - before > 0
    engine = read(results, "engine.json")
    assert len(engine["attempts"]) == 41
    # Each refused call is a transition more than the run's six and one per rank.
    assert 0 < engine["refused_calls"] <= refused(moto) - before
    assert engine["transitions"] == 6 + 41 + engine["refused_calls"]
    # Lines of a log have whole milliseconds: one may seem to begin before another's end.
    assert AT_ONCE <= engine["concurrency"] <= AT_ONCE + 1
    assert {attempt["attempt"] for attempt in engine["attempts"]} == {1}
    assert [r["rank"] for r in read(results, "combined_data.json")] == list(range(41))
    assert same_catalogue(results, data, tmp_path / "of-41")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_517_ranks_ten_at_once_of_which_others_take_some(moto, put_survey, tmp_path):
    """As in a small account: ten at once (MaxConcurrencyPath, which moto obeys), and functions of
    others leave six. Calls that are refused wait, end well, and are a line of the bill."""
    data, results = f"{moto.bucket}/of-517", f"{moto.bucket}/runs/of-517"
    put_survey(data, 517, rows=2)
    assert run(data, results, "--workers", SMALL_ACCOUNT) == 0
    engine = read(results, "engine.json")
    assert (len(engine["attempts"]), engine["unreported"]) == (517, 0)
    assert {attempt["attempt"] for attempt in engine["attempts"]} == {1}
    assert engine["refused_calls"] > 0
    assert engine["transitions"] == 6 + 517 + engine["refused_calls"]
    assert [r["rank"] for r in read(results, "combined_data.json")] == list(range(517))
    assert same_catalogue(results, data, tmp_path / "of-517")
    [measured] = load_runs([results])
    lines = {line.name: line for line in cost(measured.usage).lines}
    refused = lines["Step Functions, refused calls"]
    assert refused.quantity == engine["refused_calls"]
    assert refused.usd == pytest.approx(engine["refused_calls"] * 0.000025)
    print(f"{engine['refused_calls']} calls of 517 ranks were refused: {refused.usd:.6f} USD")
