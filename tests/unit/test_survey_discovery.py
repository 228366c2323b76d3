"""Which files are the survey: hostile names, every command, on a disk and in S3."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

import perseid
from perseid.cli import main
from perseid.errors import BadInputError, NotFoundError
from perseid.pipeline import layout
from perseid.pipeline.request import RunRequest
from perseid.pipeline.request_listing import list_partitions
from perseid.storage import Location, Storage, scan
from perseid.survey import discover, discovery, suffix_of, write_cutouts
from perseid.survey.discovery import RUN_CATALOGUE, RUN_RATINGS, Layout

PARTITIONS = ["1.pt", "2.pt", "10.PT"]
SILENT = ["README.md", "survey.json", ".DS_Store"]
"""Files that nobody would take for data: no note."""
NAMED = {
    "_tmp.pt": "begins with _",
    ".hidden.npz": "begins with .",
    "backup/1.pt": "lies in a sub-folder",
    ".ipynb_checkpoints/1-checkpoint.pt": "lies in a sub-folder",
    "a/b/3.parquet": "lies in a sub-folder",
    "catalogue.parquet": "is the catalogue of a run",
    "night.csv.gz": "has a suffix that is not read",
    "table.csv": "has a suffix that is not read",
    "UPPER.NPY": "has a suffix that is not read",
    "tab\tname.txt": "has the control character U+0009 in its name",
    "del\x7f.pt": "has the control character U+007F in its name",
    "color\x1b[31m.pt": "has the control character U+001B in its name",
}
"""What looks like data, or cannot be looked at, and the reason that is given."""
DISK_ONLY = {"line\nbreak.pt": "has the control character U+000A in its name"}
MARKERS = ["backup/", "empty/", "deep/er/", "3.pt/"]
"""Keys that show a folder in S3."""


def content(folder: Path, make_cutouts: Callable) -> bytes:
    """A partition that every command can read."""
    cutouts = make_cutouts(3, redshift=None, label=False, seed=1)
    images = np.ones_like(cutouts.images)
    magnitudes = np.full(cutouts.magnitudes.shape, 17.0)
    write_cutouts(type(cutouts)(images, magnitudes, np.full(3, 0.1)), folder / "content.pt")
    return (folder / "content.pt").read_bytes()


@pytest.fixture
def on_disk(tmp_path: Path, make_cutouts) -> str:
    """A survey with everything above, dangling links and a pipe beside it."""
    data, folder = content(tmp_path, make_cutouts), tmp_path / "data"
    for name in (*PARTITIONS, *SILENT, *NAMED, *DISK_ONLY):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "empty").mkdir()
    (folder / "4.pt").mkdir()
    (folder / "gone.pt").symlink_to("nowhere.pt")
    (folder / "again").symlink_to(".")
    os.mkfifo(folder / "pipe.pt")
    (folder / os.fsdecode(b"latin\xe9.pt")).write_bytes(data)
    return str(folder)


ON_DISK = {
    **DISK_ONLY,
    "gone.pt": "is a link to nothing",
    "again/": "is a link to a folder that is listed already",
    "pipe.pt": "is not a regular file",
    "latin\udce9.pt": "has a name that is not UTF-8",
}


@pytest.fixture
def in_s3(s3, tmp_path: Path, make_cutouts) -> str:
    """The same in a bucket, below a prefix, with the markers of folders."""
    bucket = s3.bucket()
    client = boto3.client("s3", endpoint_url=s3.endpoint)
    data = content(tmp_path, make_cutouts)
    for key in (*PARTITIONS, *SILENT, *NAMED, "pl+us [1] é.txt"):
        client.put_object(Bucket=bucket.removeprefix("s3://"), Key=f"data/{key}", Body=data)
    for key in ("", *MARKERS):
        client.put_object(Bucket=bucket.removeprefix("s3://"), Key=f"data/{key}", Body=b"")
    return f"{bucket}/data"


def test_one_answer_on_a_disk(on_disk: str) -> None:
    check(on_disk, NAMED | ON_DISK)


@pytest.mark.s3
def test_one_answer_in_s3(in_s3: str) -> None:
    check(in_s3, NAMED)


def check(url: str, named: dict[str, str]) -> None:
    listing = discover(url)
    assert [partition.key for partition in listing.partitions] == PARTITIONS
    ignored = {entry.key: entry.reason for entry in listing.ignored if entry.is_data}
    assert ignored == named
    quiet = {entry.key for entry in listing.ignored if not entry.is_data}
    assert quiet >= set(SILENT)
    assert not quiet & {key.strip("/") for key in MARKERS[:1]}
    note = listing.notes[-1]
    assert f"{len(named)} entries in {Location.parse(url)} look like data and are not read" in note
    assert note.isprintable()
    storage = Storage(url)
    for partition in listing.partitions:  # the run compares these with what it finds later
        assert partition == storage.info(partition.key)


COMMANDS = ("list", "script", "split", "train", "plan", "api survey", "model check")


@pytest.mark.parametrize("where", ["on_disk", pytest.param("in_s3", marks=pytest.mark.s3)])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_these_and_names_the_others(
    command: str, where: str, request, tmp_path: Path, capsys
) -> None:
    data = request.getfixturevalue(where)
    rows = {
        "list": lambda: _listed({"data": data, "results": str(tmp_path / "run")}),
        "script": lambda: _listed(_script(data)),
        "split": lambda: _split(data, tmp_path),
        "train": lambda: _train(data),
        "plan": lambda: _plan(data),
        "api survey": lambda: sum(len(part) for part in perseid.open_survey(data)),
        "model check": lambda: _model_check(data),
    }[command]()
    assert rows == 9
    if command.startswith("api"):
        return
    said = capsys.readouterr().err
    assert "look like data and are not read" in said
    assert ".hidden.npz begins with ." in said


def _listed(given: dict[str, object]) -> int:
    listing = list_partitions(RunRequest.parse(given))
    assert [ref.key.removeprefix("data/") for ref in listing.partitions] == PARTITIONS
    print(*listing.warnings, file=sys.stderr)
    return 3 * len(listing.partitions)


def _script(data: str) -> dict[str, object]:
    root, _, bucket = data.removesuffix("/data").rpartition("/")
    local = {} if data.startswith("s3://") else {"bucket_root": root}
    return {
        "bucket": bucket, "data_bucket": bucket, "data_prefix": "data", "result_path": "run",
        "S3_object_name": "scripts", "script": "/tmp/scripts/x.py", **local,
    }  # fmt: skip


def _split(data: str, tmp_path: Path) -> int:
    assert main(["split", data, str(tmp_path / "parts"), "--rows", "2"]) == 0
    return 2 * len(list((tmp_path / "parts").iterdir())) - 1


def _train(data: str) -> int:
    from perseid.cli.surveys import found
    from perseid.model.training.data import blocks

    return sum(len(block) for block in blocks(found(data)))


def _plan(data: str) -> int:
    from perseid.cli.plan import _data

    one = Storage(data).info("1.pt").size
    return round(3 * _data(data) / one)


def _model_check(data: str) -> int:
    from perseid.cli.model import _cutouts

    return len(_cutouts(data))


def test_a_sub_folder_that_cannot_be_read_is_named(tmp_path: Path, make_cutouts) -> None:
    data, folder = content(tmp_path, make_cutouts), tmp_path / "data"
    for name in ("1.pt", "secret/2.pt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "secret").chmod(0)
    command = [sys.executable, "-m", "perseid", "split", str(folder), str(tmp_path / "parts")]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("no setpriv (util-linux), and root reads every folder")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    finally:
        (folder / "secret").chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert "secret/ cannot be listed (Permission denied)" in done.stderr
    assert (tmp_path / "parts" / "1.pt").exists()


def test_keys_that_no_path_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """On moto, which keeps every key as it is given, and has 1,000 of them on a page."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=endpoint)
        client.create_bucket(Bucket="odd-keys")
        odd = ["//log.txt", "/../up.txt", "/./here.txt", "/a//b/c.pt", "/"]
        keys = [f"data/{number}.pt" for number in range(1, 1101)]
        for key in [*keys, *(f"data{name}" for name in odd), "data/sub/", "data/pl+us é.txt"]:
            client.put_object(Bucket="odd-keys", Key=key, Body=b"x")
        listing = discover("s3://odd-keys/data")
    finally:
        server.stop()
    assert [f"data/{p.key}" for p in listing.partitions] == keys
    assert {entry.key: entry.reason for entry in listing.ignored} == {
        "/log.txt": "has an empty part in its name",
        "../up.txt": "has a part . or .. in its name",
        "./here.txt": "has a part . or .. in its name",
        "a//b/c.pt": "has an empty part in its name",
        "pl+us é.txt": "has a suffix that is not read",
    }


