"""``perseid run`` and ``perseid resume`` as a user meets them: words, exit statuses, files."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from engine import FAULTY_RUN, PERSEID, Lab
from tiny import tiny_model, tiny_survey

RUN = ("run", "--data", "survey", "--model", "tiny.onnx")


@pytest.fixture
def lab(tmp_path, monkeypatch):
    lab = Lab(tmp_path, monkeypatch)
    lab.survey()
    yield lab
    left = lab.none_left()
    lab.clean()
    assert left == []


def test_a_run_with_defaults_is_pleasant(lab):
    status, out, err = lab.call(*RUN)
    assert status == 0
    (place,) = (lab.folder / "runs").iterdir()
    assert place.name.startswith("survey-2")
    lines = out.strip().splitlines()
    assert lines[0].startswith("complete: 4 of 4 ranks, 4 of 4 partitions, 20 objects, ")
    assert any(line.startswith("redshift   MAE 0.0") for line in lines)
    assert any(line.startswith("anomalies  ROC AUC") for line in lines)
    assert f"catalogue  {place / 'catalogue.parquet'}" in lines
    assert lines[-1] == f"next       perseid report {place}"
    assert "4/4 ranks done · 20 rows" in err
    assert "\x1b" not in out + err


def test_json_is_the_summary_and_nothing_else(lab):
    status, out, err = lab.call(*RUN, "--out", "r", "--json")
    assert status == 0
    assert json.loads(out) == lab.json("summary.json", "r")
    assert err == ""


def test_the_summary_says_what_the_run_would_have_cost(lab):
    assert lab.call(*RUN, "--out", "r", "--quiet") == (0, "", "")
    bill = lab.json("summary.json", "r")["cost"]
    assert bill["total_usd"] == pytest.approx(sum(line["usd"] for line in bill["lines"]))
    attempts = lab.json("engine.json", "r")["attempts"]
    gb_seconds = sum(a["billed_ms"] / 1e3 * a["memory_mb"] / 1024 for a in attempts)
    compute = next(line for line in bill["lines"] if line["name"] == "Lambda compute")
    assert compute["usd"] == pytest.approx(gb_seconds * 0.0000166667, rel=1e-6)
    status, out, _ = lab.call("table", "r", "--format", "csv")
    assert status == 0
    assert f"{bill['total_usd']:.4g}"[:6] in out


def test_quiet_says_nothing_of_a_good_run(lab):
    assert lab.call(*RUN, "--out", "r", "--quiet") == (0, "", "")


def test_a_request_file_runs_and_options_override_it(lab):
    request = {"data": "survey", "model": "tiny.onnx", "world_size": "4", "batch_size": 16,
               "results": "mine", "colour": "blue"}  # fmt: skip
    (lab.folder / "request.json").write_text(json.dumps(request))
    status, out, err = lab.call("run", "request.json", "--world-size", "2", "--batch-size", "7")
    assert status == 0
    assert "complete: 2 of 2 ranks" in out
    assert "the key 'colour' is not known and is ignored" in err
    records = lab.json("combined_data.json", "mine")
    assert {record["batch_size"] for record in records} == {7}
    assert lab.json("manifest.json", "mine")["request"]["colour"] == "blue"


def test_a_dry_run_prints_the_plan_and_writes_nothing(lab):
    before = sorted(lab.folder.iterdir())
    status, out, _ = lab.call(*RUN, "--out", "r", "--dry-run", "--world-size", "3", "--rate", "10")
    assert status == 0
    assert sorted(lab.folder.iterdir()) == before
    assert "4 partitions" in out
    assert "rank 0: 1.pt … 2.pt (2)" in out
    assert "10 objects/s per worker (as given)" in out
    assert "USD on AWS" in out
    assert "accuracy" in out
    status, out, _ = lab.call(*RUN, "--dry-run", "--json")
    plan = json.loads(out)
    assert plan["assignment"] == [1, 1, 1, 1]
    assert plan["cost_usd"] == pytest.approx(sum(plan["cost_lines"].values()))


BAD = [
    ((), "nothing to run: give a request file, or --data with a folder of partitions"),
    (("--data", "nowhere"), "check the path"),
    (("--data", "survey", "--world-size", "0"), "--world-size is 0: give a whole number"),
    (("--data", "survey", "--memory", "12"), "--memory is 12: give MB per worker"),
    (("--data", "survey", "--timeout", "-1"), "--timeout: '-1' is not a time"),
    (("no.json",), "the request no.json cannot be read: No such file or directory"),
    (("list.json",), "the request list.json must be a JSON object, not a list"),
    (("--data", "survey", "--endpoint", "localhost"), "which is not a URL"),
    (("--data", "ftp://host/x"), "use a path, file://, s3:// or memory://"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD)
def test_bad_input_is_one_sentence_and_status_2(lab, arguments, said):
    (lab.folder / "list.json").write_text("[1]")
    status, out, err = lab.call("run", *arguments, "--out", "r")
    last = err.strip().splitlines()[-1]
    assert (status, out) == (2, "")
    assert last.startswith("perseid: ")
    assert said in last
    assert "Traceback" not in err
    assert not (lab.folder / "r").exists()


def test_resume_says_where_there_is_no_run(lab):
    status, _, err = lab.call("resume", "nowhere")
    assert status == 2
    assert f"there is no run at {lab.folder / 'nowhere'}" in err


def test_a_rank_beyond_its_limits_makes_the_run_incomplete(lab):
    lab.faults({2: {1: "sleep:600", 2: "sleep:600"}})
    status, out, err = lab.call(*RUN, "--out", "r", "--timeout", "1", "--retries", "1",
                                command=FAULTY_RUN)  # fmt: skip
    assert status == 3
    assert "incomplete: 3 of 4 ranks, 3 of 4 partitions, 15 objects" in out
    assert "missing    rank 2 (3.pt): it was not done within 1 s" in out
    assert out.strip().endswith(f"perseid resume {lab.folder / 'r'}")
    assert "rank 2, attempt 1: it was not done within 1 s; it is tried again" in err
    assert "rank 2, attempt 2: it was not done within 1 s; it has failed" in err
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"perseid: the run at {lab.folder / 'r'} is incomplete: ranks 2 of 4")
    status, out, _ = lab.call("resume", "r", "--timeout", "60", command=FAULTY_RUN)
    assert status == 0
    assert "complete: 4 of 4 ranks" in out
    attempts = {r["rank"]: r["attempt"] for r in lab.json("combined_data.json", "r")}
    assert attempts == {0: 1, 1: 1, 2: 3, 3: 1}


SCRIPT = """
import json, os, pathlib, time
rank = int(os.environ["RANK"])
root = pathlib.Path(os.environ["LAB_BUCKETS"])
payload = json.loads((root / os.environ["S3_BUCKET"] / "payload.json").read_text())
keys = payload["data_map"][str(rank)]
print("rank", rank, "reads", keys, flush=True)
if os.environ.get("LAB_SLEEP"):
    (root / f"slow-{rank}").write_text(str(os.getpid()))
    time.sleep(600)
