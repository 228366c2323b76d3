"""List a folder that others write to, including names that the object-store client refuses.

`Storage.list` fails as a whole at the first name that the client refuses (``data//log.txt``, a name
with a tab) and at the first unreadable sub-folder. That is right for objects that this package
wrote, but a survey's folder was written by others: here, unusable names are reported and everything
else is listed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote_plus, urlencode

import obstore
from obstore.exceptions import BaseError, InvalidPathError
from obstore.store import S3Store

from perseid.errors import StorageError
from perseid.storage.listing_pages import endless
from perseid.storage.s3 import open_url
from perseid.storage.settings import read_settings
from perseid.storage.store import ObjectInfo, Storage

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_SECONDS = 60.0
"""Deadline of one listing request, seconds."""
_LARGEST_PAGE = 16 << 20
"""Most bytes read of one listing page; S3's have at most 1,000 keys of 1,024 bytes."""
NOT_OPENED = "was not opened"
"""How the reason begins for what a bounded scan has left out."""
_PAGE = "{http://s3.amazonaws.com/doc/2006-03-01/}"


@dataclass(frozen=True)
class Skipped:
    """A listed name that cannot be used."""

    key: str
    """The name in the store, relative to the storage's location; a folder ends in ``/``."""
    reason: str
    """Why, worded to follow the key in a sentence: ``has an empty part in its name``."""


@dataclass(frozen=True)
class Scan:
    """Everything below a prefix."""

    objects: tuple[ObjectInfo, ...]
    """Readable objects, in no particular order."""
    skipped: tuple[Skipped, ...]
    """Everything that cannot be used."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing was left out because there was too much."""
        return not any(entry.reason.startswith(NOT_OPENED) for entry in self.skipped)


def scan(storage: Storage, prefix: str = "", *, most: int | None = None) -> Scan:
    """List everything below `prefix`, whatever the names are.

    With `most`, no further sub-folder on a disk is opened after so many entries; those that are
    left are one skipped entry. Direct files are always complete.

    Symbolic links on a disk are followed. Broken links, further links to a folder that was already
    listed, and special files are skipped.

    Raises
    ------
    NotFoundError, ForbiddenError, StorageError
        The folder itself, or the bucket, cannot be listed.
    """
    # Walked here because the client's listing stops at the first name that it refuses.
    folder = storage.local_path(prefix)
    if folder is not None:
        return _split(_walk(folder, prefix.strip("/"), most))
    try:
        return Scan(tuple(i for i in storage.list(prefix) if i.key != prefix.strip("/")), ())
    except StorageError as error:
        store = storage.client
        # A second listing helps only if the first failed because of a name.
        if not isinstance(error.__cause__, InvalidPathError) or not isinstance(store, S3Store):
            raise
        return _split(_raw(storage, store, prefix))


def unusable(key: str) -> str:
    """Why the object-store client refuses a key; empty if it accepts it."""
    parts = key.split("/")
    if "" in parts:
        return "has an empty part in its name"
    if "." in parts or ".." in parts:
        return "has a part . or .. in its name"
    odd = next((c for c in key if c < " " or c == "\x7f"), None)
    if odd is not None:
        return f"has the control character U+{ord(odd):04X} in its name"
    if any("\ud800" <= c <= "\udfff" for c in key):
        return "has a name that is not UTF-8"
    return ""


def _split(found: Iterator[ObjectInfo | Skipped]) -> Scan:
    objects, skipped = [], []
    for entry in found:
        if isinstance(entry, Skipped):
            skipped.append(entry)
        elif reason := unusable(entry.key):
            skipped.append(Skipped(entry.key, reason))
        else:
            objects.append(entry)
    return Scan(tuple(objects), tuple(skipped))


