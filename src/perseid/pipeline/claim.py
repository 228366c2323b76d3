"""Claim a prefix for one run by a conditional write; a previous run is removed only after that."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from perseid.errors import (
    AlreadyExistsError,
    BadInputError,
    NotFoundError,
    RunError,
    StorageError,
)
from perseid.jsontext import json_bytes
from perseid.pipeline import layout
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.rank_outputs import READERS
from perseid.plaintext import option
from perseid.storage import ObjectInfo, Storage, scan

_FOLDERS = ("ranks", "logs", "slurm")
"""Folders that a run writes into."""
_KEPT = frozenset({layout.MANIFEST, layout.DRIVER})
"""Objects that the new run has already written by the time the previous run is removed."""


@dataclass(frozen=True)
class FormerRun:
    """The run found at a prefix before anything was changed there."""

    manifest: ObjectInfo | None
    """Listing entry of its manifest; None if only remains of a run are there."""
    world_size: int | None
    """Number of its ranks; None if its manifest cannot be read."""

    @classmethod
    def at(cls, storage: Storage) -> FormerRun:
        """Find out what is at a prefix now.

        Raises
        ------
        RunError
            An object of the run lies behind a symbolic link, and nothing is ever removed through
            one.
        """
        link = next(_links(storage), None)
        if link is not None:
            raise RunError(
                f"{link} is a symbolic link, and {option('replace', True)} removes nothing "
                "through one: name the folder that it points to, or remove the link"
            )
        try:
            info = storage.info(layout.MANIFEST)
        except NotFoundError:
            return cls(None, None)
        try:
            return cls(info, Manifest.load(storage).world_size)
        except (NotFoundError, BadInputError):
            return cls(info, None)

    def keys(self, storage: Storage) -> list[str]:
        """Keys of all objects that the run wrote; other objects at the prefix are not included."""
        found = [info.key for info in scan(storage).objects if layout.is_of_run(info.key)]
        ranks = self.world_size
        return [
            key
            for key in found
            if key not in _KEPT and (ranks is None or (layout.rank_of(key) or 0) < ranks)
        ]


def claim(storage: Storage, manifest: Manifest, former: FormerRun | None = None) -> None:
    """Claim the prefix by writing the manifest: if several runs try at once, exactly one succeeds.

    Parameters
    ----------
    storage
        Storage of the prefix.
    former
        The run to replace; None if the prefix must hold nothing of any run. It is removed once the
        prefix is claimed, and left alone otherwise.

    Raises
    ------
    RunError
        Another run, or the remains of one, is at the prefix, or another run claimed it first.
    """
    # Listed before the claim: afterwards the new run's own objects would be among them.
    keys = former.keys(storage) if former else []
    if former is None and (left := _left(storage)) is not None:
        raise taken(storage, left)
    data = json_bytes(manifest.to_json())
    try:
        if former is None or former.manifest is None:
            storage.put(layout.MANIFEST, data, new=True)
        else:
            # The write succeeds only if the manifest is unchanged: if two runs replace the same
            # run, one wins and the other gets an error.
            storage.swap(layout.MANIFEST, data, former.manifest)
    except (AlreadyExistsError, NotFoundError) as error:
        # A retried write can meet its own first attempt. The run id in the manifest tells whose it
        # is.
        if not _is_ours(storage, manifest):  # else only the answer was lost
            raise taken(storage, layout.MANIFEST, meanwhile=former is not None) from error
    # Removed last: a failure before this line leaves the previous run untouched.
    remove(storage, keys)


def refuse_if_taken(storage: Storage) -> None:
    """Raise `RunError` if a run, or the remains of one, is at the prefix."""
    left = _left(storage)
    if left is not None:
        raise taken(storage, left)


def give_up(storage: Storage) -> None:
    """Remove a run that claimed the prefix but never began."""
    remove(storage, FormerRun.at(storage).keys(storage))
    # The manifest goes last, because it is what holds the claim.
    storage.delete([layout.MANIFEST])


def remove(storage: Storage, keys: list[str]) -> None:
    """Delete objects; on a disk never through a symbolic link, even one that has just appeared."""
    root = storage.local_path()
    with ThreadPoolExecutor(READERS) as pool:
        if root is None:
            list(pool.map(lambda key: storage.delete([key]), keys))
        else:
            list(pool.map(lambda key: _unlink(root, key), keys))


def taken(storage: Storage, key: str, *, meanwhile: bool = False) -> RunError:
    """Build the error for a taken prefix; `meanwhile` says that another process has just replaced
    the run."""
    where = storage.where()
    try:
        manifest = Manifest.load(storage)
    except (NotFoundError, BadInputError):
        return RunError(
            f"{where} holds results of a former run ({key}): choose another place for results, "
            f"or remove them with {option('replace', True)}"
        )
    begun = f"{datetime.fromtimestamp(manifest.created, UTC):%Y-%m-%d %H:%M:%S} UTC"
    if meanwhile:
        return RunError(
            f"{where} was taken by run {manifest.run_id}, which began {begun}, while this one was "
            "about to replace what was there: choose another place for results"
        )
    state = "ended" if storage.exists(layout.SUMMARY) else "did not end yet"
    return RunError(
        f"{where} belongs to run {manifest.run_id}, which began {begun} and {state}: choose "
        "another place for results, go on with it by `perseid resume`, or remove it with "
        f"{option('replace', True)}"
    )


def _left(storage: Storage) -> str | None:
    found = (info.key for info in scan(storage).objects if layout.is_of_run(info.key))
    return next((key for key in found if key != layout.DRIVER), None)


def _is_ours(storage: Storage, manifest: Manifest) -> bool:
    with contextlib.suppress(NotFoundError, BadInputError):
        return Manifest.load(storage).run_id == manifest.run_id
    return False


def _links(storage: Storage) -> Iterator[Path]:
    """Symbolic links in place of a run's folder, of its objects, or of the folders that hold
    them."""
    root = storage.local_path()
    if root is None:
        return
    if root.is_symlink():
        yield root
    if not root.is_dir():
        return
    for entry in root.iterdir():
        if entry.is_symlink() and (entry.name in _FOLDERS or layout.is_of_run(entry.name)):
            yield entry
    for name in _FOLDERS:
        for folder, folders, files in os.walk(root / name):
            yield from (
                path for name in (*folders, *files) if (path := Path(folder, name)).is_symlink()
            )


def _unlink(root: Path, key: str) -> None:
    """Delete a file below a folder, opening each folder on the way without following a link."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    *folders, name = key.split("/")
    try:
        descriptor = os.open(root, flags)
        try:
            for folder in folders:
                # Relative to the open folder's descriptor, so that nobody can swap in a link
                # between check and use.
                inner = os.open(folder, flags, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            os.unlink(name, dir_fd=descriptor)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return
    except OSError as error:
        reason = error.strerror
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            reason = "a symbolic link is on the way"
        raise StorageError(f"{root / key} cannot be removed: {reason}") from error
