"""Script mode: a user's own program runs as the existing executor ran it."""

import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from flaky import flaky_proxy
from scripts import begin_script
from tiny import WEIGHTS, tiny_cutouts, tiny_survey
from waiting import eventually

from perseid.compat.scripts.run_script import run_script
from perseid.compat.scripts.script_folder import MARK, script_folder, script_key
from perseid.errors import (
    BadInputError,
    NotFoundError,
    RunError,
    RunIncompleteError,
    WorkerFailedError,
)
from perseid.pipeline import layout
from perseid.pipeline.initialize import Initialized
from perseid.pipeline.request import RunRequest
from perseid.pipeline.summarize import summarize
from perseid.storage import Storage
from perseid.survey.reader import write_cutouts

SCRIPT = Path(__file__).parents[1] / "support" / "inference_script.py"


@pytest.fixture
def name() -> Iterator[str]:
    """A script folder's name, with a space; what script mode makes of it in /tmp is removed."""
    name = f"Anomaly Detection {uuid.uuid4().hex[:8]}"
    yield name
    shutil.rmtree(Path("/tmp") / name, ignore_errors=True)
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    Path("/tmp", f".perseid-{os.geteuid()}-{digest}.lock").unlink(missing_ok=True)


def local_run(root: Path, name: str, code: str, **more: object) -> RunRequest:
    """A request for a script in a bucket that is a folder, with two partitions to work on."""
    bucket = root / "bucket"
    (bucket / name / "Inference").mkdir(parents=True, exist_ok=True)
    (bucket / name / "Inference" / "inference.py").write_text(code)
    if not (bucket / "data").exists():
        tiny_survey(bucket / "data", rows=20, per_partition=10)
    given = {
        "bucket": "bucket",
        "data_bucket": "bucket",
        "data_prefix": "data",
        "S3_object_name": name,
        "script": f"/tmp/{name}/Inference/inference.py",
        "result_path": "results/1",
        "bucket_root": str(root),
    }
    return RunRequest.parse(given | more)


def writes(root: Path, text: str = '"{}"') -> str:
    """Code of a script that leaves `text` (an expression) as its result."""
    results = root / "bucket" / "results" / "1"
    return (
        "import json, os, pathlib\n"
        f"place = pathlib.Path({str(results)!r}) / (os.environ['RANK'] + '.json')\n"
        f"place.write_text({text})\n"
    )


@pytest.mark.s3
def test_a_script_of_the_existing_kind(s3, name: str, capfd: pytest.CaptureFixture[str]):
    url = s3.bucket()
    bucket = Storage(url)
    bucket.put(f"{name}/Inference/inference.py", SCRIPT.read_bytes())
    bucket.put(f"{name}/Inference/helpers/__init__.py", b"")
    helper = b"def bits_of(tensor):\n    return tensor.nbytes * 8\n"
    bucket.put(f"{name}/Inference/helpers/metrics.py", helper)
    weights = io.BytesIO()
    torch.save(torch.from_numpy(WEIGHTS), weights)
    bucket.put(f"{name}/Fine Tuned/weights.pt", weights.getvalue())
    for number, part in enumerate(tiny_cutouts(20).batches(10), start=1):
        write_cutouts(part, f"{url}/25MB/{number}.pt")
    given = {
        "bucket": url.removeprefix("s3://"),
        "file_limit": "2",
        "batch_size": "4",
        "world_size": "3",
        "object_type": "folder",
        "S3_object_name": name,
        "script": f"/tmp/{name}/Inference/inference.py",
        "result_path": "result-partition-25MB/1GB/1",
        "data_bucket": url.removeprefix("s3://"),
        "data_prefix": "25MB",
    }
    begun = begin_script(RunRequest.parse(given))
    assert "is shared by all script runs" in begun.warnings[0]
    data_map = {"0": "25MB/1.pt", "1": "25MB/2.pt", "2": None}
    assert json.loads(bucket.get("payload.json")) == {**given, "data_map": data_map}
    assert begun.items[1].options.script == {
        "S3_BUCKET": given["bucket"],
        "S3_OBJECT_NAME": name,
        "SCRIPT": given["script"],
        "S3_OBJECT_TYPE": "folder",
        "WORLD_SIZE": "3",
        "RANK": "1",
        "DATA_BUCKET": given["bucket"],
        "DATA_PREFIX": "25MB",
        "DATA_PATH": "25MB/2.pt",
        "RESULT_PATH": given["result_path"],
        "BATCH_SIZE": "4",
    }
    with ThreadPoolExecutor(3) as pool:  # the ranks share the folder
        records = list(pool.map(run_script, begun.items))
    results = bucket.at(given["result_path"])
    summary = summarize(results)
    assert (summary["status"], summary["rows"]["received"]) == ("complete", 20)
    combined = json.loads(results.get(layout.COMBINED))
    assert [record["data_path"] for record in combined] == ["25MB/1.pt", "25MB/2.pt"]
    assert not results.exists(layout.record(2))  # a surplus rank leaves none, as it always was
    assert summary["ranks"]["received"] == 3
    assert summary["workers"]["stage_seconds"]["inference"]["p50"] > 0.1
    assert not [said for said in summary["warnings"] if "float32" in said]
    assert combined[0]["total_cpu_memory (MB)"] == 12.5  # the script's own word
    assert [record["num_batches"] for record in combined] == [3, 3]
    assert all(record["run_id"] == begun.manifest.run_id for record in combined)
    assert records[0].rows == 10
    assert records[0].stages["inference"] > 0.1
    assert records[0].peak_memory_mb > 30
    assert "rank 2 of 3 works on None" in capfd.readouterr().out


