"""The worker's zip under Lambda's own bootstrap, alone: awslambdaric sees nothing else of ours."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import ministack as doubles
import pytest
from double import PYTHON
from lambda_runtime import environment
from scripts import begin_script
from tiny import classifier_signature, tiny_classifier

from perseid.aws.deploy.packaging import MIB, build
from perseid.aws.deploy.wheels import Target
from perseid.aws.handlers import worker as handler
from perseid.pipeline.initialize import initialize
from perseid.pipeline.request import RunRequest
from perseid.storage import Storage

WORKER = "perseid.aws.handlers.worker.handler"


@pytest.fixture
def items(put_survey, tmp_path):
    """Two ranks' items in folders of this machine."""
    put_survey(tmp_path / "survey", 2, rows=20)
    given = {"data": str(tmp_path / "survey"), "results": str(tmp_path / "run")}
    return initialize(RunRequest.parse(given)).items


@pytest.fixture
def worker(unpacked, tmp_path):
    folder = tmp_path / "lambda"
    folder.mkdir()
    with environment(doubles.python(), unpacked["worker"], WORKER, folder) as running:
        yield running


@pytest.mark.parametrize(
    ("package", "handler"),
    [("worker", "worker"), ("control", "initialize"), ("control", "summarize"), ("tools", "ping"),
     ("tools", "dns")],
)  # fmt: skip
def test_every_function_answers_that_it_starts(unpacked, tmp_path, package, handler):
    """What `perseid aws doctor` asks: with its own zip alone, all its libraries load."""
    name = f"perseid.aws.handlers.{handler}.handler"
    with environment(doubles.python(), unpacked[package], name, tmp_path) as running:
        answer = running.invoke({"perseid_check": True})
    assert (answer.kind, answer.body["ready"]) == ("response", True)


def test_a_library_that_does_not_load_is_told(unpacked, tmp_path):
    shutil.copytree(unpacked["worker"], tmp_path / "code")
    shutil.rmtree(tmp_path / "code/onnxruntime/__pycache__")
    (tmp_path / "code/onnxruntime/__init__.py").write_text("raise ImportError('GLIBC_2.27')")
    with environment(doubles.python(), tmp_path / "code", WORKER, tmp_path) as running:
        answer = running.invoke({"perseid_check": True})
    assert answer.kind != "response"
    assert "GLIBC_2.27" in str(answer.body)


def lines(worker):
    """Our lines of the log."""
    marked = [line for line in worker.log.read_text().splitlines() if line.startswith("PERSEID ")]
    return [json.loads(line.partition(" ")[2]) for line in marked]


def test_ranks_cold_and_warm_and_again(worker, items):
    first = worker.invoke({"item": items[0].to_json(), "attempt_before": 0})
    assert (first.kind, first.body) == ("response", {"rank": 0, "rows": 20, "attempt": 1})
    second = worker.invoke({"item": items[1].to_json(), "attempt_before": 0})
    assert second.body["rank"] == 1
    storage = Storage(items[0].results_url)
    records = [json.loads(storage.get(f"{rank}.json")) for rank in (0, 1)]
    assert [record["cold_start"] for record in records] == [True, False]
    assert records[1]["stages"]["init"] < records[0]["stages"]["init"]
    kept = {key: storage.get(f"ranks/0/{key}") for key in ("predictions.parquet", "features.npz")}
    again = worker.invoke({"item": items[0].to_json(), "attempt_before": 2})  # a duplicate
    assert again.body["attempt"] == 3
    assert {key: storage.get(f"ranks/0/{key}") for key in kept} == kept
    assert json.loads(storage.get("0.json"))["attempt"] == 3
    said = lines(worker)
    assert [(line["event"], line["rank"]) for line in said] == [
        ("start", 0), ("done", 0), ("start", 1), ("done", 1), ("start", 0), ("done", 0),
    ]  # fmt: skip
    assert {line["run"] for line in said} == {items[0].run_id}
    assert len({line["request"] for line in said if line["event"] == "start"}) == 3


def test_errors_bear_the_names_that_the_state_machine_matches(worker, items):
    absent = replace(items[0], data_url="file:///absent/survey")
    answer = worker.invoke({"item": absent.to_json(), "attempt_before": 0})
    assert answer.kind == "response"  # partitions that cannot be read are named in the record
    assert len(json.loads(Storage(items[0].results_url).get("0.json"))["failed_partitions"]) == 1
    Path(items[1].results_url.removeprefix("file://"), "garbage.onnx").write_bytes(b"no model")
    broken = replace(items[0], model_url=f"{items[0].results_url}/garbage.onnx")
    answer = worker.invoke({"item": broken.to_json(), "attempt_before": 0})
    assert (answer.kind, answer.error_type) == ("error", "BadModelError")
    assert lines(worker)[-1]["error"] == "BadModelError"
    answer = worker.invoke({"item": {"rank": 0}})
    assert answer.error_type == "BadInputError"
    fine = worker.invoke({"item": items[0].to_json(), "attempt_before": 0})
    assert fine.kind == "response"  # the environment goes on


def script_items(tmp_path, put_survey, code):
    """Items of a run in script mode, with folders for buckets."""
    (tmp_path / "bucket/my script").mkdir(parents=True)
    (tmp_path / "bucket/my script/go.py").write_text(code)
    put_survey(tmp_path / "bucket/survey", 1)
    given = {
        "bucket": "bucket", "data_bucket": "bucket", "data_prefix": "survey", "script": "go.py",
        "S3_object_name": "my script", "result_path": "out", "bucket_root": str(tmp_path),
    }  # fmt: skip
    return begin_script(RunRequest.parse(given)).items


