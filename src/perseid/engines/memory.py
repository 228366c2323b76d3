"""Resident memory of processes, from /proc (Linux; proc(5)). Sizes in MiB."""

from __future__ import annotations

from pathlib import Path

_PROC = Path("/proc")


def _field(pid: int | str, name: str) -> float:
    """A ``kB`` line of /proc/PID/status in MiB; 0 for a process that is gone."""
    try:
        text = (_PROC / str(pid) / "status").read_text()
    except OSError:
        return 0.0
    for line in text.splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    return 0.0


def resident(pid: int) -> float:
    """Resident memory now, MiB."""
    return _field(pid, "VmRSS")


def peak(pid: int | str = "self") -> float:
    """High-water mark of resident memory since the last `reset_peak`, MiB."""
    return _field(pid, "VmHWM")


def reset_peak() -> bool:
    """Set this process' high-water mark back to what is resident now; False where not allowed."""
    try:
        (_PROC / "self" / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def children(pid: int) -> list[int]:
    """Direct children of a process' threads; empty if the kernel does not tell."""
    found: list[int] = []
    try:
        tasks = list((_PROC / str(pid) / "task").iterdir())
    except OSError:
        return found
    for task in tasks:
        try:
            found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def resident_tree(pid: int) -> float:
    """Resident memory of a process and all of its descendants, MiB; shared pages count twice."""
    return resident(pid) + sum(resident_tree(child) for child in children(pid))


def available() -> float:
    """Memory that is available without swapping, MiB; 0 if the kernel does not tell."""
    try:
        text = (_PROC / "meminfo").read_text()
    except OSError:
        return 0.0
    for line in text.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 1024
    return 0.0