def test_the_script_sees_its_folder_and_its_own_temporary_folder(tmp_path: Path, name: str):
    code = writes(
        tmp_path,
        "json.dumps({'cwd': os.getcwd(), 'file': __file__, 'tmp': os.environ['TMPDIR'],"
        " 'made': os.path.isdir(os.environ['TMPDIR'])})",
    )
    items = begin_script(local_run(tmp_path, name, code)).items
    for item in items:
        run_script(item)
    told = [json.loads((tmp_path / f"bucket/results/1/{r}.json").read_text()) for r in (0, 1)]
    for record in told:
        assert record["cwd"] == f"/tmp/{name}/Inference"
        assert record["file"] == f"/tmp/{name}/Inference/inference.py"
        assert record["made"]
    assert told[0]["tmp"] != told[1]["tmp"]
    assert not Path(told[0]["tmp"]).exists()


@pytest.mark.parametrize("given", ["data/1.pt", ["data/1.pt"], {"0": "data/2.pt"}, "elsewhere"])
def test_each_rank_is_told_its_own_share_whatever_the_request_says(
    tmp_path: Path, name: str, given: object
):
    """As scripts of the message-passing variant read it: from DATA_PATH, not from the map."""
    code = writes(tmp_path, "json.dumps({'read': os.environ['DATA_PATH']})")
    begun = begin_script(local_run(tmp_path, name, code, data_path=given))
    assert any("`data_path` is kept for scripts" in said for said in begun.warnings)
    for item in begun.items:
        run_script(item)
    told = [json.loads((tmp_path / f"bucket/results/1/{r}.json").read_text()) for r in (0, 1)]
    assert [record["read"] for record in told] == ["data/1.pt", "data/2.pt"]
    payload = json.loads((tmp_path / "bucket/payload.json").read_text())
    assert payload["data_path"] == given


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("import sys\nprint('alas')\nsys.exit(7)", "ended with status 7; its last words: alas"),
        ("raise ValueError('no good')", "ended with status 1; .*ValueError: no good"),
        ("import os\nos.kill(os.getpid(), 9)", "ended by signal 9; its last words: nothing"),
        ("pass", r"left no .*0\.json"),
        ("import time\ntime.sleep(60)", "took more than 1 s and was stopped"),
        ("RESULT = 'nonsense {'", "is not JSON"),
        ("RESULT = '[1]'", "is not a JSON object"),
    ],
)
def test_a_script_that_fails(tmp_path: Path, name: str, code: str, sentence: str):
    if code.startswith("RESULT"):
        code = writes(tmp_path, code.removeprefix("RESULT = "))
    begun = begin_script(local_run(tmp_path, name, code, timeout=1 if "sleep" in code else 60))
    with pytest.raises(WorkerFailedError, match=f"rank 0: .*{sentence}"):
        run_script(begun.items[0])
    with pytest.raises(RunIncompleteError, match="ranks 0, 1 of 2"):
        summarize(Storage(begun.manifest.results_url))


