"""What this process may use of the processor: how many threads, and which instructions."""

from __future__ import annotations

import os
from pathlib import Path

LAMBDA_MB_PER_CPU = 1769
"""Lambda gives one vCPU at so many MB of memory, in proportion elsewhere
(https://docs.aws.amazon.com/lambda/latest/dg/configuration-memory.html)."""
VNNI_FLAGS = frozenset({"avx512_vnni", "avx512vnni", "avx_vnni"})


def usable_threads(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Threads that can run at once: affinity, the control group's quota, Lambda's share.

    `root` is where control groups are mounted.
    """
    limits = [float(len(os.sched_getaffinity(0)))]
    quota = _quota(root)
    if quota is not None:
        limits.append(quota)
    memory = os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "")
    if memory.isdecimal():
        limits.append(int(memory) / LAMBDA_MB_PER_CPU)
    return max(1, round(min(limits)))


def _quota(root: Path) -> float | None:
    """CPUs that the control group allows, version 2 or 1; None where there is no limit."""
    try:
        limit, period = (root / "cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        try:
            limit = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    try:
        return int(limit) / int(period) if int(limit) > 0 else None
    except (ValueError, ZeroDivisionError):
        return None  # "max"


def has_int8_products(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether every core multiplies 8-bit integers in one instruction (VNNI).

    Without it int8 is slower than float32 and less exact: onnxruntime then adds in 16 bits.
    """
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    flags = [line.partition(":")[2].split() for line in lines if line.startswith("flags")]
    return bool(flags) and all(VNNI_FLAGS & set(core) for core in flags)
