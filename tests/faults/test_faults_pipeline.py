"""What one rank or one summary can meet: each row is in the catalogue once, or named as missing."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from flaky import flaky_proxy
from tiny import SIDE, tiny_cutouts, tiny_model, tiny_survey

from perseid.errors import BadInputError, NotFoundError, RunIncompleteError, StorageError
from perseid.pipeline import layout
from perseid.pipeline.initialize import Initialized, initialize
from perseid.pipeline.items import WorkItem
from perseid.pipeline.request import RunRequest
from perseid.pipeline.summarize import summarize
from perseid.pipeline.work import work
from perseid.storage import Storage
from perseid.survey.cutouts import Cutouts
from perseid.survey.reader import write_cutouts


@pytest.fixture
def survey(tmp_path: Path) -> Cutouts:
    """Six partitions of ten objects in ``data``, a model beside them."""
    tiny_model(tmp_path / "model.onnx")
    return tiny_survey(tmp_path / "data", rows=60, per_partition=10)


def begin(folder: Path, **more: object) -> Initialized:
    given = {"data": str(folder / "data"), "results": str(folder / "run"), "world_size": 3}
    return initialize(RunRequest.parse(given | {"model": str(folder / "model.onnx")} | more))


def catalogue(folder: Path) -> set[tuple[str, int]]:
    """(partition, row) of each row; checks that none is there twice."""
    read = pq.read_table(folder / "run" / layout.CATALOGUE)
    rows = list(zip(read["partition"].to_pylist(), read["row"].to_pylist(), strict=True))
    assert len(set(rows)) == len(rows)
    return set(rows)


def rows_of(*numbers: int) -> set[tuple[str, int]]:
    return {(f"{number}.pt", row) for number in numbers for row in range(10)}


def incomplete(folder: Path, **more: object) -> tuple[str, dict]:
    """The error of an incomplete run and its summary."""
    with pytest.raises(RunIncompleteError) as caught:
        summarize(Storage(folder / "run"), **more)
    return str(caught.value), json.loads((folder / "run" / layout.SUMMARY).read_text())


class Bomb:
    """A pickle that leaves a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


def bomb(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb(path.with_suffix(".exploded"))))


def bomb_in_a_dataset(path: Path) -> None:
    torch.save([Bomb(path.with_suffix(".exploded")), torch.zeros(3)], path)


def tensors(*arrays: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        given = (torch.as_tensor(np.asarray(array)) for array in arrays)
        torch.save(torch.utils.data.TensorDataset(*given), path)

    return write


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(255 - byte for byte in data[middle : middle + 64])
    path.write_bytes(bytes(data))


IMAGES = np.zeros((10, 5, SIDE, SIDE), np.float32)
MAGNITUDES = np.zeros((10, 5))
REDSHIFT = np.zeros(10)
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "garbage": (lambda path: path.write_bytes(b"not a zip" * 100), ""),
    "no bytes": (lambda path: path.write_bytes(b""), "empty"),
    "truncated": (truncated, ""),
    "flipped bytes": (flipped, ""),
    "no rows": (lambda path: write_cutouts(tiny_cutouts(1)[:0], path), "no rows"),
    "six bands": (lambda path: write_cutouts(tiny_cutouts(10, bands=6), path), "the model"),
    "larger": (lambda path: write_cutouts(tiny_cutouts(10, side=16), path), "the model"),
    "too bright": (tensors(IMAGES.astype("f8") + 1e300, MAGNITUDES, REDSHIFT), "float32"),
    "flat images": (tensors(IMAGES.reshape(10, -1), MAGNITUDES, REDSHIFT), ""),
    "no magnitudes": (tensors(IMAGES), ""),
    "complex": (tensors(IMAGES, MAGNITUDES.astype("c8"), REDSHIFT), "numbers"),
    "a bomb": (bomb, ""),
    "a bomb in a dataset": (bomb_in_a_dataset, ""),
    "a bare tensor": (lambda path: torch.save(torch.zeros(10, 5), path), ""),
}


@pytest.mark.parametrize("what", list(BAD))
def test_a_bad_partition_is_named_and_the_others_go_on(survey, tmp_path: Path, what: str):
    make, word = BAD[what]
    make(tmp_path / "data" / "3.pt")
    for item in begin(tmp_path).items:
        record = work(item)
        if item.rank == 1:
            (failed,) = record.failed_partitions
            assert failed["key"] == "3.pt"
            assert "3.pt" in failed["error"]
            assert word in failed["error"]
            assert "\n" not in failed["error"]
            assert record.rows == 10
    said, summary = incomplete(tmp_path)
    assert "partitions 3.pt missing" in said
    assert "mend these partitions" in said
    assert catalogue(tmp_path) == rows_of(1, 2, 4, 5, 6)
    assert summary["status"] == "incomplete"
    assert summary["ranks"]["received"] == 3
    assert [entry["key"] for entry in summary["partitions"]["missing"]] == ["3.pt"]
    assert summary["rows"] == {"expected": None, "received": 50, "flagged": 0}
    assert not list((tmp_path / "data").glob("*.exploded"))


