"""Storage on a disk and in memory: keys, ranges, listings, messages."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from perseid.errors import AlreadyExistsError, BadInputError, NotFoundError, StorageError
from perseid.storage import Location, Storage

KEYS = [
    "1.pt",
    "deep/er/2.pt",
    "a space/ü – 中.pt",
    "per%20cent/100%.pt",
    "h#sh?query=1.pt",
    "plus+and&equals=.pt",
    "t~il[de]*.pt",
]


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "file":
        return Storage(tmp_path / "a store %41")
    return Storage(f"memory://{uuid.uuid4().hex}/pre fix")


@pytest.mark.parametrize("key", KEYS)
def test_any_key_comes_back_as_it_was(store: Storage, key: str) -> None:
    store.put(key, b"0123456789")
    assert store.get(key) == b"0123456789"
    assert store.get_range(key, 2, 3) == b"234"
    assert store.get_ranges(key, [8, 0], [2, 1]) == [b"89", b"0"]
    assert store.info(key).size == store.size(key) == 10
    assert [info.key for info in store.list()] == [key]
    holder, name = Storage.holding(store.location / key)
    assert holder.get(name) == b"0123456789"
    path = store.local_path(key)
    assert path is None or path.read_bytes() == b"0123456789"
    store.delete([key, "never-there"])
    assert not store.exists(key)
    assert list(store.list()) == []


def test_a_listing_is_by_whole_parts_of_the_path(store: Storage) -> None:
    for key in ("100MB/1.pt", "100MB/sub/2.pt", "100MBx/3.pt", "10/4.pt"):
        store.put(key, b"x")
    assert sorted(info.key for info in store.list("100MB")) == ["100MB/1.pt", "100MB/sub/2.pt"]
    assert sorted(info.key for info in store.at("100MB").list()) == ["1.pt", "sub/2.pt"]
    assert list(store.list("10/4")) == []
    assert list(store.list("nowhere")) == []


def test_an_object_that_must_be_new_is_not_replaced(store: Storage) -> None:
    store.put("claim", b"first", new=True)
    with pytest.raises(AlreadyExistsError, match=r"claim is there already"):
        store.put("claim", b"second", new=True)
    assert store.get("claim") == b"first"
    store.put("claim", b"third")
    assert store.get("claim") == b"third"


def test_what_is_missing_is_named_in_full(store: Storage) -> None:
    for call in (store.get, store.size, store.info):
        with pytest.raises(NotFoundError) as caught:
            call("no/such.pt")
        assert store.where("no/such.pt") in str(caught.value)
        assert str(caught.value).count("\n") == 0


def test_a_view_of_an_old_version_is_refused(store: Storage) -> None:
    store.put("k", b"old content")
    etag = store.info("k").etag
    assert bytes(store.view("k", 4, 7, etag=etag)) == b"content"
    store.put("k", b"new and longer content")
    with pytest.raises(StorageError, match="was replaced while it was being read"):
        store.view("k", 4, 7, etag=etag)


@pytest.mark.parametrize("key", ["../outside", "a/../../outside", ".."])
def test_a_key_cannot_leave_its_store(store: Storage, key: str) -> None:
    with pytest.raises((BadInputError, StorageError)):
        store.put(key, b"x")
    with pytest.raises((BadInputError, StorageError)):
        store.get(key)


def test_files_are_put_whole(store: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 5000)
    store.put("copy", source)
    assert store.get("copy") == source.read_bytes()


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file/below"):
        Storage(tmp_path / "file").put("below", b"x")


def test_memory_stores_are_shared_by_name() -> None:
    name = f"memory://{uuid.uuid4().hex}"
    Storage(name).put("k", b"v")
    assert Storage(name + "/").get("k") == b"v"
    assert not Storage(name + "x").exists("k")


@pytest.mark.parametrize(
    ("given", "normal", "parts"),
    [
        ("/data/25MB/", "file:///data/25MB", ("file:///data", "25MB")),
        ("file:///data/../x y", "file:///x y", ("file:///", "x y")),
        ("s3://bucket/Anomaly Detection/", "s3://bucket/Anomaly Detection", None),
        ("s3://bucket/a%20b/1.pt", "s3://bucket/a%20b/1.pt", ("s3://bucket/a%20b", "1.pt")),
        ("s3://bucket", "s3://bucket", ("s3://bucket", "")),
        ("memory://", "memory://", ("memory://", "")),
    ],
)
def test_urls_are_literal(given: str, normal: str, parts: tuple[str, str] | None) -> None:
    place = Location.parse(given)
    assert place.url == Location.parse(normal).url == normal
    assert parts is None or (place.parent.url, place.name) == parts


def test_relative_paths_and_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Location.parse("data/x").url == f"file://{tmp_path}/data/x"
    assert Location.parse("~/x").url == f"file://{tmp_path}/home/x"


@pytest.mark.parametrize("url", ["http://example.org/x", "s3://", "gs://b", "file://relative"])
def test_other_urls_are_refused_in_a_sentence(url: str) -> None:
    with pytest.raises(BadInputError, match=r"write|use a path"):
        Storage(url)


@pytest.mark.parametrize(
    ("given", "store", "key", "url", "shown"),
    [
        ("/data/x y/", "file://", "data/x y", "file:///data/x y", "/data/x y"),
        ("file:///", "file://", "", "file:///", "/"),
        ("s3://b", "s3://b", "", "s3://b", "s3://b"),
        ("s3://b/p/ü%20#?.pt", "s3://b", "p/ü%20#?.pt", "s3://b/p/ü%20#?.pt", None),
        ("memory://", "memory://", "", "memory://", "memory://"),
        ("memory:///k", "memory://", "k", "memory:///k", "memory:///k"),
        ("memory://n/k/l", "memory://n", "k/l", "memory://n/k/l", "memory://n/k/l"),
    ],
)
def test_a_location_is_parsed_once(
    given: str, store: str, key: str, url: str, shown: str | None
) -> None:
    place = Location.parse(given)
    assert (place.store, place.key, place.url, str(place)) == (store, key, url, shown or url)
    assert Location.parse(place.url) == Location.parse(place) == place
    below = place / "a/b.pt"
    assert Location.parse(below.url) == below
    assert (below.name, below.parent, below.parent.parent) == ("b.pt", place / "a", place)


def test_a_store_without_a_name_keeps_what_is_put_below_it() -> None:
    name = uuid.uuid4().hex
    Storage("memory://").at(name).put("k", b"v")
    assert Storage("memory://").get(f"{name}/k") == b"v"


def test_a_home_that_nobody_knows_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 4_000_000)  # no such user in /etc/passwd
    with pytest.raises(BadInputError, match="HOME is not set"):
        Location.parse("~/x")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["FIFO", "a link to a FIFO", "device"])
def test_what_is_no_regular_file_is_never_waited_for(tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    places = {"FIFO": "pipe", "a link to a FIFO": "link", "device": "zero"}
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    store, key = Storage(tmp_path), places[kind]
    for read in (
        lambda: store.get(key),
        lambda: store.get_range(key, 0, 1),
        lambda: store.view(key, 0, 1),
        lambda: store.get_ranges(key, [0], [1]),
    ):
        with pytest.raises(StorageError, match=rf"{key} is not a regular file"):
            read()
