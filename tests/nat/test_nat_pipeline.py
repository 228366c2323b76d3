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


def run_behind(net, sites, folder: Path, *options: str):
    """A run with a rank at each site and a server on a public address; the ranks' records."""
    where = net.site("public", "open")
    secret = secrets.token_hex(32)
    (folder / "key").write_text(secret + "\n")
    server = ServerProcess(
        "--key-file", str(folder / "key"), "--no-tcpunch", *options,
        host="", ports=(10000, 10001), preexec=where.gateway.enter,
    )  # fmt: skip
    endpoint = f"{where.address}:10000"
    asked = {"transport": "auto", "rendezvous_endpoint": endpoint, "world_size": len(sites)}
    begun = initialize(request(folder, "behind", **asked))
    key = job_key(secret.encode(), begun.manifest.run_id).hex()
    with server:
        running = [
            rank_in(site.hosts[0], item, key, folder)
            for site, item in zip(sites, begun.items, strict=True)
        ]
        try:
            ends = [process.communicate(timeout=100) for process in running]
        finally:
            for process in running:
                process.kill()
                process.wait(10)
    statuses = [process.returncode for process in running]
    assert statuses == [0] * len(sites), [err for _, err in ends]
    return [json.loads(out) for out, _ in ends]


def same_catalogue(folder: Path) -> None:
    with_nats, without = (catalogue(folder, name) for name in ("behind", "without"))
    for column in without:
        np.testing.assert_array_equal(with_nats[column], without[column], err_msg=column)


def without_nats(folder: Path, rows: int, ranks: int) -> None:
    """The survey, the model, and a run whose ranks never meet."""
    tiny_model(folder / "m.onnx")
    tiny_survey(folder / "survey", rows=rows, per_partition=10)
    for item in initialize(request(folder, "without", world_size=ranks)).items:
        work(item)
    summarize(Storage(folder / "without"))


def test_a_run_of_sixteen_ranks_behind_nats_of_nine_kinds(lab, tmp_path):
    without_nats(tmp_path, 150, RANKS)  # the last rank has no data
    net = lab()
    sites = [net.site(*KINDS[index % len(KINDS)]) for index in range(RANKS)]
    records = run_behind(net, sites, tmp_path)
    assert [record["transport_note"] for record in records] == [""] * RANKS
    summary = summarize(Storage(tmp_path / "behind"))
    transport = summary["transport"]
    assert (summary["status"], transport["used"]) == ("complete", "direct+relay")
    # 15 edges of a binomial tree. Ranks 7 and 8 are behind symmetric NATs: 8 reaches 0 and 9, which
    # are open, but 8-10, 8-12 and 6-7 need the relay.
    assert transport["connections"]["relay"] >= 3
    assert sum(transport["connections"].values()) == RANKS - 1
    assert records[8]["routes"] == {"0": "direct", "9": "direct", "10": "relay", "12": "relay"}
    assert records[7]["routes"] == {"6": "relay"}
    for rank, record in enumerate(records):
        for peer, way in record["routes"].items():
            assert records[int(peer)]["routes"][str(rank)] == way, "both ends say the same"
    same_catalogue(tmp_path)


def test_ranks_without_any_path_to_each_other_go_through_the_store_and_say_so(lab, tmp_path):
    """Two symmetric NATs and no relay; the run merges from the store and names the pair."""
    without_nats(tmp_path, 40, 4)
    net = lab()
    kinds = [("public", "open"), ("public", "open"), ("symmetric", "drop"), ("symmetric", "drop")]
    records = run_behind(net, [net.site(*kind) for kind in kinds], tmp_path, "--no-relay")
    assert [record["transport"] for record in records] == ["store"] * 4
    # Of the edges 0-1, 0-2 and 2-3 of the tree, the last cannot connect.
    assert "store" in {records[2]["routes"].get("3"), records[3]["routes"].get("2")}
    assert all(record["transport_note"] for record in records)
    assert any("cannot be reached" in record["transport_note"] for record in records)
    summary = summarize(Storage(tmp_path / "behind"))
    transport = summary["transport"]
    assert (summary["status"], transport["used"]) == ("complete", "store")
    assert transport["connections"]["store"] == 1
    assert "cannot be reached" in transport["reason"]
    same_catalogue(tmp_path)
