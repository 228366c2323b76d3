"""The local copy of a script's folder: copied once, shared by all ranks, never of mixed versions.

It is at the path that scripts expect, ``/tmp/<S3_object_name>``. The first process copies it under
an exclusive lock, and every process holds the lock shared while its script runs. A run with another
version of the folder waits until no process holds the lock, then replaces the folder. If another
local user owns a part of that path or could write there, each rank gets a private copy at the same
path.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from perseid.compat.scripts.private_path import why_open, why_shared
from perseid.errors import BadInputError, NotFoundError, PerseidError, RunError, StorageError
from perseid.jsontext import parse_json
from perseid.storage import ObjectInfo, Storage

with contextlib.suppress(ImportError):  # missing on Windows, where runs can only be read
    import fcntl

ROOT = Path("/tmp")
"""Path at which scripts expect their folder."""
LOCK_SECONDS = 900.0
"""Maximum wait for the scripts of another run to end, in seconds."""
COPIES = 16
"""Number of objects that are copied concurrently."""
MARK = ".perseid"
"""File in a copied folder that states its version; a folder without it was not made by us."""
MAX_CONFIGURATION = 64 * 1024
"""Maximum size of a file that may be an FMI configuration, in bytes."""
CONFIGURATION_SUFFIXES = (".json", ".conf", ".cfg", ".config", "")
FMI_BACKENDS = ("Direct", "S3", "Redis")
_POLL = 0.05


def script_key(folder: str, script: str, root: Path = ROOT) -> str:
    """Path of a script relative to its folder.

    Parameters
    ----------
    folder
        Prefix of the folder in its bucket, such as ``Anomaly Detection``.
    script
        Path as in payloads, ``/tmp/<folder>/…``, or relative to the folder.

    Raises
    ------
    BadInputError
        The script is not inside the folder.
    """
    path = PurePosixPath(script)
    if path.is_absolute() and path.is_relative_to(root / folder):
        path = path.relative_to(root / folder)
    # The path comes from a request and must not name a file elsewhere.
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in script:
        raise BadInputError(
            f"script is {script!r}, which is not inside its folder: give {root / folder}/… with "
            "the path that the script has below S3_object_name"
        )
    return str(path)


@dataclass(frozen=True)
class ScriptFolder:
    """A copied script folder, which is available while a script runs."""

    path: Path
    """Path of the folder as the script sees it, ``/tmp/<S3_object_name>``."""
    copy: Path
    """Path of the folder as this process sees it."""
    root: Path
    """The folder that contains `path`, such as ``/tmp``."""
    private: Path | None = None
    """Folder that the script's process sees at `root`; None if it sees the real one."""
    why: str = ""
    """Reason for a private root; empty without one."""


@contextmanager
def script_folder(
    storage: Storage, prefix: str, *, root: Path = ROOT, seconds: float = LOCK_SECONDS
) -> Iterator[ScriptFolder]:
    """Provide the folder ``root/prefix`` with every object below `prefix` in a context.

    If another local user could change its content there, it is copied to a folder that only this
    user can enter, which must then be the script's `root`.

    Parameters
    ----------
    storage
        The bucket.
    seconds
        Maximum wait until another version of the folder is no longer used.

    Raises
    ------
    NotFoundError
        There is no object below the prefix.
    BadInputError
        The key of an object leads out of the folder, or the object is a link.
    RunError
        Scripts of another run used the folder for too long, or it was not made by us.
    """
    objects = _objects(storage, prefix)
    target = root / prefix
    with _place(root, prefix) as (lock, why):
        if lock is not None:
            _hold(storage, prefix, objects, target, lock, seconds)
            yield ScriptFolder(target, target, root)
            return
        # mkdtemp creates it with access for this user only.
        with tempfile.TemporaryDirectory(prefix="perseid-script-") as private:
            copy = Path(private, prefix)
            _copy_all(storage, prefix, objects, copy)
            yield ScriptFolder(target, copy, root, Path(private), why)


def _digest(prefix: str) -> str:
    return hashlib.sha256(prefix.encode()).hexdigest()[:16]


@contextmanager
def _place(root: Path, prefix: str) -> Iterator[tuple[int | None, str]]:
    """Yield the lock of the shared folder, or None and why other users could change the folder."""
    # One lock per user and folder; a digest, because prefixes contain slashes and spaces.
    path = root / f".perseid-{os.geteuid()}-{_digest(prefix)}.lock"
    with ExitStack() as stack:
        try:
            root.mkdir(parents=True, exist_ok=True)
            why = why_shared(root, prefix)
        except OSError as error:
            raise StorageError(f"{root / prefix} cannot be made: {error.strerror}") from error
        lock = None
        if why is None:
            try:
                lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                stack.callback(os.close, lock)
                why = why_open(path, os.fstat(lock))
            except OSError as error:
                why = f"{path} cannot be opened ({error.strerror})"
        yield (None, why) if why else (lock, "")


def _hold(
    storage: Storage,
    prefix: str,
    objects: Sequence[ObjectInfo],
    target: Path,
    lock: int,
    seconds: float,
) -> None:
    """Make the shared folder hold this version of the objects, and hold its lock shared."""
    # From names, sizes and entity tags, so that an unchanged folder is not downloaded.
    version = _version(storage, prefix, objects)
    deadline = time.monotonic() + seconds
    while True:
        if _try(lock, fcntl.LOCK_SH) and _holds(target, version):
            return
        # Release before requesting the exclusive lock: two processes that hold it shared would
        # wait for each other.
        fcntl.flock(lock, fcntl.LOCK_UN)
        if _try(lock, fcntl.LOCK_EX):
            if not _holds(target, version):
                _replace(storage, prefix, objects, version, target)
            continue  # the next round takes the shared lock
        # Runs with different versions take turns, so a long run is waited for, but not forever.
        if time.monotonic() > deadline:
            raise RunError(
                f"{target} has been in use by scripts of another run for {seconds:.0f} s: "
                "runs with other versions of one script folder go one after the other"
            )
        time.sleep(_POLL)


