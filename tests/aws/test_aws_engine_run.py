"""``--engine aws`` from the command line on the deployed stack: what a user types and sees."""

from __future__ import annotations

import json

import pytest
from flaky import flaky_proxy

from perseid.cli import main
from perseid.measure.present.run_tables import bill
from perseid.measure.prices import Prices
from perseid.measure.sources.load import load_runs
from perseid.storage import Storage


def perseid(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def data(stack, put_survey):
    url = f"{stack.bucket}/engine-data"
    put_survey(url, 3, rows=40)
    return url


@pytest.fixture(scope="module")
def three(stack, data):
    """A finished run of three ranks; its URL."""
    results = f"{stack.bucket}/runs/engine-three"
    assert perseid("run", "--engine", "aws", "--data", data, "--out", results, "--quiet") == 0
    return results


def test_a_run_leaves_logs_and_times_in_its_own_folder(three):
    store = Storage(three)
    names = {info.key for info in store.list("logs")}
    assert names == {f"logs/{n}.log" for n in (0, 1, 2, "initialize", "summarize")}
    engine = json.loads(store.get("engine.json"))
    run_id = json.loads(store.get("manifest.json"))["run_id"]
    assert sorted(attempt["rank"] for attempt in engine["attempts"]) == [0, 1, 2]
    assert {attempt["ending"] for attempt in engine["attempts"]} == {"done"}
    assert {attempt["rows"] for attempt in engine["attempts"]} == {40}
    for rank in range(3):
        text = store.get(f"logs/{rank}.log").decode()
        assert text.count("REPORT RequestId") == 1
        assert run_id in text
    (execution,) = engine["executions"]
    parts = [execution[f"{part}_seconds"] for part in ("before", "map", "after")]
    assert sum(parts) == pytest.approx(execution["seconds"], abs=0.01)
    assert execution["map"]["total"] == execution["map"]["succeeded"] == 3


def test_few_requests_are_made(three):
    """A look is two requests of Step Functions; records are read once; no polling storm."""
    engine = json.loads(Storage(three).get("engine.json"))
    calls, seconds = engine["api_calls"], engine["executions"][0]["seconds"]
    looks = calls["sfn.DescribeExecution"]
    assert looks <= 4 + seconds  # the first waits are one second, later ones five
    assert calls["sfn.DescribeMapRun"] <= looks + 1
    assert calls["s3.GetObject"] == 3 + 1  # the records, and all of them in one object
    assert calls["cloudwatch-logs.FilterLogEvents"] <= 6


def test_a_record_is_read_once_from_here(ministack, stack, data, monkeypatch):
    """What a proxy before S3 sees: this process' requests, not those of the functions."""
    results = f"{stack.bucket}/runs/engine-once"
    with flaky_proxy(ministack.endpoint) as proxy, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        assert perseid("run", "--engine", "aws", "--data", data, "--out", results, "--quiet") == 0
    asked = {(method, path.partition("/runs/engine-once/")[2]): number
             for (method, path), number in proxy.seen.items()}  # fmt: skip
    assert [asked["GET", f"{rank}.json"] for rank in range(3)] == [1, 1, 1]
    assert asked["GET", "combined_data.json"] == 1
    assert asked["GET", "manifest.json"] <= 3
    engine = json.loads(Storage(results).get("engine.json"))
    assert engine["api_calls"]["s3.GetObject"] == 4


def test_the_table_of_a_run_is_as_billed_by_its_reports(three):
    (run,) = load_runs([three])
    assert (run.received, run.expected, run.is_complete) == (3, 3, True)
    assert run.whole.what == "whole execution"
    assert run.map.what == "map state"
    billed = bill(run, Prices())
    lines = {line.name: line for line in billed.lines}
    gb = sum(r.billed_ms for r in run.reports) / 1e3 * 1769 / 1024
    assert lines["Lambda compute"].usd == pytest.approx(gb * 0.0000166667)
    assert len(run.usage.other_reports) == 2
    assert lines["Lambda requests"].quantity == 5
    # Initialize, Initialized, the map, Summarize, Summarized, Done; and one state a worker.
    assert lines["Step Functions"].quantity == 6 + 3


def test_status_logs_table_and_report_of_a_finished_run(three, tmp_path, capsys):
    assert perseid("status", three) == 0
    assert "complete: 3 of 3 ranks" in capsys.readouterr().out
    assert perseid("logs", three, "--rank", 1) == 0
    said = capsys.readouterr().out
    assert '"rank":1' in said
    assert '"rank":0' not in said
    assert perseid("table", three) == 0
    assert "whole execution" in capsys.readouterr().out
    assert perseid("report", three, "--out", tmp_path / "r.html") == 0
    assert "What this run cost" in (tmp_path / "r.html").read_text()


def test_logs_that_have_expired_are_still_in_the_runs_folder(stack, three, capsys):
    before = Storage(three).get("engine.json")
    group = {"logGroupName": f"/aws/lambda/{stack.outputs['WorkerFunction']}"}
    stack.aws.client("logs").delete_log_group(**group)
    stack.aws.client("logs").create_log_group(**group)  # ministack makes it twice where two begin
    assert perseid("status", three) == 0
    assert "3 ranks in" in capsys.readouterr().out
    assert Storage(three).get("engine.json") == before
    assert perseid("logs", three, "--rank", 2) == 0
    assert "REPORT RequestId" in capsys.readouterr().out


def test_a_busy_control_plane_is_asked_again(ministack, three, monkeypatch, capsys):
    with flaky_proxy(ministack.endpoint, refuse=2) as flaky:
        monkeypatch.setenv("AWS_ENDPOINT_URL", flaky.endpoint)
        assert perseid("status", three) == 0
        assert "complete: 3 of 3 ranks" in capsys.readouterr().out
        assert flaky.refused > 4  # Step Functions, logs, and objects


def test_two_runs_at_once_keep_their_logs_apart(stack, data, capsys):
    """Detached runs on the same functions: each fetches its own invocations only.

    The second one's ranks are short, so its children are EXPRESS and billed as such.
    """
    urls = [f"{stack.bucket}/runs/{name}" for name in ("apart-1", "apart-2")]
    for url, more in zip(urls, ((), ("--timeout", 60)), strict=True):
        words = ("--engine", "aws", "--data", data, "--out", url, "--detach", *more)
        assert perseid("run", *words) == 0
    assert urls[1] in capsys.readouterr().out
    for url in urls:
        assert perseid("status", url, "--wait", "--json") == 0
    engines = [json.loads(Storage(url).get("engine.json")) for url in urls]
    for engine in engines:
        assert sorted(attempt["rank"] for attempt in engine["attempts"]) == [0, 1, 2]
    assert len({a["request_id"] for engine in engines for a in engine["attempts"]}) == 6
    kinds = [engine["executions"][0]["map"]["children"] for engine in engines]
    assert kinds == ["STANDARD", "EXPRESS"]
    assert [engine["express_requests"] for engine in engines] == [0, 3]
    assert engines[0]["transitions"] == engines[1]["transitions"] + 3


def test_a_bad_partition_is_named_and_the_exit_status_says_so(stack, put_survey, capsys):
    data, results = f"{stack.bucket}/engine-bad", f"{stack.bucket}/runs/engine-bad"
    put_survey(data, 2, rows=8)
    good = Storage(data).get("2.pt")
    Storage(data).put("2.pt", good[: len(good) // 2])
    assert perseid("run", "--engine", "aws", "--data", data, "--out", results) == 3
    said = capsys.readouterr()
    assert "incomplete: 2 of 2 ranks, 1 of 2 partitions" in said.out
    assert "2.pt" in said.err
    assert perseid("status", results) == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--data", "{bucket}/absent"), "there is nothing at"),
        (("--data", "/tmp"), "give an s3:// URL"),
        (("--data", "{bucket}/engine-data", "--memory", "512"), "1769 MB, not 512"),
        (("--data", "{bucket}/engine-data", "--stack", "other"), "there is no stack other"),
        (("--data", "{bucket}/engine-data", "--out", "here"), "give an s3:// URL"),
        (("--data", "{bucket}/absent", "--dry-run"), "absent"),
    ],
)
def test_what_cannot_run_is_one_sentence(stack, data, capsys, words, says):
    given = [word.format(bucket=stack.bucket) for word in words]
    out = () if "--out" in given else ("--out", f"{stack.bucket}/runs/refused")
    assert perseid("run", "--engine", "aws", *given, *out, "--quiet") == 2
    error = capsys.readouterr().err.strip()
    assert says in error
    assert len(error.splitlines()) == 1