def test_the_result_of_a_former_attempt_does_not_count(tmp_path: Path, name: str):
    flag = tmp_path / "second"
    code = f"import os, sys\nif os.path.exists({str(flag)!r}):\n    sys.exit(0)\n" + writes(
        tmp_path
    )
    begun = begin_script(local_run(tmp_path, name, code + "sys.exit(1)\n"))
    with pytest.raises(WorkerFailedError, match="status 1"):
        run_script(begun.items[0])
    flag.touch()
    with pytest.raises(WorkerFailedError, match="left no"):
        run_script(begun.items[0], attempt=2)


def test_a_script_that_is_not_there(tmp_path: Path, name: str):
    request = local_run(tmp_path, name, "pass", script=f"/tmp/{name}/other.py")
    with pytest.raises(NotFoundError, match=r"script .*other\.py' is not there"):
        begin_script(request)
    assert not (tmp_path / "bucket" / "results").exists()
    assert not (tmp_path / "bucket" / "payload.json").exists()


@pytest.mark.parametrize(
    "script", ["/etc/passwd", "../inference.py", "/tmp/{}/../x.py", "/tmp/{}", "Inference/../../x"]
)
def test_a_script_out_of_its_folder(tmp_path: Path, name: str, script: str):
    request = local_run(tmp_path, name, "pass", script=script.format(name))
    with pytest.raises(BadInputError, match="not inside its folder"):
        begin_script(request)


def test_a_script_named_relative_to_its_folder():
    assert script_key("My Code", "Inference/run.py") == "Inference/run.py"
    assert script_key("My Code", "/tmp/My Code/Inference/run.py") == "Inference/run.py"


def test_links_in_the_folder_are_refused(tmp_path: Path, name: str):
    begun = begin_script(local_run(tmp_path, name, writes(tmp_path)))
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    (tmp_path / "bucket" / name / "link.txt").symlink_to(secret)
    with pytest.raises(BadInputError, match=r"holds a link, .*link\.txt"):
        run_script(begun.items[0])
    assert not Path("/tmp", name).exists()


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path, name: str):
    begun = begin_script(local_run(tmp_path, name, writes(tmp_path)))
    (tmp_path / "bucket" / name).rename(tmp_path / "elsewhere")
    (tmp_path / "bucket" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInputError, match="holds a link"):
        run_script(begun.items[0])


@pytest.mark.s3
@pytest.mark.parametrize("key", ["../evil.py", "a/../../evil.py", "..", "a/./b"])
def test_keys_that_lead_out_of_the_folder_are_refused(
    s3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str
):
    """Our S3 server takes no such key, so a proxy puts it into the listing."""
    url = s3.bucket()
    bucket = Storage(url)
    bucket.put("code/run.py", b"pass")
    bucket.put("code/KEY", b"pass")
    with flaky_proxy(s3.endpoint, rewrite=(b"code/KEY", f"code/{key}".encode())) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with (
            pytest.raises(BadInputError, match="leads out of it"),
            script_folder(Storage(url), "code", root=tmp_path / "tmp"),
        ):
            pass
    assert not list(tmp_path.rglob("*.py"))


@pytest.mark.s3
def test_an_encoded_slash_is_no_slash(s3, tmp_path: Path):
    url = s3.bucket()
    Storage(url).put("code/..%2fevil.py", b"pass")
    with script_folder(Storage(url), "code", root=tmp_path / "tmp") as folder:
        assert sorted(p.name for p in folder.copy.iterdir()) == ["..%2fevil.py", MARK]
    assert [path.name for path in tmp_path.rglob("*evil.py")] == ["..%2fevil.py"]


def test_somebodys_own_folder_is_never_touched(tmp_path: Path, name: str):
    begun = begin_script(local_run(tmp_path, name, writes(tmp_path)))
    own = Path("/tmp", name)
    own.mkdir()
    (own / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="was not made by perseid"):
        run_script(begun.items[0])
    assert [path.name for path in own.iterdir()] == ["thesis.tex"]


def test_a_link_in_the_place_of_the_folder(tmp_path: Path, name: str):
    begun = begin_script(local_run(tmp_path, name, writes(tmp_path)))
    (tmp_path / "trap").mkdir()
    Path("/tmp", name).symlink_to(tmp_path / "trap")
    try:
        with pytest.raises(RunError, match="was not made by perseid"):
            run_script(begun.items[0])
        assert not list((tmp_path / "trap").iterdir())
    finally:
        Path("/tmp", name).unlink()


