"""Splitting: all rows once, in order, whatever the survey's files are."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_survey

from perseid.cli import main
from perseid.errors import BadInputError, BadPartitionError, NotFoundError, NotInstalledError
from perseid.storage import Storage
from perseid.survey import (
    Cutouts,
    discover,
    natural_key,
    open_partition,
    read_cutouts,
    suffixes,
    write_cutouts,
)
from perseid.survey.description import description_of
from perseid.survey.split import split


def together(url: str) -> Cutouts:
    """All partitions below a URL, one after the other."""
    keys = sorted((info.key for info in Storage(url).list()), key=natural_key)
    parts = [read_cutouts(f"{url}/{key}") for key in keys]
    names = ("images", "magnitudes", "redshift", "object_id", "label")
    return Cutouts(*(_concatenated([getattr(p, n) for p in parts]) for n in names))


def _concatenated(arrays):
    return None if arrays[0] is None else np.concatenate(arrays)


@pytest.fixture
def survey(tmp_path: Path, make_cutouts) -> tuple[Path, Cutouts]:
    """A survey of 12 files in several formats, whose names sort otherwise as text."""
    whole, at = make_cutouts(300, 3, 8, 8), 0
    known = [s for s in suffixes() if s not in (".pth", ".hdf5")]
    for number in range(1, 13):
        rows = [0, 17, 40, 25][number % 4] if number < 12 else 300 - at
        name = f"part{number}{known[number % len(known)]}"
        write_cutouts(whole[at : at + rows], tmp_path / "survey" / name)
        at += rows
    (tmp_path / "survey" / "README.md").write_text("not cutouts")
    return tmp_path / "survey", whole


@pytest.mark.parametrize("format", ["pt", ".safetensors", "npz", "h5", "fits", "parquet"])
def test_all_rows_once_in_order(format: str, survey, tmp_path: Path, same_bits) -> None:
    folder, whole = survey
    done = split(folder, tmp_path / "parts", rows=64, format=format)
    assert (done.rows, done.partitions, done.rows_per_partition, done.files) == (300, 5, 64, 12)
    names = sorted((path.name for path in (tmp_path / "parts").iterdir()), key=natural_key)
    assert names == [f"{number}.{format.lstrip('.')}" for number in range(1, 6)]
    assert same_bits(together(str(tmp_path / "parts")), whole)
    lengths = [len(read_cutouts(tmp_path / "parts" / name)) for name in names]
    assert lengths == [64, 64, 64, 64, 44]


def test_the_partitions_say_what_their_labels_and_bands_mean(survey, tmp_path: Path) -> None:
    folder, _ = survey
    parts = tmp_path / "parts"
    said = {"anomaly_kinds": {"1": "merger"}, "bands": ["g", "r", "i"], "rows": 300}
    (folder / "survey.json").write_text(json.dumps(said))
    split(folder, parts, rows=200)
    assert json.loads((parts / "survey.json").read_text()) == {
        "anomaly_kinds": {"1": "merger"},
        "bands": ["g", "r", "i"],
    }
    again = description_of(discover(parts))
    assert (again.labels, again.bands) == ({1: "merger"}, ("g", "r", "i"))
    # What described the former partitions does not describe those of another survey.
    (folder / "survey.json").unlink()
    split(folder, parts, rows=200, overwrite=True)
    assert not (parts / "survey.json").exists()


@pytest.mark.parametrize("rows", [1, 99, 100, 150, 299, 300, 301])
def test_any_number_of_rows(rows: int, survey, same_bits) -> None:
    folder, whole = survey
    dest = f"memory://{uuid.uuid4().hex}/parts"
    done = split(folder, dest, rows=rows)
    assert done.partitions == -(-300 // rows)
    assert same_bits(together(dest), whole)


def test_one_file_by_size(tmp_path: Path, make_cutouts) -> None:
    write_cutouts(make_cutouts(300), tmp_path / "survey.h5")
    seen = []
    done = split(tmp_path / "survey.h5", tmp_path / "parts", size="2MB", progress=seen.append)
    assert (done.rows_per_partition, done.partitions) == (102, 3)
    assert seen[-1].rows == seen[-1].total_rows == 300
    assert seen[-1].partitions == seen[-1].total_partitions == 3
    assert [step.rows for step in seen] == sorted(step.rows for step in seen)


def test_a_survey_without_rows_is_one_empty_partition(tmp_path: Path, make_cutouts) -> None:
    write_cutouts(make_cutouts(0), tmp_path / "survey.npz")
    assert split(tmp_path / "survey.npz", tmp_path / "parts").partitions == 1
    assert len(read_cutouts(tmp_path / "parts/1.pt")) == 0


@pytest.mark.s3
def test_from_and_to_s3(s3, survey, same_bits) -> None:
    folder, whole = survey
    bucket = s3.bucket()
    split(folder, f"{bucket}/12 parts", rows=25)
    split(f"{bucket}/12 parts", f"{bucket}/3 parts", rows=100, format="npz")
    assert same_bits(together(f"{bucket}/3 parts"), whole)
    assert [info.key for info in Storage(f"{bucket}/3 parts").list()] == ["1.npz", "2.npz", "3.npz"]


def test_a_destination_in_use_is_refused(survey, tmp_path: Path, same_bits) -> None:
    folder, whole = survey
    split(folder, tmp_path / "parts", rows=30)
    (tmp_path / "parts" / "notes.txt").write_text("mine")
    (tmp_path / "parts" / ".4.123-456.part").write_bytes(b"left by a killed split")
    with pytest.raises(BadInputError, match=r"parts is not empty \(it has .*`overwrite=True`"):
        split(folder, tmp_path / "parts", rows=100)
    split(folder, tmp_path / "parts", rows=100, overwrite=True)
    assert (tmp_path / "parts" / "notes.txt").read_text() == "mine"
    (tmp_path / "parts" / "notes.txt").unlink()
    names = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert names == ["1.pt", "2.pt", "3.pt"]
    assert same_bits(together(str(tmp_path / "parts")), whole)  # no partition of the former split


@pytest.mark.parametrize("dest", ["survey", "survey/parts", ".", "link", "link/parts"])
def test_the_source_is_never_written_into(dest: str, survey, tmp_path: Path) -> None:
    folder, _ = survey
    (tmp_path / "link").symlink_to(folder)
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(BadInputError, match="where the survey lies"):
        split(folder, tmp_path / dest, overwrite=True)
    with pytest.raises(BadInputError, match="where the survey lies"):
        split(folder / "part2.npz", folder, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_files_that_differ_are_named(tmp_path: Path, make_cutouts) -> None:
    write_cutouts(make_cutouts(5), tmp_path / "survey/1.pt")
    for other, says in (
        (make_cutouts(5, 4), "4 bands"),
        (make_cutouts(5, 5, 16, 16), "16 x 16"),
        (make_cutouts(5, magnitude="float32"), "magnitude float32"),
        (make_cutouts(5, label=False), r"int64\)"),
    ):
        write_cutouts(other, tmp_path / "survey/2.pt")
        with pytest.raises(
            BadPartitionError, match=rf"2\.pt has .*{says}.*but .*1\.pt has 5 bands"
        ):
            split(tmp_path / "survey", tmp_path / "parts")
        assert not (tmp_path / "parts").exists()


def test_a_file_that_breaks_on_the_way_leaves_whole_partitions(tmp_path, make_cutouts) -> None:
    write_cutouts(make_cutouts(60), tmp_path / "survey/1.pt")
    write_cutouts(make_cutouts(60), tmp_path / "survey/2.pt")
    damaged = bytearray((tmp_path / "survey/2.pt").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "survey/2.pt").write_bytes(damaged)
    with pytest.raises(BadPartitionError, match=r"survey/2\.pt is corrupt"):
        split(tmp_path / "survey", tmp_path / "parts", rows=25)
    left = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert left == ["1.pt", "2.pt"]
    assert all(len(read_cutouts(tmp_path / "parts" / name)) == 25 for name in left)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"there is nothing at .*nowhere"):
        split(tmp_path / "nowhere", tmp_path / "parts")
    with pytest.raises(NotFoundError, match=r"nowhere\.pt"):
        split(tmp_path / "nowhere.pt", tmp_path / "parts")


@pytest.mark.parametrize(
    ("options", "says"),
    [({"format": "doc"}, "'doc'"), ({"size": "5"}, "'5'"), ({"rows": 0}, "not 0"),
     ({"size": "1B"}, "holds no row")],
)  # fmt: skip
def test_options_that_make_no_sense(options, says: str, survey, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=says):
        split(survey[0], tmp_path / "parts", **options)
    assert not (tmp_path / "parts").exists()


def test_the_command_says_what_it_wrote(survey, tmp_path: Path, capsys) -> None:
    dest = tmp_path / "parts"
    assert main(["split", str(survey[0]), str(dest), "--rows", "128"]) == 0
    out = capsys.readouterr().out
    assert re.fullmatch(
        rf"300 rows of 12 files in 3 partitions of 128 rows under {dest} \(\d+\.\d s\)\n", out
    )
    assert main(["split", str(survey[0]), str(dest)]) == 2
    assert capsys.readouterr().err.startswith(f"perseid: {dest} is not empty")


SPLIT = """
import sys
from pathlib import Path
from perseid.survey.split import split
survey, dest, size = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def drop(progress):  # a checked partition makes room on the disk
    for path in dest.glob("[0-9]*.pt"):
        if path.stat().st_size > 0 and path.name != f"{progress.total_partitions}.pt":
            path.write_bytes(b"")

