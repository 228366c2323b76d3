"""Folders that no other local user can change: below a shared one, or private to a process."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path, PurePosixPath

with contextlib.suppress(ImportError):  # not on Windows, where runs can be read
    import pwd

TRIES = 100
"""To make a folder that somebody removes again and again."""
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000  # linux/sched.h
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000  # linux/mount.h
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
"""Access control lists show in the group's bits, too."""


def why_shared(root: Path, folder: str) -> str | None:
    """Why another local user could change what lies at ``root/folder``; None if none could.

    The folders are made where they are not there, open to this user only. Once each of them is this
    user's and closed to others, and the root keeps each user's entries from the others, nobody but
    this user can put something else in its place: the answer stays true.

    Raises
    ------
    OSError
        A folder can neither be made nor opened.
    """
    place = root
    above = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        said = _of_root(root, os.fstat(above))
        for name in PurePosixPath(folder).parts:
            if said is not None:
                return said
            place /= name
            # From open folder to open folder: a path could be changed between the check and its
            # use.
            below = _make(above, name)
            os.close(above)
            above = below
            said = why_open(place, os.fstat(above))  # what was opened, not what was looked at
        return said
    finally:
        os.close(above)


def _make(above: int, name: str) -> int:
    """The entry `name` of an open folder, opened without following links; made where needed."""
    for _ in range(TRIES):
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=above)
        with contextlib.suppress(FileNotFoundError):  # somebody removed it in between
            return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    raise OSError(errno.EAGAIN, "it is removed again and again")


def why_open(path: Path, found: os.stat_result) -> str | None:
    """Why another user could change this file or folder: it is theirs, or they may write it."""
    if found.st_uid != os.geteuid():
        return f"{path} belongs to {_name(found.st_uid)}"
    if not stat.S_ISLNK(found.st_mode) and found.st_mode & _OTHERS_WRITE:
        return f"{path} can be written by other users (chmod go-w {path} closes it)"
    return None


def _of_root(root: Path, found: os.stat_result) -> str | None:
    if found.st_uid not in (0, os.geteuid()):
        return f"{root} belongs to {_name(found.st_uid)}"
    if found.st_mode & _OTHERS_WRITE and not found.st_mode & stat.S_ISVTX:
        return f"{root} lets every user remove the others' files (chmod +t {root} mends it)"
    return None


def _name(uid: int) -> str:
    try:
        return f"the user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"


def entering(folder: Path, root: Path, cwd: Path) -> Callable[[], None]:
    """A function that a child process calls to make `folder` its `root`, for itself and its
    children only.

    A mount namespace of its own (mount_namespaces(7)); without root's rights inside a user
    namespace, in which the process keeps its user and group. For ``subprocess.Popen(preexec_fn=)``:
    everything is loaded here. The call raises OSError where the system allows no such thing.

    Parameters
    ----------
    folder
        What is to be seen at `root`.
    root
        E.g. ``/tmp``.
    cwd
        Current folder of the process, as it is seen afterwards.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    unshare, mount = libc.unshare, libc.mount
    uid, gid = os.geteuid(), os.getegid()
    source, target, place = os.fsencode(folder), os.fsencode(root), os.fsencode(cwd)

    def check(status: int) -> None:
        if status:
            raise OSError(ctypes.get_errno(), "no mount namespace")

    def enter() -> None:
        check(unshare(_CLONE_NEWNS | (_CLONE_NEWUSER if uid else 0)))
        if uid:
            # The kernel takes a gid_map of an ordinary user only after this (user_namespaces(7)).
            _write("/proc/self/setgroups", b"deny")
            _write("/proc/self/uid_map", b"%d %d 1" % (uid, uid))
            _write("/proc/self/gid_map", b"%d %d 1" % (gid, gid))
        # Else the mount below would be seen by every process of the machine.
        check(mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None))
        check(mount(source, target, None, _MS_BIND, None))
        os.chdir(place)

    return enter


def _write(path: str, text: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    os.write(descriptor, text)
    os.close(descriptor)
