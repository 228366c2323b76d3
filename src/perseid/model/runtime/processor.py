"""What this process may use of the processor: number of threads, and instructions."""

from __future__ import annotations

import base64
import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path

LAMBDA_MB_PER_CPU = 1769
"""Memory in MB for which Lambda gives one vCPU; other sizes get a proportional share
(https://docs.aws.amazon.com/lambda/latest/dg/configuration-memory.html)."""
VNNI_FLAGS = frozenset({"avx512_vnni", "avx512vnni", "avx_vnni"})


def usable_threads(
    root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")
) -> int:
    """Number of threads that can run at once, given affinity, control groups' quotas and Lambda's
    share.

    `root` is where control groups are mounted; `groups` is the file that lists those of this
    process.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # exists only on Linux
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    limits = [float(cores), *_quotas(root, groups)]
    memory = os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "")
    if memory.isdecimal():
        limits.append(int(memory) / LAMBDA_MB_PER_CPU)
    return max(1, round(min(limits)))


def _quotas(root: Path, groups: Path) -> Iterator[float]:
    """CPUs that each control group around this process allows, for version 2 and 1.

    In a container the group's own folder is the mount point, whatever the path says
    (https://docs.kernel.org/admin-guide/cgroup-v2.html, cgroups(7)).
    """
    for mount, path in {(root, ""), (root / "cpu", ""), *_own_groups(root, groups)}:
        folder = mount / path
        for group in (folder, *folder.parents):
            yield from _quota(group)
            if group == mount:
                break


def _own_groups(root: Path, groups: Path) -> Iterator[tuple[Path, str]]:
    """Mount point and path of each control group that can limit the processor."""
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if ".." in path.split("/"):  # the path lies outside of what this container sees
            continue
        if controllers == "":
            yield root, path.strip("/")
            yield root / "unified", path.strip("/")
        elif "cpu" in controllers.split(","):
            yield root / controllers, path.strip("/")
            yield root / "cpu", path.strip("/")


def _quota(group: Path) -> Iterator[float]:
    """CPUs that one control group allows; nothing if it sets no limit."""
    try:
        limit, period = (group / "cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        try:
            limit = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return
    with contextlib.suppress(ValueError, ZeroDivisionError):  # "max" means no limit
        if int(limit) > 0:
            yield int(limit) / int(period)


def has_avx512() -> bool:
    """Whether this process sees AVX-512, as numpy asked the processor when it was imported.

    Lambda promises no more than AVX2 on x86-64
    (https://docs.aws.amazon.com/lambda/latest/dg/runtimes-avx2.html).
    """
    from numpy._core._multiarray_umath import (  # type: ignore[import-not-found]
        __cpu_features__,
    )

    return bool(__cpu_features__.get("AVX512F"))


def has_only_avx2() -> bool:
    """Whether this process sees AVX2 and no AVX-512, as on the x86-64 that Lambda promises."""
    from numpy._core._multiarray_umath import __cpu_features__

    return bool(__cpu_features__.get("AVX2")) and not has_avx512()


MICRO_BATCH = 48 if has_only_avx2() else 32
"""Rows per call of onnxruntime: larger batches are no faster per row and take more memory. With
AVX2 alone, more rows were faster on an Intel Xeon (not on an AMD EPYC), and with 48 a worker still
needs less than 200 MB. The bits of a row are the same with both."""


LANE_ROWS = 16
"""Rows per call where each thread computes calls of its own; the bits of a row are the same."""
MOST_LANES = 6
"""Most threads that do so: a block of images has twelve such calls for them."""


def lanes_of(threads: int, producer: str) -> int:
    """Number of calls of onnxruntime at once, each on one thread; 1 if all threads share a call.

    Threads that share a call wait for each other after every operator, so the slowest decides:
    where other programs use the processor too, calls of their own were a sixth faster. Models of
    others may need much memory for each call.
    """
    return threads if producer == "perseid" and threads <= MOST_LANES else 1


def has_int8_products(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor multiplies 8-bit integers exactly and fast, with one instruction
    (VNNI).

    Without it int8 is slower than float32 and less exact, because onnxruntime then adds in 16 bits,
    which saturate. Every core must have the instruction, and this process must be able to use it: a
    hypervisor may hide it from programs but not from the kernel's list.
    """
    return _listed(cpuinfo) and _products_are_exact()


def _listed(cpuinfo: Path) -> bool:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    flags = [line.partition(":")[2].split() for line in lines if line.startswith("flags")]
    return bool(flags) and all(VNNI_FLAGS & set(core) for core in flags)


PRODUCT = base64.b64decode(
    "CAgSADpcChgKAWEKAWISAXkiDU1hdE11bEludGVnZXISAXBaEwoBYRIOCgwIAhIICgIIEAoCCEBaEwoBYhIOCgwIAxII"
    "CgIIQAoCCCBiEwoBeRIOCgwIBhIICgIIEAoCCCBCBAoAEA0="
)
"""An ONNX model: y (16, 32) int32 = MatMulInteger of a (16, 64) uint8 and b (64, 32) int8."""
_LARGEST = 255 * 127
"""Largest product of a uint8 and an int8; the sum of two does not fit into 16 bits."""


@functools.cache
def _products_are_exact() -> bool:
    """Whether sums of the largest products are correct; takes some milliseconds and is done only
    once."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(PRODUCT, options, providers=["CPUExecutionProvider"])
    feed = {"a": np.full((16, 64), 255, np.uint8), "b": np.full((64, 32), 127, np.int8)}
    (found,) = session.run(None, feed)
    return bool((found == 64 * _LARGEST).all())