def _walk(top: Path, prefix: str, most: int | None) -> Iterator[ObjectInfo | Skipped]:
    """Walk the files below a folder on a disk, with keys below `prefix`; nothing if it does not
    exist."""
    seen: set[tuple[int, int]] = set()
    folders, count = [(str(top), prefix)], 0
    while folders:
        path, key = folders.pop()
        if most is not None and count > most:
            yield Skipped(
                key + "/", f"{NOT_OPENED}, like all further sub-folders: more than {most:,} entries"
            )
            return
        try:
            about = os.stat(path)  # noqa: PTH116 - strings are faster, and there may be many
            # Compared by device and inode, so that cyclic links end and no file is counted twice.
            if (about.st_dev, about.st_ino) in seen:
                yield Skipped(key + "/", "is a link to a folder that is listed already")
                continue
            seen.add((about.st_dev, about.st_ino))
            with os.scandir(path) as entries:
                inner = [(entry, f"{key}/{entry.name}" if key else entry.name) for entry in entries]
        except FileNotFoundError:
            continue  # removed meanwhile, or never there
        except OSError as error:
            if path == str(top):
                raise StorageError(f"{path} cannot be listed: {error.strerror}") from error
            yield Skipped(key + "/", f"cannot be listed ({error.strerror})")
            continue
        count += len(inner)
        for entry, name in inner:
            found = _entry(entry, name)
            if found is None:
                folders.append((entry.path, name))
            else:
                yield found


def _entry(entry: os.DirEntry[str], key: str) -> ObjectInfo | Skipped | None:
    """One entry of a folder; None if it is itself a folder."""
    try:
        about = entry.stat()
    except OSError as error:
        dangling = entry.is_symlink() and isinstance(error, FileNotFoundError)
        return Skipped(
            key, "is a link to nothing" if dangling else f"cannot be read ({error.strerror})"
        )
    if stat.S_ISDIR(about.st_mode):
        return None
    if not stat.S_ISREG(about.st_mode):
        return Skipped(key, "is not a regular file")
    # Must equal the entity tag that obstore computes for a file: inode, microseconds, size.
    etag = f'"{about.st_ino:x}-{about.st_mtime_ns // 1000:x}-{about.st_size:x}"'
    return ObjectInfo(key, about.st_size, etag)


def _raw(storage: Storage, store: S3Store, prefix: str) -> Iterator[ObjectInfo | Skipped]:
    """Every key below a prefix of a bucket, without folder markers, from S3's own listing."""
    base = storage.location.key + "/" if storage.location.key else ""
    below = (storage.location / prefix).key
    begin, after = below + "/" if below else "", ""
    while True:
        page, before = _page(storage, store, begin, after), after
        for entry in page.iter(_PAGE + "Contents"):
            key = unquote_plus(entry.findtext(_PAGE + "Key", ""))
            # S3 continues after this key (`start-after`), which needs no continuation token.
            after = key
            if not key.endswith("/"):
                etag = entry.findtext(_PAGE + "ETag")
                size = int(entry.findtext(_PAGE + "Size", "0"))
                yield ObjectInfo(key.removeprefix(base), size, etag)
        if page.findtext(_PAGE + "IsTruncated") != "true":
            return
        if after == before:
            raise endless(storage.where(prefix), "it names no further key")


def _page(storage: Storage, store: S3Store, begin: str, after: str) -> Element:
    """Fetch one page of ListObjectsV2, through a URL that the store's client signs.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html. The client signs URLs
    of objects only, so the listing's parameters stand in its endpoint and the object's name is
    the value of a parameter that S3 ignores, as it does all that begin with ``x-``.
    """
    from xml.etree import ElementTree  # not imported by workers, which start faster without it

    query = {"list-type": "2", "encoding-type": "url", "prefix": begin, "start-after": after}
    where = storage.where()
    try:
        options = dict(store.config)
        bucket = storage.location.bucket
        region = options.get("region", "us-east-1")
        server = str(options.pop("endpoint", f"https://s3.{region}.amazonaws.com")).rstrip("/")
        text = urlencode({k: v for k, v in query.items() if v}, quote_via=quote)
        options |= {
            "bucket": bucket,
            "endpoint": f"{server}/{bucket}?{text}&x-perseid=",
            "virtual_hosted_style_request": "true",
        }
        signer = S3Store(
            config=options,  # type: ignore[arg-type]
            client_options=store.client_options,
            credential_provider=store.credential_provider,
        )
        # The signature must outlive the request.
        url = obstore.sign(signer, "GET", "list", timedelta(seconds=2 * _SECONDS))
        with open_url(url, _SECONDS, read_settings()) as answer:
            page = ElementTree.fromstring(answer.read(_LARGEST_PAGE))
    except (BaseError, OSError, ValueError, ElementTree.ParseError) as error:
        raise StorageError(
            f"{where} holds a key with an empty part or a control character in its name, and "
            f"listing it in another way failed ({error}): rename or delete that key"
        ) from error
    if page.tag != _PAGE + "ListBucketResult":
        raise StorageError(f"{where}: what answers a listing is not S3")
    return page