def test_a_named_file_is_taken_whatever_its_name(tmp_path: Path, make_cutouts) -> None:
    data = content(tmp_path, make_cutouts)
    for name in ("_tmp.pt", ".hidden.pt", "2.pt"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_bytes(data)
    for name in ("_tmp.pt", ".hidden.pt"):
        listing = discover(tmp_path / "data" / name)
        assert [partition.key for partition in listing.partitions] == [name]
    both = discover([str(tmp_path / "data/2.pt"), str(tmp_path / "data/_tmp.pt")])
    assert [partition.key for partition in both.partitions] == ["2.pt", "_tmp.pt"]


def test_what_is_no_survey(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "data" / "inner").mkdir(parents=True)
    with pytest.raises(NotFoundError, match=r"there is nothing at .*/data"):
        discover(tmp_path / "data")
    (tmp_path / "data" / "inner" / "1.pt").write_text("x")
    with pytest.raises(BadInputError, match=r"only 1 other object \(inner/1.pt lies in a sub-fol"):
        discover(tmp_path / "data")
    with pytest.raises(BadInputError, match=r"notes.txt is not read: its suffix is none of \.pt"):
        discover(tmp_path / "notes.txt")
    with pytest.raises(BadInputError, match=r"notes.txt is not read: its suffix"):
        discover([str(tmp_path / "notes.txt")])
    with pytest.raises(NotFoundError):
        discover(tmp_path / "absent.pt")
    with pytest.raises(BadInputError, match="only 1 other object"):
        perseid.plan(tmp_path / "data", calibration=tmp_path / "none.json")


def special(kind: str, folder: Path) -> Path:
    path = folder / "1.pt"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.relpath(path))  # shorter than the path, which may be too long
    else:
        return Path("/dev/zero")
    return path


