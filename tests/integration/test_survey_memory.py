"""A worker's memory does not grow with a HATS catalogue of row groups of the advised size."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perseid.pipeline.initialize import initialize, plan
from perseid.pipeline.request import RunRequest

BANDS, SIDE = 5, 32
LIMIT_MB = 250
WORK = """
import sys
from perseid.pipeline.items import WorkItem
from perseid.pipeline.work import work
record = work(WorkItem.from_json(sys.stdin.read()))
print(record.rows, len(record.failed_partitions), record.peak_memory_mb)
"""


def rows(group_bytes: int) -> pa.Table:
    """One row group, its image a structure as in the Multimodal Universe."""
    count = group_bytes // (BANDS * SIDE**2 * 4)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(count, BANDS, SIDE, SIDE)).astype(np.float32)

    def nested(array: np.ndarray) -> pa.Array:
        values = pa.array(array.reshape(-1))
        for size in array.shape[:0:-1]:
            ends = np.arange(0, len(values) + 1, size, dtype=np.int32)
            values = pa.ListArray.from_arrays(ends, values)
        return values

    bands = pa.array([list("ugriz")] * count)
    image = pa.StructArray.from_arrays(
        [bands, nested(images), nested(np.ones_like(images))], names=["band", "flux", "ivar"]
    )
    magnitudes = list(rng.uniform(15, 22, (count, BANDS)).astype(np.float32))
    return pa.table({"object_id": np.arange(count), "magnitude": magnitudes, "image": image})


def catalogue(folder: Path, pixels: int, groups: int, group_bytes: int) -> int:
    """A HATS catalogue of so many files of so many row groups; its rows."""
    table = rows(group_bytes)
    (folder / "dataset" / "Norder=1" / "Dir=0").mkdir(parents=True)
    (folder / "hats.properties").write_text("obs_collection=big\n")
    for pixel in range(pixels):
        path = folder / "dataset" / "Norder=1" / "Dir=0" / f"Npix={pixel}.parquet"
        with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
            for _ in range(groups):
                writer.write_table(table, row_group_size=len(table))
    return pixels * groups * len(table)


def request(tmp_path: Path, **given: object) -> RunRequest:
    keys = {"data": str(tmp_path / "big"), "results": str(tmp_path / "run")}
    return RunRequest.parse({**keys, "world_size": 1, "threads": 1, **given})


@pytest.mark.parametrize(
    ("pixels", "groups", "group_bytes"),
    [
        (1, 1, 16_000_000),
        pytest.param(8, 9, 62_000_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
    ids=["16 MB", "4 GB"],
)
def test_a_workers_peak(pixels: int, groups: int, group_bytes: int, tmp_path: Path) -> None:
    """With the default model, which needs most of it."""
    count = catalogue(tmp_path / "big", pixels, groups, group_bytes)
    begun = initialize(request(tmp_path))
    assert not [said for said in begun.warnings if "row groups" in said]
    done = subprocess.run(
        [sys.executable, "-c", WORK],
        input=json.dumps(begun.items[0].to_json()),
        capture_output=True,
        text=True,
        timeout=1500,
        check=True,
    )
    read, failed, peak = done.stdout.split()
    assert (int(read), int(failed)) == (count, 0)
    assert float(peak) < LIMIT_MB


def test_larger_row_groups_are_named_with_the_memory_that_they_need(tmp_path: Path) -> None:
    catalogue(tmp_path / "big", 1, 1, 100_000_000)
    (said,) = [one for one in plan(request(tmp_path)).warnings if "row groups" in one]
    assert re.search(r"Npix=0.parquet has row groups of up to (9\d|10\d) MB", said)
    assert "on top of 250 MB: write row groups of at most 64 MB" in said
