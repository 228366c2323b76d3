"""A whole run with every rank behind a NAT of its own: the catalogue is that of a run without."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rendezvous_processes import ServerProcess
from tiny import tiny_model, tiny_survey

from perseid.pipeline import layout
from perseid.pipeline.initialize import initialize
from perseid.pipeline.request import RunRequest
from perseid.pipeline.summarize import summarize
from perseid.pipeline.work import work
from perseid.rendezvous import job_key
from perseid.storage import Storage

pytestmark = pytest.mark.nat

RANKS = 16
KINDS = [
    ("public", "open"), ("public", "drop"), ("preserving", "drop"), ("preserving", "reset"),
    ("preserving", "kernel"), ("independent", "drop"), ("independent", "reset"),
    ("symmetric", "drop"), ("symmetric", "reset"),
]  # fmt: skip
"""Of the ranks 0 to 8, and again of those after."""
PROGRAM = Path(__file__).parent.parent / "support" / "rank_program.py"


def request(folder: Path, name: str, **more) -> RunRequest:
    return RunRequest.parse(
        {
            "data": str(folder / "survey"), "results": str(folder / name),
            "model": str(folder / "m.onnx"), "world_size": RANKS, **more,
        }
    )  # fmt: skip


def catalogue(folder: Path, name: str) -> dict[str, np.ndarray]:
    read = pq.read_table(folder / name / layout.CATALOGUE)
    return {column: read[column].to_numpy(zero_copy_only=False) for column in read.column_names}


def rank_in(space, item, key, folder: Path) -> subprocess.Popen:
    """The rank's program, started inside a network namespace."""
    plain = item.to_json()
    plain["options"] |= {"rendezvous_key": key, "meeting_seconds": 45}
    path = folder / f"item-{item.rank}.json"
    path.write_text(json.dumps(plain))
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=space.enter,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )


def test_a_run_of_sixteen_ranks_behind_nats_of_nine_kinds(lab, tmp_path):
    tiny_model(tmp_path / "m.onnx")
    tiny_survey(tmp_path / "survey", rows=150, per_partition=10)  # the last rank has no data
    for item in initialize(request(tmp_path, "without")).items:
        work(item)
    summarize(Storage(tmp_path / "without"))

    net = lab()
    sites = [net.site(*KINDS[index % len(KINDS)]) for index in range(RANKS)]
    where = net.site("public", "open")
    secret = secrets.token_hex(32)
    (tmp_path / "key").write_text(secret + "\n")
    server = ServerProcess(
        "--key-file", str(tmp_path / "key"), "--no-tcpunch",
        host="", ports=(10000, 10001), preexec=where.gateway.enter,
    )  # fmt: skip
    endpoint = f"{where.address}:10000"
    begun = initialize(request(tmp_path, "behind", transport="auto", rendezvous_endpoint=endpoint))
    key = job_key(secret.encode(), begun.manifest.run_id).hex()
    with server:
        running = [
            rank_in(site.hosts[0], item, key, tmp_path)
            for site, item in zip(sites, begun.items, strict=True)
        ]
        try:
            ends = [process.communicate(timeout=100) for process in running]
        finally:
            for process in running:
                process.kill()
                process.wait(10)
    assert [process.returncode for process in running] == [0] * RANKS, [err for _, err in ends]
    records = [json.loads(out) for out, _ in ends]
    assert [record["transport_note"] for record in records] == [""] * RANKS
    summary = summarize(Storage(tmp_path / "behind"))
    transport = summary["transport"]
    assert (summary["status"], transport["used"]) == ("complete", "direct+relay")
    # 15 edges of a binomial tree. Ranks 7 and 8 are behind symmetric NATs: 8 reaches 0 and 9, which
    # are open, but 8-10, 8-12 and 6-7 need the relay.
    assert transport["connections"]["relay"] >= 3
    assert sum(transport["connections"].values()) == RANKS - 1
    assert "relay" in records[8]["routes"]
    assert records[7]["routes"] == {"relay": 1}
    with_nats, without = (catalogue(tmp_path, name) for name in ("behind", "without"))
    for column in without:
        np.testing.assert_array_equal(with_nats[column], without[column], err_msg=column)
