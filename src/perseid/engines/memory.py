"""Resident memory of processes, from /proc (Linux; proc(5)). Sizes in MiB."""

from __future__ import annotations

from pathlib import Path

_PROC = Path("/proc")


def _field(file: str, name: str) -> float:
    """A ``kB`` field of a file in /proc, in MiB; 0 if it is missing or the process ended."""
    try:
        text = (_PROC / file).read_text()
    except OSError:
        return 0.0
    for line in text.splitlines():
        # Kernel threads and zombies have no such line.
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    return 0.0


def resident(pid: int) -> float:
    """Current resident memory, in MiB."""
    return _field(f"{pid}/status", "VmRSS")


def peak(pid: int | str = "self") -> float:
    """Peak resident memory since the last `reset_peak`, in MiB."""
    return _field(f"{pid}/status", "VmHWM")


def reset_peak() -> bool:
    """Reset this process' peak to its current resident memory; False if that is not allowed."""
    try:
        # 5 resets VmHWM only (proc(5)).
        (_PROC / "self" / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def children(pid: int) -> list[int]:
    """Process ids of the direct children of a process; empty if the kernel does not list them."""
    found: list[int] = []
    try:
        tasks = list((_PROC / str(pid) / "task").iterdir())
    except OSError:
        return found
    # The kernel lists children by the thread that started them.
    for task in tasks:
        try:
            found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def resident_tree(pid: int) -> float:
    """Resident memory of a process and its descendants, in MiB; shared pages count repeatedly."""
    return resident(pid) + sum(resident_tree(child) for child in children(pid))


def available() -> float:
    """Memory that is available without swapping, in MiB; 0 if the kernel does not report it."""
    return _field("meminfo", "MemAvailable")