def test_a_function_that_is_killed_ends_without_an_answer(worker, put_survey, tmp_path):
    code = (
        "import os, signal; os.kill(os.getppid(), signal.SIGKILL)"  # as the kernel, out of memory
    )
    [item] = script_items(tmp_path, put_survey, code)
    answer = worker.invoke({"item": item.to_json(), "attempt_before": 0})
    assert (answer.kind, answer.body) == ("ended", -9)


def test_a_script_is_stopped_before_the_function_ends(worker, put_survey, tmp_path):
    [item] = script_items(tmp_path, put_survey, "import time; print('busy'); time.sleep(60)")
    answer = worker.invoke({"item": item.to_json(), "attempt_before": 0}, seconds=4)
    assert answer.error_type == "WorkerFailedError"
    assert "took more than" in answer.body["errorMessage"]
    assert "busy" in worker.log.read_text()


def test_a_script_sees_the_packages_of_the_zip(worker, put_survey, tmp_path):
    code = (
        "import json, os, fmi\nimport numpy as np\nimport numpy.random, numpy.ma, numpy.fft\n"
        "fmi.Communicator, fmi.types(fmi.datatypes.int)\n"
        "value = {'num_batches': 1, 'numpy': np.__version__}\n"
        f"out = r'{tmp_path}/bucket/out/' + os.environ['RANK'] + '.json'\n"
        "open(out, 'w').write(json.dumps(value))"
    )
    [item] = script_items(tmp_path, put_survey, code)
    answer = worker.invoke({"item": item.to_json(), "attempt_before": 0})
    assert answer.kind == "response", answer
    record = json.loads((tmp_path / "bucket/out/0.json").read_text())
    assert record["numpy"] == "2.4.6"
    assert record["run_id"] == item.run_id


IMPORT = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
began = time.perf_counter()
import perseid.aws.handlers.worker
seconds = time.perf_counter() - began
from perseid.model.runtime import ModelRuntime
print(json.dumps({"seconds": seconds, "modules": sorted({m.split(".")[0] for m in sys.modules})}))
"""


def imported(python, folder):
    done = subprocess.run(
        [python, "-I", "-S", "-c", IMPORT, folder], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_zip_is_small_alone_and_holds_no_more_than_it_needs(packages, unpacked):
    said = imported(sys.executable, unpacked["worker"])
    assert not {"pydantic", "rich", "boto3", "torch", "pyarrow", "engines"} & set(said["modules"])
    package = packages["worker"]
    print(f"worker.zip: {package.zipped / MIB:.1f} MiB, {package.unzipped / MIB:.1f} MiB unzipped, "
          f"imported in {said['seconds']:.3f} s")  # fmt: skip
    assert package.unzipped < 130 * MIB
    assert package.zipped < 50 * MIB
    assert packages["tools"].zipped < MIB
    assert not any("pydantic" in name or "boto" in name for name in package.entries)
    assert not any(name.startswith("perseid/cli") for name in package.entries)


@pytest.mark.slow
def test_the_same_input_gives_the_same_zip(packages, tmp_path):
    one = build(tmp_path / "one", Target(), interpreter=PYTHON, compression=1)
    again = build(tmp_path / "again", Target(), interpreter=PYTHON, compression=9)
    for name in packages:
        assert again[name].digest == one[name].digest
        assert again[name].entries == one[name].entries
    with zipfile.ZipFile(again["tools"].path) as archive:
        infos = archive.infolist()
    assert {info.date_time for info in infos} == {(1980, 1, 1, 0, 0, 0)}
    assert [info.filename for info in infos if info.filename.endswith(".py")] == sorted(
        info.filename for info in infos if info.filename.endswith(".py")
    )


def interpreter(version):
    found = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))
    return found[0] if found else None


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_the_zip_for_lambdas_python(version, tmp_path):
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    package = build(tmp_path / "zips", Target(python=version), compression=1)["worker"]
    with zipfile.ZipFile(package.path) as archive:
        archive.extractall(tmp_path / "code")
    said = imported(python, tmp_path / "code")
    print(f"Python {version}: {package.unzipped / MIB:.1f} MiB, {said['seconds']:.3f} s to import")


@pytest.mark.slow
def test_the_zip_for_arm64_holds_arm64(tmp_path):
    package = build(tmp_path, Target("arm64", "3.12"), compression=1)["worker"]
    with zipfile.ZipFile(package.path) as archive:
        libraries = [n for n in archive.namelist() if ".so" in n]
        machines = {archive.read(name)[18:20] for name in libraries}
    assert len(libraries) > 10
    assert machines == {(183).to_bytes(2, "little")}  # EM_AARCH64
    print(f"arm64: {package.zipped / MIB:.1f} MiB, {package.unzipped / MIB:.1f} MiB unzipped")


def test_a_model_that_is_kept_is_not_used_under_another_signature(tmp_path):
    """Lambda keeps a process for other runs, which may say otherwise what a model gives."""
    model = tiny_classifier(tmp_path / "c.onnx", metadata=False)
    for classes in (("a", "b", "c"), ("x", "y", "z")):
        signature = classifier_signature(classes=classes).to_json()
        runtime = handler._runtime(str(model), "float32", 512, 1, signature, "")
        assert runtime.signature.outputs[0].classes == classes
