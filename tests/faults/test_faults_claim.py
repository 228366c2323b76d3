"""Whose a place is: many want it at once, some want to replace what is there, links lie in wait."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_survey

import perseid
from perseid.cli import main
from perseid.errors import NotFoundError, RunError, StorageError
from perseid.pipeline import layout
from perseid.pipeline.claim import FormerRun, claim, remove
from perseid.pipeline.initialize import initialize
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.request import RunRequest
from perseid.storage import Storage

AT_ONCE = 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a tiny survey and a tiny model."""
    tiny_survey(tmp_path / "data", rows=20, per_partition=10)
    tiny_model(tmp_path / "m.onnx")
    return tmp_path


@pytest.fixture(params=["disk", "memory", "s3"])
def place(request, folder: Path) -> str:
    """A fresh place for results."""
    if request.param == "disk":
        return str(folder / "run")
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}/run"
    return f"{request.getfixturevalue('s3').bucket()}/run"


def request_for(folder: Path, place: str, **more: object) -> RunRequest:
    keys = {"data": str(folder / "data"), "model": str(folder / "m.onnx"), "results": place}
    return RunRequest.parse({**keys, **more})


def at_once(call: Callable[[Callable[[], object]], str]) -> list[str]:
    """What several threads' calls gave; each is given what to call when it is about to claim."""
    barrier, results = threading.Barrier(AT_ONCE), []

    def one() -> None:
        try:
            results.append(call(lambda: barrier.wait(60)))
        except RunError as error:
            results.append(f"refused: {error}")

    threads = [threading.Thread(target=one) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return results


def winner(results: list[str]) -> str:
    assert len(results) == AT_ONCE
    (won,) = [text for text in results if not text.startswith("refused")]
    return won


def begin(folder: Path, place: str, ready: Callable[[], object], *, replace: bool) -> str:
    def check(manifest: Manifest) -> None:
        ready()

    made = initialize(request_for(folder, place), replace=replace, check=check)
    return made.manifest.run_id


def test_of_many_that_begin_at_once_one_gets_the_place(folder: Path, place: str):
    """All have looked, and found it free, before the first of them writes."""
    for number in range(5):
        here = f"{place}{number}"
        results = at_once(lambda ready, at=here: begin(folder, at, ready, replace=False))
        assert Manifest.load(Storage(here)).run_id == winner(results)


def test_of_many_that_replace_at_once_one_gets_the_place(folder: Path, place: str):
    """All have seen the same former run before the first of them claims its place."""
    storage = Storage(place)
    for _ in range(5):
        initialize(request_for(folder, place), replace=storage.exists(layout.MANIFEST))
        storage.put("0.json", b"former")
        results = at_once(lambda ready: begin(folder, place, ready, replace=True))
        assert Manifest.load(storage).run_id == winner(results)
        assert not storage.exists("0.json")
        losers = [text for text in results if text.startswith("refused")]
        assert all("was taken by run" in text for text in losers)


def test_a_claim_whose_answer_was_lost_is_ours(folder: Path, place: str):
    """The store wrote the manifest, the answer did not come, and the client asked again."""
    storage = Storage(place)
    initialize(request_for(folder, place))
    manifest = Manifest.load(storage)
    claim(storage, manifest, FormerRun(None, None))
    assert Manifest.load(storage) == manifest


def run(folder: Path, *words: str, place: str = "run") -> subprocess.Popen[str]:
    arguments = ["run", "--data", "data", "--model", "m.onnx", "--out", place, "--quiet"]
    return subprocess.Popen(
        [sys.executable, "-m", "perseid", *arguments, "--workers", "1", *words],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("tries", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_processes_that_replace_at_once_leave_a_whole_run(folder: Path, tries: int):
    """Whoever wins, one new run is whole; the others are told and have touched nothing."""
    assert main(["run", "--data", str(folder / "data"), "--model", str(folder / "m.onnx"), "--out",
                 str(folder / "run"), "--quiet"]) == 0  # fmt: skip
    for _ in range(tries):
        former = Manifest.load(Storage(folder / "run")).run_id
        others = [run(folder, "--replace") for _ in range(3)]
        ends = [(process.communicate(timeout=120)[1], process.returncode) for process in others]
        statuses = sorted(status for _, status in ends)
        assert statuses[0] == 0, ends
        assert set(statuses) <= {0, 2}, ends
        manifest = Manifest.load(Storage(folder / "run"))
        assert manifest.run_id != former
        summary = json.loads((folder / "run" / "summary.json").read_text())
        assert (summary["status"], summary["run_id"]) == ("complete", manifest.run_id)
        records = json.loads((folder / "run" / "combined_data.json").read_text())
        assert {record["run_id"] for record in records} == {manifest.run_id}
        assert all("choose another place for results" in said for said, code in ends if code)


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture
def done(folder: Path) -> Path:
    """A folder with a complete run in ``run``."""
    words = ["--data", str(folder / "data"), "--model", str(folder / "m.onnx")]
    assert main(["run", *words, "--out", str(folder / "run"), "--quiet", "--workers", "1"]) == 0
    return folder


@pytest.mark.parametrize("what", ["no model", "not a model", "no data", "no such option"])
def test_a_run_that_cannot_start_leaves_the_former_one(done: Path, what: str, capsys):
    before = contents(done / "run")
    words = {"--data": str(done / "data"), "--model": str(done / "m.onnx")}
    if what == "no model":
        (done / "m.onnx").unlink()
    elif what == "not a model":
        (done / "m.onnx").write_bytes(b"\x08\x08" * 50)
    elif what == "no data":
        shutil.rmtree(done / "data")
    else:
        words["--precision"] = "int8"  # there is no m.int8.onnx
    plain = [word for pair in words.items() for word in pair]
    assert main(["run", *plain, "--out", str(done / "run"), "--replace"]) == 2
    assert capsys.readouterr().err.strip().count("\n") <= 1
    assert contents(done / "run") == before


def test_only_what_the_former_run_wrote_is_removed(done: Path):
    kept = ["notes.txt", "99.json", "ranks/7/mine.npz", "logs/9.log", "logs/mine.log"]
    for name in kept:
        (done / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (done / "run" / name).write_text("mine")
    initialize(request_for(done, str(done / "run")), replace=True)
    left = {str(path.relative_to(done / "run")) for path in (done / "run").rglob("*.*")}
    assert left == {*kept, "manifest.json", "items.json", "payload.json"}
    assert {(done / "run" / name).read_text() for name in kept} == {"mine"}


@pytest.mark.parametrize("link", ["ranks", "logs", "ranks/0", "ranks/0/moments.npz", "0.json", "."])
def test_nothing_is_removed_through_a_symbolic_link(done: Path, link: str, capsys):
    """A link in the place of a folder, a file, or of the run itself."""
    path = done / "run" / link
    path.rename(done / "elsewhere")
    (done / "run" if link == "." else path).symlink_to(done / "elsewhere")
    before = contents(done)
    words = ["--data", str(done / "data"), "--model", str(done / "m.onnx"), "--replace"]
    assert main(["run", *words, "--out", str(done / "run"), "--workers", "1"]) == 2
    assert "is a symbolic link" in capsys.readouterr().err
    assert contents(done) == before


def test_a_link_that_appears_at_the_last_moment_is_not_followed(done: Path):
    storage = Storage(done / "run")
    keys = FormerRun.at(storage).keys(storage)
    (done / "run" / "ranks").rename(done / "elsewhere")
    (done / "run" / "ranks").symlink_to(done / "elsewhere")
    before = contents(done / "elsewhere")
    with pytest.raises(StorageError, match="a symbolic link is on the way"):
        remove(storage, keys)
    assert contents(done / "elsewhere") == before


def test_a_former_runs_catalogue_is_not_that_of_the_run_that_replaces_it(done: Path):
    """As after a kill between the claim and the removal of the former run's objects."""
    store = Storage(done / "run")
    manifest = json.loads(store.get(layout.MANIFEST))
    assert len(perseid.open_run(str(done / "run")).catalogue()) == 20
    store.put(layout.MANIFEST, json.dumps({**manifest, "run_id": "20261126T000000Z-0"}).encode())
    status = perseid.open_run(str(done / "run")).status()
    assert (status.state, status.done) == ("not ended", 0)
    assert not any(rank.done for rank in perseid.open_run(str(done / "run")).ranks)
    with pytest.raises(NotFoundError, match=f"is of the former run {manifest['run_id']}"):
        perseid.open_run(str(done / "run")).catalogue()
    for words in (["catalogue", "--to", str(done / "out.csv")], ["similar", "--id", "1"]):
        assert main([words[0], str(done / "run"), *words[1:]]) == 2, words
    assert not (done / "out.csv").exists()
    assert main(["report", str(done / "run"), "--out", str(done / "page.html")]) == 0
    assert "The run has no catalogue." in (done / "page.html").read_text()
