"""The local copy of a script's folder: copied once, shared by the ranks, never of mixed versions.

It lies at the very path that scripts know, ``/tmp/<S3_object_name>``. Whoever comes first copies
it under an exclusive lock; everyone holds the lock shared while a script runs; a run with another
version of the folder waits until nobody does, then replaces it. Where another local user owns a
part of that path or could write there, each rank has a copy of its own at the same path.
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

with contextlib.suppress(ImportError):  # not on Windows, where runs can be read
    import fcntl

ROOT = Path("/tmp")
"""Path at which scripts expect their folder."""
LOCK_SECONDS = 900.0
"""Longest wait for the scripts of another run to end."""
COPIES = 16
"""Objects copied at once."""
MARK = ".perseid"
"""File inside a copied folder that says which version it is; a folder without it is not ours."""
MAX_CONFIGURATION = 64 * 1024
"""Bytes of the largest file that may be an FMI configuration."""
CONFIGURATION_SUFFIXES = (".json", ".conf", ".cfg", ".config", "")
FMI_BACKENDS = ("Direct", "S3", "Redis")
_POLL = 0.05


def script_key(folder: str, script: str, root: Path = ROOT) -> str:
    """Path of a script inside its folder.

    Parameters
    ----------
    folder
        Prefix of the folder in its bucket, e.g. ``Anomaly Detection``.
    script
        As payloads name it, ``/tmp/<folder>/…``, or relative to the folder.

    Raises
    ------
    BadInputError
        The script is not inside the folder.
    """
    path = PurePosixPath(script)
    if path.is_absolute() and path.is_relative_to(root / folder):
        path = path.relative_to(root / folder)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in script:
        raise BadInputError(
            f"script is {script!r}, which is not inside its folder: give {root / folder}/… with "
            "the path that the script has below S3_object_name"
        )
    return str(path)


@dataclass(frozen=True)
class ScriptFolder:
    """A copied script folder, for as long as a script runs."""

    path: Path
    """Path for the script: ``/tmp/<S3_object_name>``."""
    copy: Path
    """Path for this process."""
    root: Path
    """The folder that `path` is in, e.g. ``/tmp``."""
    private: Path | None = None
    """The folder that the script's process sees at `root`; None: what all processes see there."""
    why: str = ""
    """Why it has a root of its own."""


@contextmanager
def script_folder(
    storage: Storage, prefix: str, *, root: Path = ROOT, seconds: float = LOCK_SECONDS
) -> Iterator[ScriptFolder]:
    """The folder ``root/prefix``, holding every object below `prefix`, while the block runs.

    Where another local user could change what lies there, it is copied to a folder that only this
    user can enter, which is to be the script's `root`.

    Parameters
    ----------
    storage
        Of the bucket.
    seconds
        How long to wait for another version of the folder to be free.

    Raises
    ------
    NotFoundError
        The prefix holds nothing.
    BadInputError
        An object's key leads out of the folder, or is a link.
    RunError
        The place is taken: by another run's scripts for too long, or by somebody's own folder.
    """
    objects = _objects(storage, prefix)
    target = root / prefix
    with _place(root, prefix) as (lock, why):
        if lock is not None:
            _hold(storage, prefix, objects, target, lock, seconds)
            yield ScriptFolder(target, target, root)
            return
        with tempfile.TemporaryDirectory(prefix="perseid-script-") as private:
            copy = Path(private, prefix)
            _copy_all(storage, prefix, objects, copy)
            yield ScriptFolder(target, copy, root, Path(private), why)


def _digest(prefix: str) -> str:
    return hashlib.sha256(prefix.encode()).hexdigest()[:16]