def test_a_partition_of_nothing_but_nan(survey, tmp_path: Path):
    part = survey[20:30]
    images = np.full_like(part.images, np.nan)
    write_cutouts(Cutouts(images, part.magnitudes, part.redshift), tmp_path / "data" / "3.pt")
    for item in begin(tmp_path).items:
        work(item)
    summary = summarize(Storage(tmp_path / "run"))
    assert summary["rows"] == {"expected": 60, "received": 60, "flagged": 10}
    assert catalogue(tmp_path) == rows_of(1, 2, 3, 4, 5, 6)


def test_no_partition_can_be_read(survey, tmp_path: Path):
    """Before the run begins it is refused; afterwards, each partition is named."""
    items = begin(tmp_path).items
    for path in (tmp_path / "data").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(BadInputError, match="no partition of the survey can be read"):
        begin(tmp_path, results=str(tmp_path / "other"))
    for item in items:
        assert work(item).rows == 0
    said, summary = incomplete(tmp_path)
    assert all(f"{number}.pt" in said for number in range(1, 7))
    assert catalogue(tmp_path) == set()
    assert summary["redshift"] is None


@pytest.mark.parametrize("change", ["other content", "longer", "gone"])
def test_a_partition_changed_after_the_run_began(survey, tmp_path: Path, change: str):
    items = begin(tmp_path).items
    path = tmp_path / "data" / "1.pt"
    if change == "gone":
        path.unlink()
    else:
        write_cutouts(tiny_cutouts(10 if change == "other content" else 11, seed=9), path)
    for item in items:
        work(item)
    said, _ = incomplete(tmp_path)
    assert "1.pt" in said
    assert ("is not there" if change == "gone" else "was changed after the run began") in said
    assert catalogue(tmp_path) == rows_of(2, 3, 4, 5, 6)