@pytest.mark.parametrize("named", ["alone", "in a list"])
@pytest.mark.parametrize("kind", ["FIFO", "socket", "device"])
def test_what_is_no_regular_file_is_said(kind: str, named: str, tmp_path: Path) -> None:
    path = special(kind, tmp_path)
    with pytest.raises(BadInputError, match=rf"{path} is a {kind}, not a file or a folder"):
        discover(str(path) if named == "alone" else [str(path)])


def test_a_huge_tree_is_not_walked_to_its_end(
    tmp_path: Path, make_cutouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "MOST_LOOKED_AT", 20)
    data = content(tmp_path, make_cutouts)
    for number in range(30):
        folder = tmp_path / "disk" / f"d{number}" / "inner"
        folder.mkdir(parents=True)
        (folder / "notes.txt").write_text("x")
    with pytest.raises(BadInputError, match=r"disk holds no partition .*more than 20 entries"):
        discover(tmp_path / "disk")
    for number in range(30):
        (tmp_path / "disk" / f"{number}.pt").write_bytes(data)
    listing = discover(tmp_path / "disk")
    assert len(listing.partitions) == 30
    assert any("more than 20 entries" in note for note in listing.notes)


def test_a_catalogue_of_many_files_is_listed_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "MOST_LOOKED_AT", 5)
    (tmp_path / "hats.properties").write_text("")
    for number in range(30):
        folder = tmp_path / "dataset" / f"Norder={number}" / "Dir=0"
        folder.mkdir(parents=True)
        (folder / "Npix=0.parquet").write_text("x")
    listing = discover(tmp_path)
    assert (listing.layout, len(listing.partitions)) == (Layout.HATS, 30)


@pytest.mark.parametrize("letter", ["\n", "\r", "\x1b", "\x00", "\x7f"])
def test_a_place_with_a_control_character_is_a_whole_sentence(letter: str, tmp_path: Path) -> None:
    sentence = r"b' has the control character U\+00.. in its name: name another place$"
    for place in (
        f"{tmp_path}/a{letter}b",
        f"s3://bucket/a{letter}b",
        f"file://{tmp_path}/a{letter}b",
    ):
        with pytest.raises(BadInputError, match=sentence):
            Storage(place)


def test_the_rule_knows_what_a_run_writes_at_its_root() -> None:
    """Of a run's own objects two could be taken for partitions."""
    names = [v for k, v in vars(layout).items() if k.isupper() and isinstance(v, str)]
    assert [name for name in names if suffix_of(name)] == [RUN_CATALOGUE, RUN_RATINGS]


def test_a_results_folder_with_odd_names_is_still_empty_or_not(tmp_path: Path, make_cutouts):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "1.pt").write_bytes(content(tmp_path, make_cutouts))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tab\t.txt").write_text("x")
    assert main(["split", str(tmp_path / "data"), str(tmp_path / "out")]) == 2
    assert main(["split", str(tmp_path / "data"), str(tmp_path / "out"), "--overwrite"]) == 0
    assert len(scan(Storage(tmp_path / "out")).objects) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1.pt", "tab\t.txt"]


TWICE = "1.pt and 3.pt hold the same bytes, so the survey has their objects more than once"


@pytest.mark.parametrize("how", ["a symbolic link", "a hard link", "a link in a list"])
def test_a_file_that_is_there_twice_is_named(how: str, tmp_path: Path) -> None:
    (tmp_path / "1.pt").write_bytes(b"one")
    (tmp_path / "2.pt").write_bytes(b"one")  # another file of these bytes costs a look to find
    if how == "a hard link":
        (tmp_path / "3.pt").hardlink_to(tmp_path / "1.pt")
    else:
        (tmp_path / "3.pt").symlink_to("1.pt")
    files = [str(tmp_path / f"{number}.pt") for number in (1, 2, 3)]
    listing = discover(files if how == "a link in a list" else tmp_path)
    assert len(listing.partitions) == 3
    assert listing.notes == (TWICE,)


@pytest.mark.s3
def test_an_object_that_is_there_twice_in_s3_is_named(s3) -> None:
    storage = Storage(s3.bucket())
    for key, data in (("1.pt", b"one"), ("2.pt", b"two"), ("3.pt", b"one"), ("4.pt", b"")):
        storage.put(key, data)
    storage.put("5.pt", b"")
    assert discover(storage.url).notes == (TWICE,)