done = split(survey, dest, size=size, progress=drop)
status = Path("/proc/self/status").read_text().splitlines()  # ru_maxrss would count the parent
peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) >> 10
print(done.rows, done.partitions, peak)
"""


def sparse(path: Path, rows: int) -> None:
    """A survey of zeros that takes no room on the disk: a header, then a hole."""
    ends = np.cumsum([rows * 40, rows * 20480])
    header = {
        "magnitude": {"dtype": "F64", "shape": [rows, 5], "data_offsets": [0, int(ends[0])]},
        "image": {
            "dtype": "F32",
            "shape": [rows, 5, 32, 32],
            "data_offsets": [int(ends[0]), int(ends[1])],
        },
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + int(ends[1]))


def split_apart(tmp_path: Path, rows: int, size: str) -> list[int]:
    sparse(tmp_path / "survey.safetensors", rows)
    arguments = [tmp_path / "survey.safetensors", tmp_path / "parts", size]
    done = subprocess.run(
        [sys.executable, "-c", SPLIT, *arguments],
        capture_output=True, text=True, timeout=280, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


def test_memory_does_not_grow_with_the_survey(tmp_path: Path) -> None:
    peaks = []
    for name, rows in (("small", 3_000), ("large", 30_000)):
        (tmp_path / name).mkdir()
        done, partitions, peak = split_apart(tmp_path / name, rows, "25MB")
        assert (done, partitions) == (rows, -(-rows // 1278))
        peaks.append(peak)
    assert peaks[1] < 200  # MB, of a survey of 600 MB
    assert peaks[1] - peaks[0] < 60


@pytest.mark.slow
def test_a_survey_of_the_published_size_stays_under_a_gigabyte(tmp_path: Path) -> None:
    rows, partitions, peak = split_apart(tmp_path, 659_817, "25MB")
    assert (rows, partitions) == (659_817, 517)
    assert peak < 1000  # MB, of 12.6 GB
    last = open_partition(Storage(tmp_path / "parts"), "517.pt")
    assert last.rows == 659_817 - 516 * 1278


@pytest.mark.parametrize(("suffix", "package"), [("h5", "h5py"), ("parquet", "pyarrow")])
def test_a_format_whose_package_is_missing_leaves_no_folder(
    suffix: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_survey(tmp_path / "data", 4, 4)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(NotInstalledError, match=package):
        split(tmp_path / "data", tmp_path / "parts", format=suffix)
    assert not (tmp_path / "parts").exists()
