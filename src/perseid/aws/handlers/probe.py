"""What a worker's function reports about itself: its processor, its libraries, its network.

Only `perseid aws prove` asks for this, no run does. The answers contain no account and no address.
"""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from perseid.errors import BadInputError, RendezvousUnreachableError

if TYPE_CHECKING:
    from perseid.comm import Communicator
    from perseid.model.runtime import Predictor

PROBE = "perseid_probe"
"""Key that marks an event as a probe; its value says what to report."""
TOLD = (
    "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni",
    "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "asimddp", "asimdhp", "sve", "i8mm", "bf16",
)  # fmt: skip
"""Instructions by which a numerical library may choose its kernels."""
BATCH, BATCHES = 64, 8
SIZES = (1, 131_072)
"""Lengths of the float64 arrays that are summed: 8 bytes and 1 MiB."""
REPEATS = 5
SPARE_SECONDS = 10.0
"""Seconds of the function's time reserved for the work after the ranks have connected."""
PING_SECONDS = 5.0
_calls = 0


def answer(
    task: Mapping[str, object],
    seconds: float,
    secret: Callable[[], bytes],
    runtime: Callable[[], Predictor],
) -> dict[str, object]:
    """Answer a probe: ``{"what": "processor"}`` or ``{"what": "gang", …}``.

    Parameters
    ----------
    seconds
        Seconds that the function may still take.
    secret
        Returns the secret that the rendezvous' job keys are derived from.
    runtime
        Returns the default model.
    """
    global _calls
    _calls += 1
    if task.get("what") == "processor":
        return {"cold": _calls == 1, **processor(), **libraries(runtime)}
    if task.get("what") == "gang":
        return gang(task, max(1.0, seconds - SPARE_SECONDS), secret())
    raise BadInputError(f"the probe knows no {task.get('what')!r}")


def processor() -> dict[str, object]:
    """Model, instructions and number of the processors, as the system reports them."""
    text = _text("/proc/cpuinfo")
    lines = [line.partition(":") for line in text.splitlines()]
    values = {name.strip(): value.strip() for name, _, value in reversed(lines)}
    flags = set((values.get("flags") or values.get("Features") or "").split())
    return {
        "machine": platform.machine(),
        "model": values.get("model name") or values.get("CPU part") or "not told",
        "instructions": [name for name in TOLD if name in flags],
        "processors": os.cpu_count(),
        "usable": len(os.sched_getaffinity(0)),
        "memory_mb": int(os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", 0)),
        "possible_processors": _text("/sys/devices/system/cpu/possible").strip() or "not readable",
    }


def libraries(runtime: Callable[[], Predictor]) -> dict[str, object]:
    """Versions of the libraries, and the speed of the default model."""
    import numpy as np
    import onnxruntime

    model = runtime()
    rows = model.some_rows(BATCH)
    model.predict(*rows)
    began = time.perf_counter()
    for _ in range(BATCHES):
        model.predict(*rows)
    seconds = time.perf_counter() - began
    return {
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
        "threads": model.threads,
        "rows_per_second": round(BATCH * BATCHES / seconds, 1),
    }


def gang(task: Mapping[str, object], seconds: float, secret: bytes) -> dict[str, object]:
    """Meet the other ranks within this many seconds, connect to each of them, and time a few
    sums."""
    from perseid.comm import Communicator
    from perseid.rendezvous import job_key

    job, rank, world = str(task["job"]), int(str(task["rank"])), int(str(task["world"]))
    endpoint = str(task["endpoint"])
    nat = _nat(endpoint)
    began = time.perf_counter()
    with Communicator.join(
        job, rank, world, endpoint, job_key(secret, job).hex(), deadline=seconds, timeout=seconds,
    ) as comm:  # fmt: skip
        joined = time.perf_counter() - began
        comm.alltoall([b"x"] * world)  # makes every pair of ranks connect
        return {
            "rank": rank,
            "nat": nat,
            "join_seconds": round(joined, 3),
            "paths": dict(Counter(comm.routes.values())),
            "allreduce": [_timed(comm, size) for size in SIZES],
        }


def _timed(comm: Communicator, size: int) -> dict[str, object]:
    import numpy as np

    values, seconds = np.ones(size), []
    for _ in range(REPEATS):
        comm.barrier()
        began = time.perf_counter()
        total = comm.allreduce(values)
        seconds.append(round(time.perf_counter() - began, 6))
    right = bool((np.asarray(total) == comm.size).all())
    return {"bytes": 8 * size, "seconds": seconds, "right": right}


def _nat(endpoint: str) -> str:
    from perseid.rendezvous.client.connectivity import ping
    from perseid.rendezvous.net import Endpoint

    try:
        return ping(Endpoint.parse(endpoint), PING_SECONDS).mapping.name.lower()
    except RendezvousUnreachableError:
        return "not found out"


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