def version(root: Path, text: str) -> Storage:
    (root / "bucket" / "code").mkdir(parents=True, exist_ok=True)
    (root / "bucket" / "code" / "v.txt").write_text(text)
    return Storage(root / "bucket")


def test_two_versions_of_a_folder_wait_for_each_other(tmp_path: Path):
    root = tmp_path / "tmp"
    one, two = version(tmp_path / "1", "one"), version(tmp_path / "2", "twos")
    seen: list[str] = []

    def second() -> None:
        with script_folder(two, "code", root=root, seconds=30) as folder:
            seen.append((folder.copy / "v.txt").read_text())

    with script_folder(one, "code", root=root) as folder:
        with script_folder(one, "code", root=root) as again:  # the same version is shared
            assert again == folder
        with (
            pytest.raises(RunError, match="in use by scripts of another run"),
            script_folder(two, "code", root=root, seconds=0.2),
        ):
            pass
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        assert not seen
        assert (folder.copy / "v.txt").read_text() == "one"
    thread.join(30)
    assert seen == ["twos"]


def test_a_copy_that_broke_off_is_made_again(tmp_path: Path):
    root, one = tmp_path / "tmp", version(tmp_path / "1", "one")
    (root / "code").mkdir(parents=True)
    (root / "code" / MARK).write_text("half of it")
    with script_folder(one, "code", root=root) as folder:
        assert (folder.copy / "v.txt").read_text() == "one"
    assert sorted(p.name for p in folder.copy.iterdir()) == sorted([MARK, "v.txt"])


def test_what_a_killed_copy_left_is_removed_by_the_next(tmp_path: Path):
    root, many = tmp_path / "tmp", tmp_path / "bucket" / "code"
    many.mkdir(parents=True)
    for number in range(3000):
        (many / f"{number}.txt").write_text("one of many")
    code = (
        "import sys; from pathlib import Path; from perseid.storage import Storage\n"
        "from perseid.compat.scripts.script_folder import script_folder\n"
        "with script_folder(Storage(sys.argv[1]), 'code', root=Path(sys.argv[2])): pass"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "bucket"), str(root)])
    eventually(lambda: [path for path in root.glob(".perseid-*") if path.is_dir()])
    child.kill()
    child.wait(10)
    assert [path for path in root.glob(".perseid-*") if path.is_dir()]
    for number in range(10, 3000):
        (many / f"{number}.txt").unlink()
    with script_folder(Storage(tmp_path / "bucket"), "code", root=root) as folder:
        assert len(list(folder.copy.iterdir())) == 11
    assert not [path for path in root.glob(".perseid-*") if path.is_dir()]


def test_the_lock_is_free_afterwards(tmp_path: Path):
    root, one = tmp_path / "tmp", version(tmp_path / "1", "one")
    with pytest.raises(KeyError), script_folder(one, "code", root=root):
        raise KeyError
    (lock,) = root.glob(".perseid-*.lock")
    with open(lock) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_an_empty_folder_has_a_sentence(tmp_path: Path):
    with (
        pytest.raises(NotFoundError, match="there is no script folder"),
        script_folder(Storage(tmp_path / "bucket"), "code", root=tmp_path),
    ):
        pass


def test_a_script_ends_with_its_worker(tmp_path: Path, name: str):
    mark = tmp_path / "pid"
    code = (
        "import os, pathlib, time\n"
        f"pathlib.Path({str(mark)!r}).write_text(str(os.getpid()))\n"
        "time.sleep(120)\n"
    )
    item = begin_script(local_run(tmp_path, name, code)).items[0]
    (tmp_path / "item.json").write_text(json.dumps(item.to_json()))
    worker = (
        "import pathlib, sys\n"
        "from perseid.pipeline.items import WorkItem\n"
        "from perseid.compat.scripts.run_script import run_script\n"
        "run_script(WorkItem.from_json(pathlib.Path(sys.argv[1]).read_text()))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", worker, str(tmp_path / "item.json")])
    try:
        eventually(lambda: mark.exists() and mark.read_text())
        pid = int(mark.read_text())
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        eventually(lambda: not alive(pid))
    finally:
        process.kill()
        process.wait(10)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_the_process_environment_stays_as_it_was(tmp_path: Path, name: str):
    before = dict(os.environ)
    begun: Initialized = begin_script(local_run(tmp_path, name, writes(tmp_path)))
    for item in begun.items:
        run_script(item)
    assert dict(os.environ) == before
    assert summarize(Storage(begun.manifest.results_url))["status"] == "complete"