@pytest.mark.s3
def test_a_partition_changed_while_it_is_read(s3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The object is replaced between two of its blocks."""
    for module in ("perseid.pipeline.feed", "perseid.survey.reader"):
        monkeypatch.setattr(f"{module}.BLOCK_BYTES", 1 << 20)
    url = s3.bucket()
    rows = 12_000  # fifteen blocks
    write_cutouts(tiny_cutouts(rows), f"{url}/data/1.pt")
    write_cutouts(tiny_cutouts(10), f"{url}/data/2.pt")
    given = {"data": f"{url}/data", "results": str(tmp_path / "run"), "world_size": 1}
    model = tiny_model(tmp_path / "m.onnx")
    (item,) = initialize(RunRequest.parse(given | {"model": str(model)})).items
    replaced = []

    def replace(event: object) -> None:
        if not replaced and getattr(event, "rows", 0):
            replaced.append(event)
            write_cutouts(tiny_cutouts(rows, seed=5), f"{url}/data/1.pt")

    record = work(item, report=replace)
    assert replaced
    (failed,) = record.failed_partitions
    assert "was changed after the run began" in failed["error"]
    assert (record.rows, [part["key"] for part in record.partitions]) == (10, ["2.pt"])


def test_a_missing_rank_is_named_and_redone(survey, tmp_path: Path):
    items = begin(tmp_path).items
    for item in (items[0], items[2]):
        work(item)
    said, summary = incomplete(tmp_path, failures={1: "it was killed for memory"})
    assert "ranks 1 of 3 and partitions 3.pt, 4.pt missing" in said
    assert "killed for memory" in said
    assert "perseid resume" in said
    assert summary["ranks"]["missing"] == [{"rank": 1, "reason": "it was killed for memory"}]
    assert catalogue(tmp_path) == rows_of(1, 2, 5, 6)
    assert len(json.loads((tmp_path / "run" / layout.COMBINED).read_text())) == 2
    work(items[1], attempt=2)
    summary = summarize(Storage(tmp_path / "run"))
    assert summary["status"] == "complete"
    assert summary["workers"]["retried"] == [1]
    assert catalogue(tmp_path) == rows_of(1, 2, 3, 4, 5, 6)


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def other_rank(run: Path) -> None:
    shutil.copy(run / layout.features(0), run / layout.features(1))


def torn(run: Path) -> None:
    path = run / layout.features(1)
    path.write_bytes(path.read_bytes()[:-200])


def repartitioned(run: Path) -> None:
    parts = json.loads((run / "1.json").read_text())["partitions"]
    rewrite(run / "1.json", partitions=[parts[0] | {"rows": 9}, parts[1]])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "record of another run": (lambda run: rewrite(run / "1.json", run_id="x"), "another run"),
    "record that is not a JSON": (lambda run: (run / "1.json").write_text("{"), "not JSON"),
    "record that is a list": (lambda run: (run / "1.json").write_text("[]"), "not a JSON object"),
    "record of the existing system": (lambda run: (run / "1.json").write_text("{}"), "no run id"),
    "record without its partitions": (lambda run: rewrite(run / "1.json", partitions=[]), "once"),
    "no features": (lambda run: (run / layout.features(1)).unlink(), "is not there"),
    "no statistics": (lambda run: (run / layout.moments(1)).unlink(), "is not there"),
    "torn features": (torn, "broken"),
    "features of another rank": (other_rank, "rank 0"),
    "features of other rows": (repartitioned, "other rows"),
}


@pytest.mark.parametrize("what", list(BROKEN))
def test_a_rank_with_broken_objects_counts_as_missing(survey, tmp_path: Path, what: str):
    damage, word = BROKEN[what]
    for item in begin(tmp_path).items:
        work(item)
    damage(tmp_path / "run")
    said, summary = incomplete(tmp_path)
    assert "ranks 1 of 3" in said
    assert word in summary["ranks"]["missing"][0]["reason"]
    assert catalogue(tmp_path) == rows_of(1, 2, 5, 6)
    alone = tmp_path / "alone"  # the statistics, too, are of the remaining ranks only
    shutil.copytree(tmp_path / "data", alone / "data")
    shutil.copy(tmp_path / "model.onnx", alone)
    items = begin(alone).items
    work(items[0])
    work(items[2])
    incomplete(alone)
    columns = ["anomaly_score", "anomaly_rank"]
    ours, theirs = (
        pq.read_table(folder / "run" / layout.CATALOGUE, columns=columns)
        for folder in (tmp_path, alone)
    )
    assert ours.equals(theirs)


def test_a_late_write_of_an_abandoned_attempt(survey, tmp_path: Path):
    items = begin(tmp_path).items
    for item in items:
        work(item, attempt=2 if item.rank == 1 else 1)
    before = (tmp_path / "run" / "1.json").read_bytes()
    assert work(items[1], attempt=1).attempt == 1
    assert (tmp_path / "run" / "1.json").read_bytes() == before
    assert summarize(Storage(tmp_path / "run"))["workers"]["retried"] == [1]
    assert catalogue(tmp_path) == rows_of(1, 2, 3, 4, 5, 6)


def test_a_late_write_into_the_place_of_a_new_run(survey, tmp_path: Path):
    """A worker of a run that was replaced wakes up: its objects are not taken for the new one's."""
    old = begin(tmp_path).items[1]
    request = RunRequest.parse(
        {"data": str(tmp_path / "data"), "results": str(tmp_path / "run"), "world_size": 3}
        | {"model": str(tmp_path / "model.onnx")}
    )
    items = initialize(request, replace=True).items
    for item in items:
        work(item)
    work(old)
    said, summary = incomplete(tmp_path)
    assert "ranks 1 of 3" in said
    work(items[1], attempt=2)
    assert summarize(Storage(tmp_path / "run"))["status"] == "complete"
    assert catalogue(tmp_path) == rows_of(1, 2, 3, 4, 5, 6)
    assert summary["rows"]["received"] == 40


def test_summarize_twice_gives_the_same_catalogue(survey, tmp_path: Path):
    for item in begin(tmp_path).items:
        work(item)
    storage = Storage(tmp_path / "run")
    summarize(storage)
    first = [storage.get(key) for key in (layout.CATALOGUE, layout.COMBINED)]
    summarize(storage)
    assert [storage.get(key) for key in (layout.CATALOGUE, layout.COMBINED)] == first


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(mount).returncode:
        pytest.skip("a small disk needs root and mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def work_on(items: Sequence[WorkItem], attempt: int = 1) -> None:
    for item in items:
        work(item, attempt=attempt)


def test_the_disk_of_the_results_is_full(survey, tmp_path: Path, small_disk: Path):
    items = begin(tmp_path, results=str(small_disk / "run")).items
    (small_disk / "filler").write_bytes(bytes(40_000))
    with pytest.raises(StorageError, match="small/run") as caught:
        work_on(items)
    assert "\n" not in str(caught.value)
    with pytest.raises((RunIncompleteError, StorageError)):
        summarize(Storage(small_disk / "run"))
    (small_disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    work_on(items, attempt=2)
    assert summarize(Storage(small_disk / "run"))["status"] == "complete"


def test_the_temporary_folder_is_full(
    survey, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
):
    items = begin(tmp_path).items
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    (small_disk / "filler").write_bytes(bytes(60_000))
    with pytest.raises(StorageError, match=r"rank 0 cannot write to .*No space left.*TMPDIR"):
        work(items[0])
    assert [path.name for path in small_disk.iterdir()] == ["filler"]
    assert not (tmp_path / "run" / layout.record(0)).exists()


def test_there_is_no_temporary_folder(survey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    items = begin(tmp_path).items
    work_on(items)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(StorageError, match="rank 0 cannot write to the temporary folder"):
        work(items[0])
    with pytest.raises(StorageError, match="summarize cannot write to the temporary folder"):
        summarize(Storage(tmp_path / "run"))


def test_a_file_in_the_way_of_the_results(survey, tmp_path: Path):
    (tmp_path / "run").write_text("I am a file")
    with pytest.raises(StorageError, match=str(tmp_path / "run")):
        begin(tmp_path)


@pytest.mark.s3
def test_slow_storage(s3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """100 ms on each request: 16 ranks' objects are collected side by side, not one by one."""
    url = s3.bucket()
    for number, part in enumerate(tiny_cutouts(48).batches(3), start=1):
        write_cutouts(part, f"{url}/data/{number}.pt")
    model = tiny_model(tmp_path / "m.onnx")
    given = {"data": f"{url}/data", "results": f"{url}/run", "model": str(model)}
    items = initialize(RunRequest.parse(given)).items
    for item in items[:-1]:
        work(item)
    with flaky_proxy(s3.endpoint, delay=0.1) as flaky:
        monkeypatch.setenv("AWS_ENDPOINT_URL", flaky.endpoint)
        record = work(items[-1])
        assert record.s3["min_time"] >= 0.1
        before, flaky.most_at_once = sum(flaky.seen.values()), 0
        assert summarize(Storage(f"{url}/run"))["status"] == "complete"
    assert sum(flaky.seen.values()) - before >= 3 * 16
    assert flaky.most_at_once >= 4


@pytest.mark.s3
@pytest.mark.parametrize("status", [429, 503])
def test_bursts_of_refusals(s3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int):
    """Each request is refused once before it is served."""
    url = s3.bucket()
    for number, part in enumerate(tiny_cutouts(40).batches(10), start=1):
        write_cutouts(part, f"{url}/data/{number}.pt")
    model = tiny_model(tmp_path / "m.onnx")
    given = {"data": f"{url}/data", "results": f"{url}/run", "model": str(model), "world_size": 2}
    with flaky_proxy(s3.endpoint, refuse=1, status=status) as flaky:
        monkeypatch.setenv("AWS_ENDPOINT_URL", flaky.endpoint)
        for item in initialize(RunRequest.parse(given)).items:
            work(item)
        summary = summarize(Storage(f"{url}/run"))
        assert flaky.refused > 15
    assert (summary["status"], summary["rows"]["received"]) == ("complete", 40)


@pytest.mark.s3
def test_storage_that_goes_away_fails_the_rank_not_its_partitions(
    s3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """An error of the store is not an error of the file: another attempt may succeed."""
    url = s3.bucket()
    write_cutouts(tiny_cutouts(10), f"{url}/data/1.pt")
    model = tiny_model(tmp_path / "m.onnx")
    given = {"data": f"{url}/data", "results": str(tmp_path / "run"), "model": str(model)}
    (item,) = initialize(RunRequest.parse(given)).items
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "revoked")
    with pytest.raises(StorageError):
        work(item)
    assert not (tmp_path / "run" / layout.record(0)).exists()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.env["AWS_SECRET_ACCESS_KEY"])
    assert work(item, attempt=2).rows == 10


def test_the_folder_of_the_data_is_gone(tmp_path: Path):
    tiny_model(tmp_path / "model.onnx")
    with pytest.raises(NotFoundError, match="there is nothing at"):
        begin(tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_worker_of_large_partitions_stays_small(tmp_path: Path):
    """60,000 rows in 3 files, 77 MB of pixels: less than 60 MB beside the loaded model."""
    tiny_model(tmp_path / "model.onnx")
    tiny_survey(tmp_path / "data", rows=60_000, per_partition=20_000)
    (item,) = begin(tmp_path, world_size=1).items
    (tmp_path / "item.json").write_text(json.dumps(item.to_json()))
    code = (
        "import sys, pathlib\n"
        "from perseid.pipeline.items import WorkItem\n"
        "from perseid.pipeline.timeline import peak_memory_mb\n"
        "from perseid.pipeline.work import load_runtime, work\n"
        "item = WorkItem.from_json(pathlib.Path(sys.argv[1]).read_text())\n"
        "runtime = load_runtime(item)\n"
        "before = peak_memory_mb()\n"
        "record = work(item, runtime=runtime)\n"
        "print(record.rows, record.peak_memory_mb - before)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "item.json")]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    rows, more = told.stdout.split()
    assert int(rows) == 60_000
    assert float(more) < 60
