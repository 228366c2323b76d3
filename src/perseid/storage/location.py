"""Locations of objects and folders: URLs and paths on a disk, parsed once.

URLs are literal: nothing in them is percent-encoded, and the key is the text after the store.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perseid.errors import BadInputError

_FILE, _S3, _MEMORY = "file", "s3", "memory"
_SCHEMES = (_FILE, _S3, _MEMORY)


@dataclass(frozen=True, order=True)
class Location:
    """A place in a store: an object, a prefix, or the whole store.

    Examples
    --------
    >>> place = Location.parse("s3://survey/cutouts/") / "1.pt"
    >>> place.store, place.key, place.name
    ('s3://survey', 'cutouts/1.pt', '1.pt')
    >>> print(place.parent)
    s3://survey/cutouts
    """

    store: str
    """``file://`` (the whole disk), ``s3://bucket``, or ``memory://name`` of this process."""
    key: str = ""
    """Parts joined by ``/``, with no ``/`` at either end; empty for the whole store."""

    @classmethod
    def parse(cls, place: Location | str | Path) -> Location:
        """Parse a URL or a path; a relative path starts at the current folder.

        Raises
        ------
        BadInputError
            The scheme is not ``file``, ``s3`` or ``memory``, the bucket is missing, a ``file://``
            URL is not absolute, it has a control character, or the home folder for ``~`` is
            unknown.
        """
        if isinstance(place, Location):
            return place
        text = str(place)
        odd = next((letter for letter in text if letter < " " or letter == "\x7f"), None)
        if odd is not None:  # the client refuses such keys, and says so on several lines
            raise BadInputError(
                f"{text!r} has the control character U+{ord(odd):04X} in its name: name another "
                "place"
            )
        if "://" not in text:
            return cls("file://", _absolute(_expand_home(text)))
        scheme, _, rest = text.partition("://")
        if scheme not in _SCHEMES:
            raise BadInputError(f"no store for {text!r}: use a path, file://, s3:// or memory://")
        if scheme == _FILE and not rest.startswith("/"):
            raise BadInputError(f"{text!r} is not an absolute path: write file:///…")
        if scheme == _S3 and not rest.strip("/"):
            raise BadInputError(f"{text!r} names no bucket: write s3://bucket/prefix")
        if scheme == _FILE:
            return cls("file://", _absolute(rest))
        name, _, key = rest.partition("/")
        return cls(f"{scheme}://{name}", key.strip("/"))

    @property
    def scheme(self) -> str:
        """``file``, ``s3`` or ``memory``."""
        return self.store.partition("://")[0]

    @property
    def bucket(self) -> str:
        """The bucket's name, or the memory store's; empty on a disk."""
        return self.store.partition("://")[2]

    @property
    def url(self) -> str:
        """The whole URL, without a trailing ``/``."""
        return f"{self.store}/{self.key}" if self.key or self.scheme == _FILE else self.store

    @property
    def path(self) -> Path | None:
        """The path on this machine's disk; None for other stores."""
        return Path("/", self.key) if self.scheme == _FILE else None

    @property
    def name(self) -> str:
        """The key's last part; empty for a whole store."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> Location:
        """The folder that contains it; the parent of a whole store is the store itself."""
        return Location(self.store, self.key.rpartition("/")[0])

    @classmethod
    def common_folder(cls, places: Sequence[Location]) -> Location | None:
        """The deepest folder that contains all places; None if their stores differ."""
        if len({place.store for place in places}) != 1:
            return None
        folders = [place.parent.key.split("/") for place in places]
        same = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))
        return cls(places[0].store, "/".join(parts[0] for parts in same))

    def key_below(self, folder: Location) -> str:
        """The key of this place relative to a folder that contains it."""
        return self.key.removeprefix(folder.key).strip("/")

    def __truediv__(self, key: str) -> Location:
        """The location of `key` below this one."""
        return Location(self.store, "/".join(p for p in (self.key, key.strip("/")) if p))

    def __str__(self) -> str:
        """The form for people: a plain path on a disk, otherwise the URL."""
        return self.url.removeprefix("file://")


def _expand_home(path: str) -> str:
    expanded = os.path.expanduser(path)  # noqa: PTH111 - returns the path unchanged if there is no home
    if expanded == "~" or expanded.startswith("~/"):
        raise BadInputError(
            f"{path!r} starts at the home folder, but HOME is not set: write the full path"
        )
    return expanded


def _absolute(path: str) -> str:
    """Make a path absolute, without the leading ``/``; resolves ``.`` and ``..`` but not symbolic
    links."""
    return os.path.abspath(path).strip("/")  # noqa: PTH100