out = root / os.environ["S3_BUCKET"] / os.environ["RESULT_PATH"]
out.mkdir(parents=True, exist_ok=True)
(out / f"{rank}.json").write_text(json.dumps({"total_cpu_time (seconds)": 0.5, "mine": keys}))
"""


@pytest.fixture
def buckets(lab, monkeypatch):
    root = lab.folder / "buckets"
    name = f"perseid test {lab.mark[:8]}"
    (root / "b" / name).mkdir(parents=True)
    (root / "b" / name / "inference.py").write_text(SCRIPT)
    (lab.folder / "survey").rename(root / "b" / "25MB")
    payload = {
        "bucket": "b", "file_limit": "3", "batch_size": 512, "object_type": "folder",
        "S3_object_name": name, "script": f"/tmp/{name}/inference.py",
        "result_path": "result-partition-25MB/1GB/1", "data_bucket": "b", "data_prefix": "25MB",
    }  # fmt: skip
    (lab.folder / "payload.json").write_text(json.dumps(payload))
    monkeypatch.setenv("LAB_BUCKETS", str(root))
    yield root
    import shutil

    shutil.rmtree(Path("/tmp") / name, ignore_errors=True)


SCRIPT_RUN = ("run", "payload.json", "--bucket-root", "buckets")


def test_a_payload_with_a_script_runs_as_it_is(lab, buckets):
    status, out, err = lab.call(*SCRIPT_RUN)
    assert status == 0, err
    assert "complete: 3 of 3 ranks, 3 of 3 partitions" in out
    place = buckets / "b" / "result-partition-25MB" / "1GB" / "1"
    combined = json.loads((place / "combined_data.json").read_text())
    assert [record["mine"] for record in combined] == ["25MB/1.pt", "25MB/2.pt", "25MB/3.pt"]
    assert combined[0]["total_cpu_time (seconds)"] == 0.5
    assert "rank 1 reads 25MB/2.pt" in (place / "logs" / "1.log").read_text()


def test_ctrl_c_ends_scripts_too_and_resume_goes_on(lab, buckets):
    process = lab.begin(PERSEID, *SCRIPT_RUN, "--workers", "2", LAB_SLEEP="1")
    lab.wait_for(lambda: len(list(buckets.glob("slow-*"))) == 2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert lab.none_left() == []
    place = buckets / "b" / "result-partition-25MB" / "1GB" / "1"
    status, out, err = lab.call("resume", str(place))
    assert status == 0, err
    assert "complete: 3 of 3 ranks" in out


def test_a_killed_driver_leaves_no_script_and_no_temporary_files(lab, buckets, monkeypatch):
    (lab.folder / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(lab.folder / "tmp"))
    process = lab.begin(PERSEID, *SCRIPT_RUN, "--workers", "2", LAB_SLEEP="1")
    lab.wait_for(lambda: len(list(buckets.glob("slow-*"))) == 2)
    process.kill()
    process.communicate(timeout=20)
    assert lab.none_left() == []
    lab.wait_for(lambda: not list((lab.folder / "tmp").iterdir()))


@pytest.mark.s3
def test_an_existing_payload_on_an_s3_server(lab, s3):
    """A payload in exactly the existing form, with our runtime, against a server at an endpoint."""
    from perseid.storage import Storage

    bucket = s3.bucket()
    store = Storage(bucket)
    tiny_model(lab.folder / "tiny.onnx")
    tiny_survey(lab.folder / "more", 33, 3)
    for path in (lab.folder / "more").iterdir():
        store.put(f"100MB/{path.name}", path)
    name = bucket.removeprefix("s3://")
    payload = {
        "bucket": name, "file_limit": "11", "batch_size": 512, "object_type": "folder",
        "S3_object_name": "Anomaly Detection",
        "script": "/tmp/Anomaly Detection/Inference/inference.py",
        "result_path": "result-partition-100MB/1GB/1", "data_bucket": name, "data_prefix": "100MB",
    }  # fmt: skip
    (lab.folder / "payload.json").write_text(json.dumps(payload))
    status, out, err = lab.call("run", "payload.json", "--model", "tiny.onnx",
                                "--endpoint", s3.endpoint, AWS_ENDPOINT_URL="")  # fmt: skip
    assert status == 0, err
    assert "complete: 11 of 11 ranks, 11 of 11 partitions, 33 objects" in out
    results = store.at("result-partition-100MB/1GB/1")
    combined = json.loads(results.get("combined_data.json"))
    assert [record["data_path"] for record in combined] == [f"100MB/{n}.pt" for n in range(1, 12)]
    for key in ("total_cpu_time (seconds)", "total_cpu_memory (MB)", "throughput_bps",
                "execution_time (seconds/batch)", "sample_persec", "num_batches"):  # fmt: skip
        assert all(key in record for record in combined)
    assert results.get("logs/10.log").decode().count("REPORT RequestId:") == 1
