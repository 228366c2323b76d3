"""The two programs that `worker.py` measures, each in a process of its own.

    python worker_programs.py NAME TASK    # NAME: existing, float32, …; TASK: JSON

Imports nothing that the programs themselves would not, because `worker.py` measures how soon they
are ready.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def existing(task: dict[str, Any]) -> dict[str, Any]:
    """The plain-torch loop."""
    import gc
    import io

    import torch
    from torch.utils.data import DataLoader

    data = Path(task["partition"]).read_bytes()
    dataset = torch.load(io.BytesIO(data), weights_only=False)
    model = torch.load(task["model"], map_location="cpu", weights_only=False)
    model = model.module.eval()
    loader = DataLoader(dataset, batch_size=task["batch"])
    predictions: list[Any] = []
    ready = time.time()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        with torch.no_grad():
            for batch in loader:
                predictions.append(model(batch[0], batch[1]))
                gc.collect()
        loop_end = time.time()
    averages = profile.key_averages()
    total = sum(event.self_cpu_time_total for event in averages)
    allocated = sum(event.cpu_memory_usage for event in averages)
    redshift = torch.cat(predictions)[:, 0].tolist()
    Path(task["out"], "0.json").write_text(
        json.dumps({"total_cpu_time": total / 1e6, "total_cpu_memory": allocated / 1e6})
    )
    return {"ready": ready, "loop": loop_end - ready, "redshift": redshift}


def ours(task: dict[str, Any]) -> dict[str, Any]:
    """A rank's whole work, as a worker process does it."""
    from perseid.pipeline.cold_start import load_runtime
    from perseid.pipeline.items import PartitionRef, WorkItem
    from perseid.storage import Storage

    info = Storage(task["data_url"]).info("1.pt")
    item = WorkItem(
        run_id="benchmark",
        rank=0,
        world_size=1,
        results_url=task["out"],
        data_url=task["data_url"],
        partitions=(PartitionRef("1.pt", info.size, info.etag),),
        model_url=task["model"],
        precision=task["precision"],
        batch_size=task["batch"],
        anomaly="none",
    )
    runtime = load_runtime(item)
    from perseid.pipeline.work import work  # imported while the model was being loaded

    record = work(item, runtime=runtime)
    assert record.precision == task["precision"], "the processor has no VNNI"
    assert not record.failed_partitions, record.failed_partitions
    spans = [(start, end) for stage, start, end in record.timeline if stage == "inference"]
    ready = min(start for start, _ in spans)
    return {"ready": ready, "loop": max(end for _, end in spans) - ready}


def main() -> None:
    """Run a program; it leaves what it says in the task's folder."""
    name, task = sys.argv[1], json.loads(sys.argv[2])
    said = existing(task) if name == "existing" else ours(task)
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    Path(task["out"], "said.json").write_text(json.dumps({**said, "peak": peak * 1024 / 1e6}))


if __name__ == "__main__":
    main()
