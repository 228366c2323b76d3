"""Folders that no other local user can change, below a shared one or private to a process."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path, PurePosixPath

with contextlib.suppress(ImportError):  # missing on Windows, where runs can only be read
    import pwd

TRIES = 100
"""Number of tries to create a folder that another process keeps removing."""
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000  # linux/sched.h
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000  # linux/mount.h
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
"""Permissions for others to write; access control lists also show in the group's bits."""


def why_shared(root: Path, folder: str) -> str | None:
    """Why another local user could change what is at ``root/folder``; None if none could.

    Missing folders are created with access for this user only. Once each folder belongs to this
    user and is closed to others, and the root keeps users from changing each other's entries, only
    this user can replace a folder, so the answer stays true.

    Raises
    ------
    OSError
        A folder can be neither created nor opened.
    """
    place = root
    # An open folder stays the same folder, whatever is renamed around it.
    above = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        said = _of_root(root, os.fstat(above))
        for name in PurePosixPath(folder).parts:
            if said is not None:
                return said
            place /= name
            # From one open folder to the next: a path could be changed between its check and its
            # use.
            below = _make(above, name)
            os.close(above)
            above = below
            said = why_open(place, os.fstat(above))  # of the open folder itself
        return said
    finally:
        os.close(above)


def _make(above: int, name: str) -> int:
    """Open an entry of an open folder without following links; create it if it is missing."""
    for _ in range(TRIES):
        # Made without looking first: of two processes, the second finds it.
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=above)
        with contextlib.suppress(FileNotFoundError):  # another process removed it in between
            return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    raise OSError(errno.EAGAIN, "another process keeps removing it")


def why_open(path: Path, found: os.stat_result) -> str | None:
    """Why another user could change this file or folder, as its owner or by its permissions."""
    if found.st_uid != os.geteuid():
        return f"{path} belongs to {_name(found.st_uid)}"
    # The permissions of a link mean nothing; its owner does.
    if not stat.S_ISLNK(found.st_mode) and found.st_mode & _OTHERS_WRITE:
        return f"{path} can be written by other users (`chmod go-w {path}` prevents that)"
    return None


def _of_root(root: Path, found: os.stat_result) -> str | None:
    if found.st_uid not in (0, os.geteuid()):
        return f"{root} belongs to {_name(found.st_uid)}"
    # With the sticky bit, as on /tmp, only owners rename or remove their entries.
    if found.st_mode & _OTHERS_WRITE and not found.st_mode & stat.S_ISVTX:
        return f"{root} lets every user remove the others' files (`chmod +t {root}` prevents that)"
    return None


def _name(uid: int) -> str:
    try:
        return f"the user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"


def entering(folder: Path, root: Path, cwd: Path) -> Callable[[], None]:
    """Make a function that a child process calls to see `folder` as its `root`.

    Only the child and its own children see this: the function creates a mount namespace
    (mount_namespaces(7)) and, without root privileges, a user namespace in which the process keeps
    its user and group. It is meant for ``subprocess.Popen(preexec_fn=)``, so everything that it
    needs is loaded here. It raises OSError if the system does not allow this.

    Parameters
    ----------
    folder
        Folder that the process sees at `root`.
    root
        Folder to replace, such as ``/tmp``.
    cwd
        Current folder of the process afterwards, as it then sees it.
    """
    # Python has unshare only from 3.12 on, and mount not at all.
    libc = ctypes.CDLL(None, use_errno=True)
    unshare, mount = libc.unshare, libc.mount
    # Before the fork: afterwards only system calls are safe in a process with threads.
    uid, gid = os.geteuid(), os.getegid()
    source, target, place = os.fsencode(folder), os.fsencode(root), os.fsencode(cwd)

    def check(status: int) -> None:
        if status:
            raise OSError(ctypes.get_errno(), "no mount namespace")

    def enter() -> None:
        check(unshare(_CLONE_NEWNS | (_CLONE_NEWUSER if uid else 0)))
        if uid:
            # The kernel accepts an ordinary user's gid_map only after this (user_namespaces(7)).
            _write("/proc/self/setgroups", b"deny")
            _write("/proc/self/uid_map", b"%d %d 1" % (uid, uid))
            _write("/proc/self/gid_map", b"%d %d 1" % (gid, gid))
        # Otherwise every process on the machine would see the mount below.
        check(mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None))
        check(mount(source, target, None, _MS_BIND, None))
        # The current folder still is the one below the mount until it is entered again.
        os.chdir(place)

    return enter


def _write(path: str, text: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    os.write(descriptor, text)
    os.close(descriptor)
