"""`perseid simulate` as real processes: files, determinism, bad options, Ctrl-C, a dead parent."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from waiting import eventually

from perseid.errors import AlreadyExistsError, BadInputError
from perseid.storage import Storage
from perseid.survey.reader import read_cutouts
from perseid.survey.simulation import sdss
from perseid.survey.simulation.object_rendering import render_objects, table_rows_of
from perseid.survey.simulation.simulate import simulate
from perseid.survey.splits import TEST, assign_split


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "perseid", "simulate", *map(str, words)]


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=120)


def children(parent: int) -> list[int]:
    """Processes whose parent is `parent`, from /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """700 objects by the command, two processes, several files, many anomalies."""
    dest = tmp_path_factory.mktemp("sim") / "survey"
    options = ("--rows", 700, "--seed", 3, "--anomaly-rate", 0.2, "--rows-per-file", 300)
    done = run(dest, *options, "--processes", 2)
    assert done.returncode == 0, done.stderr
    return dest, done.stdout


def test_command_writes_files_and_says_what(survey):
    dest, said = survey
    assert sorted(path.name for path in dest.iterdir()) == ["1.pt", "2.pt", "3.pt", "survey.json"]
    parts = [read_cutouts(dest / f"{number}.pt") for number in (1, 2, 3)]
    assert [len(part) for part in parts] == [300, 300, 100]
    assert parts[0].images.shape == (300, 5, 32, 32)
    assert "700 objects in 3 files" in said
    assert "real" in said
    assert "simulated" in said


def test_survey_json_tells_how_to_make_it_again(survey):
    dest, _ = survey
    told = json.loads((dest / "survey.json").read_text())
    assert (told["rows"], told["seed"], told["anomaly_rate"]) == (700, 3, 0.2)
    assert told["files"] == {"1.pt": 300, "2.pt": 300, "3.pt": 100}
    assert told["table"]["rows"] == 19817
    label = np.concatenate([read_cutouts(dest / f"{n}.pt").label for n in (1, 2, 3)])
    names = [told["anomaly_kinds"][str(kind)] for kind in label]
    assert {name: names.count(name) for name in told["labels"]} == told["labels"]
    assert all(told["labels"].values())  # every kind is there


def test_one_process_writes_the_same_bits_as_two(survey, tmp_path):
    dest, _ = survey
    options = {"anomaly_rate": 0.2, "rows_per_file": 300}
    seen = []
    result = simulate(
        tmp_path / "one", 700, 3, processes=1, report=lambda *at: seen.append(at), **options
    )
    for name in result.files:
        assert (tmp_path / "one" / name).read_bytes() == (dest / name).read_bytes()
    assert seen[-1] == (700, 700)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_a_shorter_survey_is_the_beginning_of_a_longer_one(survey, tmp_path):
    dest, _ = survey
    simulate(tmp_path / "short", 20, 3, anomaly_rate=0.2, processes=1, suffix=".npz")
    short = read_cutouts(tmp_path / "short" / "1.npz")
    whole = read_cutouts(dest / "1.pt")
    assert np.array_equal(short.images, whole.images[:20])
    assert np.array_equal(short.object_id, whole.object_id[:20])


def test_what_is_on_disk_is_what_the_ids_say(survey):
    dest, _ = survey
    part = read_cutouts(dest / "2.pt")
    table = sdss.load_table()
    assert np.array_equal(part.magnitudes, table.magnitudes[table_rows_of(part.object_id)])
    again = render_objects(3, part.object_id[40:45], anomaly_rate=0.2, table=table)
    assert np.array_equal(again.images, part.images[40:45])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--rows", 0, "--seed", 1), "at least 1 row, not 0"),
        (("--rows", 5, "--seed", -1), "must not be negative"),
        (("--rows", 5, "--seed", 1, "--anomaly-rate", 1.5), "between 0 and 1, it is 1.5"),
        (("--rows", 5, "--seed", 1, "--processes", 0), "at least 1 process"),
        (("--rows", 5, "--seed", 1, "--format", "jpeg"), ".jpeg"),
    ],
)
def test_bad_options_are_one_sentence(tmp_path, options, sentence):
    done = run(tmp_path / "x", *options)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()


def test_rate_that_is_no_number_and_empty_files_are_refused(tmp_path):
    with pytest.raises(BadInputError, match="between 0 and 1"):
        simulate(tmp_path / "x", 5, 1, anomaly_rate=float("nan"))
    with pytest.raises(BadInputError, match="a file needs at least 1 row"):
        simulate(tmp_path / "x", 5, 1, rows_per_file=0)


def test_a_place_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "1.pt").write_bytes(b"mine")
    with pytest.raises(AlreadyExistsError, match=r"already holds 1\.pt"):
        simulate(tmp_path, 5, 1)
    assert (tmp_path / "1.pt").read_bytes() == b"mine"


@pytest.mark.s3
def test_a_bucket_as_destination(s3, tmp_path):
    """The same bits as on disk, and a second survey refuses to mix with the first."""
    bucket = s3.bucket()
    options = ("--rows", 60, "--seed", 3, "--processes", 1, "--rows-per-file", 40)
    assert run(f"{bucket}/sim", *options).returncode == 0
    assert run(tmp_path / "sim", *options).returncode == 0
    here = Storage(tmp_path / "sim")
    there = Storage(f"{bucket}/sim")
    assert sorted(info.key for info in there.list()) == ["1.pt", "2.pt", "survey.json"]
    assert all(there.get(key) == here.get(key) for key in ("1.pt", "2.pt", "survey.json"))
    again = run(f"{bucket}/sim", *options)
    assert again.returncode == 2
    assert "already holds 1.pt" in again.stderr


def test_ctrl_c_leaves_no_process_and_no_file(tmp_path):
    """An interrupt of the whole process group, as a terminal sends it, after the first file."""
    dest = tmp_path / "survey"
    words = command(dest, "--rows", 15000, "--seed", 1, "--processes", 2, "--rows-per-file", 32)
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        eventually((dest / "1.pt").exists, 60)
        workers = children(process.pid)
        assert len(workers) >= 2
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert b"Traceback" not in said
    eventually(lambda: not any(map(running, workers)))
    assert not dest.exists()


def test_workers_leave_when_the_parent_is_killed(tmp_path):
    dest = tmp_path / "survey"
    words = command(dest, "--rows", 15000, "--seed", 1, "--processes", 2, "--rows-per-file", 32)
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually((dest / "1.pt").exists, 60)
        workers = children(process.pid)
    finally:
        process.kill()
    process.wait(timeout=10)
    eventually(lambda: not any(map(running, workers)), 20)
    assert not (dest / "survey.json").exists()


def test_a_killed_worker_is_one_sentence_and_nothing_is_kept(tmp_path):
    dest = tmp_path / "survey"
    words = command(dest, "--rows", 15000, "--seed", 1, "--processes", 2, "--rows-per-file", 32)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        eventually((dest / "1.pt").exists, 60)
        spawned = [p for p in children(process.pid) if b"spawn_main" in _words(p)]
        os.kill(spawned[0], signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 2
    assert b"was killed" in said
    assert b"Traceback" not in said
    assert not dest.exists()


def _words(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_held_out_galaxies_only(tmp_path):
    done = simulate(tmp_path / "s", 40, 7, processes=1, suffix=".npz", only_held_out=True)
    assert done.only_held_out
    assert json.loads((tmp_path / "s" / "survey.json").read_text())["only_held_out"] is True
    ids = np.load(tmp_path / "s" / "1.npz")["object_id"]
    assert (assign_split(table_rows_of(ids)) == TEST).all()