def holds_fmi_configuration(storage: Storage, prefix: str) -> bool:
    """Whether the folder has an FMI configuration, a small JSON file that names backends."""
    for info in storage.list(prefix):
        suffix = PurePosixPath(info.key).suffix.lower()
        # Scripts come with models of gigabytes, which are not downloaded to look for JSON.
        if suffix not in CONFIGURATION_SUFFIXES or info.size > MAX_CONFIGURATION:
            continue
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            backends = parse_json(storage.get(info.key))["backends"]
            if any(isinstance(backends.get(name), dict) for name in FMI_BACKENDS):
                return True
    return False


def _objects(storage: Storage, prefix: str) -> list[ObjectInfo]:
    """All objects below the prefix, after a check that no key leads out of the folder."""
    try:
        found = list(storage.list(prefix))
    except StorageError as error:
        if "invalid path" in str(error):  # the client of the store refuses such keys itself
            raise _leads_out(storage.where(prefix), str(error)) from error
        raise
    if not found:
        raise NotFoundError(
            f"there is no script folder at {storage.where(prefix)}: it holds nothing"
        )
    for info in found:
        inner = PurePosixPath(info.key).relative_to(prefix)
        if info.key.startswith("/") or ".." in inner.parts or "\\" in info.key or "\0" in info.key:
            raise _leads_out(storage.where(prefix), info.key)
        _no_link(storage, info.key)
    folders = {str(parent) for info in found for parent in PurePosixPath(info.key).parents}
    # Consoles of object stores create empty objects in place of folders.
    return [info for info in found if info.key not in folders | {prefix}]


def _leads_out(where: str, key: str) -> BadInputError:
    return BadInputError(
        f"the script folder {where} holds a key that leads out of it ({key}): remove it"
    )


def _no_link(storage: Storage, key: str) -> None:
    path, base = storage.local_path(key), storage.local_path()
    while path is not None and path != base:
        if path.is_symlink():
            raise BadInputError(
                f"the script folder holds a link, {path}: put the file itself there"
            )
        path = path.parent


def _version(storage: Storage, prefix: str, objects: Sequence[ObjectInfo]) -> str:
    lines = [f"{info.key}\0{info.size}\0{info.etag}" for info in objects]
    # With the location, since folders of two buckets may have the same prefix.
    text = "\n".join([storage.where(prefix), *sorted(lines)])
    return hashlib.sha256(text.encode()).hexdigest()


def _try(lock: int, how: int) -> bool:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holds(target: Path, version: str) -> bool:
    """Whether the folder exists, is ours, and has this version."""
    try:
        ours = not target.is_symlink() and why_open(target, target.stat()) is None
        return ours and (target / MARK).read_text() == version
    except OSError:
        return False


def _is_replaceable(target: Path) -> bool:
    """Whether the folder is missing, empty, or made by us."""
    if target.is_symlink() or not target.is_dir():
        return not target.is_symlink() and not target.exists()
    return (target / MARK).is_file() or not any(target.iterdir())


def _replace(
    storage: Storage, prefix: str, objects: Sequence[ObjectInfo], version: str, target: Path
) -> None:
    """Copy the objects to a new folder beside the target, which then replaces the target."""
    if not _is_replaceable(target):
        raise RunError(
            f"{target} is there already and was not made by perseid: move it away, scripts need "
            "this very path"
        )
    beginning = f".perseid-{_digest(prefix)}-"
    # Left by processes that were killed while copying; nobody copies now, as we hold the lock.
    for left in target.parent.glob(f"{beginning}*"):
        if why_open(left, left.lstat()) is None:
            shutil.rmtree(left, ignore_errors=True)
    try:
        fresh = Path(tempfile.mkdtemp(prefix=beginning, dir=target.parent))
    except OSError as error:
        raise StorageError(f"{target.parent} cannot be written: {error.strerror}") from error
    try:
        _copy_all(storage, prefix, objects, fresh)
        # The mark is written last, so that an interrupted copy has none.
        (fresh / MARK).write_text(version)
        if target.is_dir():
            _empty(target)
        fresh.rename(target)  # over the empty folder, which is one atomic step
    except PerseidError:
        raise
    except OSError as error:
        raise _not_copied(target, error) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _empty(folder: Path) -> None:
    """Remove the content of a folder of ours; the mark goes last, as it tells whose it is."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == MARK):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _copy_all(storage: Storage, prefix: str, objects: Sequence[ObjectInfo], folder: Path) -> None:
    try:
        with ThreadPoolExecutor(COPIES) as pool:
            # list(), so that an error of any copy is raised here.
            list(pool.map(lambda info: _copy(storage, prefix, info.key, folder), objects))
    except PerseidError:  # a StorageError, which is also an OSError
        raise
    except OSError as error:
        raise _not_copied(folder, error) from error


def _not_copied(folder: Path, error: OSError) -> StorageError:
    return StorageError(
        f"the script folder cannot be copied to {folder}: {error.strerror or error}"
    )


def _copy(storage: Storage, prefix: str, key: str, folder: Path) -> None:
    path = folder / PurePosixPath(key).relative_to(prefix)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(storage.get(key))