@contextmanager
def _place(root: Path, prefix: str) -> Iterator[tuple[int | None, str]]:
    """The lock of the shared place, or None and why that place is not safe from other users."""
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
    """Have the folder of all ranks hold this version of the objects; the lock is shared then."""
    # By names, sizes and entity tags: nothing is downloaded to find out that nothing changed.
    version = _version(storage, prefix, objects)
    deadline = time.monotonic() + seconds
    while True:
        if _try(lock, fcntl.LOCK_SH) and _holds(target, version):
            return
        # Let go before asking for the exclusive lock: two that hold it shared would wait for each
        # other.
        fcntl.flock(lock, fcntl.LOCK_UN)
        if _try(lock, fcntl.LOCK_EX):
            if not _holds(target, version):
                _replace(storage, prefix, objects, version, target)
            continue  # the shared lock comes by the next round
        if time.monotonic() > deadline:
            raise RunError(
                f"{target} has been in use by scripts of another run for {seconds:.0f} s: "
                "runs with other versions of one script folder go one after the other"
            )
        time.sleep(_POLL)


def holds_fmi_configuration(storage: Storage, prefix: str) -> bool:
    """Whether an FMI configuration lies in the folder: a small file of JSON that names backends."""
    for info in storage.list(prefix):
        suffix = PurePosixPath(info.key).suffix.lower()
        if suffix not in CONFIGURATION_SUFFIXES or info.size > MAX_CONFIGURATION:
            continue
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            backends = parse_json(storage.get(info.key))["backends"]
            if any(isinstance(backends.get(name), dict) for name in FMI_BACKENDS):
                return True
    return False


def _objects(storage: Storage, prefix: str) -> list[ObjectInfo]:
    """Every object below the prefix, each at a safe path."""
    try:
        found = list(storage.list(prefix))
    except StorageError as error:
        if "invalid path" in str(error):  # the store's client refuses such a key by itself
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
    return [info for info in found if info.key not in folders | {prefix}]  # no "folder" objects


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
    text = "\n".join([storage.where(prefix), *sorted(lines)])
    return hashlib.sha256(text.encode()).hexdigest()


def _try(lock: int, how: int) -> bool:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holds(target: Path, version: str) -> bool:
    """Whether the folder is there, ours, and of this version."""
    try:
        ours = not target.is_symlink() and why_open(target, target.stat()) is None
        return ours and (target / MARK).read_text() == version
    except OSError:
        return False


def _is_replaceable(target: Path) -> bool:
    """Whether it is empty, or made by us."""
    if target.is_symlink() or not target.is_dir():
        return not target.is_symlink() and not target.exists()
    return (target / MARK).is_file() or not any(target.iterdir())


def _replace(
    storage: Storage, prefix: str, objects: Sequence[ObjectInfo], version: str, target: Path
) -> None:
    """Copy the objects beside the target, then put the copy in its place."""
    if not _is_replaceable(target):
        raise RunError(
            f"{target} is there already and was not made by perseid: move it away, scripts need "
            "this very path"
        )
    beginning = f".perseid-{_digest(prefix)}-"
    for left in target.parent.glob(f"{beginning}*"):  # of copies that were killed: we hold the lock
        if why_open(left, left.lstat()) is None:
            shutil.rmtree(left, ignore_errors=True)
    try:
        fresh = Path(tempfile.mkdtemp(prefix=beginning, dir=target.parent))
    except OSError as error:
        raise StorageError(f"{target.parent} cannot be written: {error.strerror}") from error
    try:
        _copy_all(storage, prefix, objects, fresh)
        # The mark is written when everything else is there: a copy that was killed has none.
        (fresh / MARK).write_text(version)
        if target.is_dir():
            _empty(target)
        fresh.rename(target)  # over the empty one, so that nobody else can come in between
    except PerseidError:
        raise
    except OSError as error:
        raise _not_copied(target, error) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _empty(folder: Path) -> None:
    """Remove what a folder of ours holds; the mark last, by which it is known as ours."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == MARK):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _copy_all(storage: Storage, prefix: str, objects: Sequence[ObjectInfo], folder: Path) -> None:
    try:
        with ThreadPoolExecutor(COPIES) as pool:
            list(pool.map(lambda info: _copy(storage, prefix, info.key, folder), objects))
    except PerseidError:  # the store's own: it is an OSError, too
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
