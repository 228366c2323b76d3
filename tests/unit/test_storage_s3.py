"""Storage against a real S3 server: pages, conditions, signatures, endpoints."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from perseid.errors import AlreadyExistsError, BadInputError, NotFoundError, StorageError
from perseid.storage import Storage

pytestmark = pytest.mark.s3


@pytest.mark.parametrize("key", ["1.pt", "a space/ü.pt", "per%20cent%.pt", "h#sh?q=1+2&3.pt"])
def test_any_key_comes_back_as_it_was(s3, key: str) -> None:
    store = Storage(s3.bucket() + "/Anomaly Detection")
    store.put(key, b"0123456789")
    assert store.get(key) == b"0123456789"
    assert store.get_range(key, 2, 3) == b"234"
    assert store.get_ranges(key, [8, 0], [2, 1]) == [b"89", b"0"]
    assert [(info.key, info.size) for info in store.list()] == [(key, 10)]
    assert store.where(key) == f"{store.url}/{key}"


@pytest.mark.parametrize("count", [0, 1000, 1001, 2001])
def test_every_page_is_listed_and_deleted(s3, count: int) -> None:
    store = Storage(s3.bucket() + "/data")
    keys = [f"{index}.pt" for index in range(count)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: store.put(key, b"x"), keys))
    Storage(store.url + "-other").put("unrelated.pt", b"x")
    assert sorted(info.key for info in store.list()) == sorted(keys)
    store.delete([*keys, "gone"])
    assert list(store.list()) == []


def test_an_object_that_must_be_new_is_not_replaced(s3) -> None:
    store = Storage(s3.bucket())
    store.put("claim", b"first", new=True)
    with pytest.raises(AlreadyExistsError, match="claim"):
        store.put("claim", b"second", new=True)
    assert store.get("claim") == b"first"


def test_a_view_of_an_old_version_is_refused(s3) -> None:
    store = Storage(s3.bucket())
    store.put("k", b"old content")
    etag = store.info("k").etag
    assert bytes(store.view("k", 4, 7, etag=etag)) == b"content"
    store.put("k", b"new and longer content")
    with pytest.raises(StorageError, match="replaced while"):
        store.view("k", 4, 7, etag=etag)


def test_large_files_are_put_in_parts(s3, tmp_path: Path) -> None:
    source = tmp_path / "large"
    source.write_bytes(b"perseid " * (2 << 20))
    store = Storage(s3.bucket())
    store.put("large", source)
    assert store.size("large") == 16 << 20
    assert store.get_range("large", (16 << 20) - 8, 8) == b"perseid "


def test_missing_keys_and_buckets_are_named(s3) -> None:
    with pytest.raises(NotFoundError, match=r"no/such\.pt is not there"):
        Storage(s3.bucket()).get("no/such.pt")
    with pytest.raises(StorageError, match="never-made"):
        Storage("s3://never-made").get("k")


def test_a_wrong_secret_is_a_sentence(s3, monkeypatch: pytest.MonkeyPatch) -> None:
    url = s3.bucket()
    Storage(url).put("k", b"v")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    for call in (lambda s: s.get("k"), lambda s: s.put("k", b"x"), lambda s: list(s.list())):
        with pytest.raises(StorageError, match=r"secret key does not fit .*SignatureDoesNotMatch"):
            call(Storage(url))


def test_keys_of_a_profile_are_used(s3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    url = s3.bucket()
    Storage(url).put("k", b"v")
    lines = [f"aws_{name} = {s3.env['AWS_' + name.upper()]}" for name in ("access_key_id",)]
    lines += [f"aws_secret_access_key = {s3.env['AWS_SECRET_ACCESS_KEY']}"]
    (tmp_path / "credentials").write_text("[default]\n[tests]\n" + "\n".join(lines) + "\n")
    (tmp_path / "config").write_text("[profile tests]\nregion = us-east-1\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "tests")
    assert Storage(url).get("k") == b"v"


def test_an_endpoint_where_nothing_listens_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(StorageError, match=r"no S3 server answers at http://127\.0\.0\.1:9"):
        Storage("s3://bucket")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:8333")
    with pytest.raises(BadInputError, match="is not a URL"):
        Storage("s3://bucket")
