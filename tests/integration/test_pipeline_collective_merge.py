"""Ranks that meet in a communicator leave the same catalogue as those that do not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from meeting import SECRET, all_meet, begin, rendezvous
from same_bits import assert_same_bits
from tiny import tiny_model, tiny_survey

from perseid.errors import RunIncompleteError
from perseid.pipeline import layout
from perseid.pipeline.collective_merge import RankOutputs, merge_collectively
from perseid.pipeline.initialize import initialize
from perseid.pipeline.items import WorkItem
from perseid.pipeline.join_settings import JoinSettings
from perseid.pipeline.request import RunRequest
from perseid.pipeline.summarize import summarize
from perseid.pipeline.work import work
from perseid.rendezvous import job_key
from perseid.storage import Storage


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A survey of 13 partitions, the fourth of them broken, and a tiny model."""
    folder = tmp_path_factory.mktemp("together")
    tiny_model(folder / "m.onnx")
    tiny_survey(folder / "whole", rows=130, per_partition=10)
    tiny_survey(folder / "broken", rows=130, per_partition=10)
    (folder / "broken" / "4.pt").write_bytes(b"nonsense")
    return folder


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with rendezvous() as found:
        yield found


def table(storage: Storage) -> dict[str, np.ndarray]:
    read = pq.read_table(storage.local_path(layout.CATALOGUE))
    return {name: read[name].to_numpy(zero_copy_only=False) for name in read.column_names}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """All columns bit for bit."""
    assert list(one) == list(other)
    assert_same_bits(one, one, other)


@pytest.fixture(scope="module")
def by_store(survey: Path) -> dict[str, dict[str, np.ndarray]]:
    """The catalogues of runs through the store."""
    found = {}
    for data in ("whole", "broken"):
        _, storage = begin(survey, survey / f"store-{data}", 4, data, transport="store")
        try:
            summarize(storage)
        except RunIncompleteError:
            assert data == "broken"
        found[data] = table(storage)
    return found


@pytest.mark.parametrize("ranks", [1, 2, 5, 8, 16])
def test_the_catalogue_is_the_same(survey, tmp_path, address, by_store, ranks):
    items, storage = begin(survey, tmp_path / "run", ranks)  # 16: three ranks have no data
    changes = all_meet(items, storage, address)
    way = "direct" if ranks > 1 else "alone"
    assert {change.transport for change in changes} == {way}
    made = {key: storage.get(key) for key in (layout.CATALOGUE, layout.COMBINED)}
    summary = summarize(storage)
    assert {key: storage.get(key) for key in made} == made, "summarize only verifies"
    same(table(storage), by_store["whole"])
    assert summary["status"] == "complete"
    assert summary["transport"]["used"] == way
    assert summary["transport"]["ranks"] == {way: ranks}
    assert not summary["warnings"]
    if ranks > 1:
        assert summary["transport"]["connections"] == {"direct": ranks - 1}, "the tree's edges"
        assert summary["transport"]["collectives_seconds"] > 0
    records = json.loads(storage.get(layout.COMBINED))
    with_data = list(range(min(ranks, 13)))  # a record without data would put zeros into means
    assert [record["rank"] for record in records] == with_data
    for record in records:
        assert json.loads(storage.get(layout.record(record["rank"]))) == record
        stages = {stage for stage, _, _ in record["timeline"]}
        assert {"rendezvous", "collectives"} <= stages
        assert record["stages"]["total"] >= record["stages"]["collectives"] > 0


def test_a_partition_that_fails_in_one_rank(survey, tmp_path, address, by_store):
    items, storage = begin(survey, tmp_path / "run", 5, "broken")
    all_meet(items, storage, address)
    with pytest.raises(RunIncompleteError, match=r"partitions broken/4\.pt|4\.pt"):
        summarize(storage)
    same(table(storage), by_store["broken"])
    summary = json.loads(storage.get(layout.SUMMARY))
    assert (summary["transport"]["used"], summary["rows"]["received"]) == ("direct", 120)


def test_the_relay(survey, tmp_path, address, by_store):
    items, storage = begin(survey, tmp_path / "run", 3, transport="relay")
    all_meet(items, storage, address, transport="relay")
    assert summarize(storage)["transport"]["used"] == "relay"
    same(table(storage), by_store["whole"])


def test_findings_are_those_of_the_store(survey, tmp_path, address):
    found = []
    for name in ("one", "two"):
        items, storage = begin(survey, tmp_path / name, 3)
        if name == "two":
            all_meet(items, storage, address)
        found.append(summarize(storage))
    for key in ("redshift", "anomaly", "top", "rows", "partitions", "ranks", "status"):
        assert found[0][key] == found[1][key], key


def test_no_scores_asked_for(survey, tmp_path, address):
    items, storage = begin(survey, tmp_path / "run", 3, anomaly="none")
    all_meet(items, storage, address)
    summary = summarize(storage)
    assert (summary["transport"]["used"], summary["anomaly"]) == ("direct", None)
    assert np.isnan(table(storage)["anomaly_score"]).all()


def test_a_rank_that_does_not_come(survey, tmp_path, address, by_store):
    items, storage = begin(survey, tmp_path / "run", 4)
    changes = all_meet(items[:3], storage, address, deadline=1.0)
    assert {change.transport for change in changes} == {"store"}
    assert "1 of 4 ranks" in changes[0].transport_note
    summary = summarize(storage)
    assert summary["status"] == "complete"
    assert "1 of 4 ranks" in summary["transport"]["reason"]
    assert any("did not register" in warning for warning in summary["warnings"])
    same(table(storage), by_store["whole"])


def test_a_rank_whose_objects_are_broken_is_named_by_the_store_path(survey, tmp_path, address):
    items, storage = begin(survey, tmp_path / "run", 4)
    storage.put(layout.features(2), b"nonsense")
    changes = all_meet(items, storage, address)
    assert [changes[rank].transport for rank in (0, 2)] == ["store", "store"]
    assert "is broken" in changes[2].transport_note
    assert "Rank 2" in changes[0].transport_note
    with pytest.raises(RunIncompleteError, match="ranks 2 of 4"):
        summarize(storage)
    records = json.loads(storage.get(layout.COMBINED))
    assert [record["transport"] for record in records] == ["store"] * 3, "as it truly was"


def test_a_wrong_key(survey, tmp_path, address):
    items, storage = begin(survey, tmp_path / "run", 2)
    meeting = JoinSettings(address, "00" * 32, deadline=5.0)
    change = merge_collectively(RankOutputs.of_store(items[0], storage), meeting)
    assert change.transport == "store"
    assert "key" in change.transport_note
    assert "00" * 32 not in repr(meeting)


@pytest.mark.parametrize(
    "damage", [layout.MERGED, layout.CATALOGUE, layout.COMBINED, "of another run", "a rank twice"]
)
def test_what_rank_0_left_is_verified(survey, tmp_path, address, by_store, damage):
    items, storage = begin(survey, tmp_path / "run", 3)
    all_meet(items, storage, address)
    if damage == "of another run":
        merged = json.loads(storage.get(layout.MERGED)) | {"run_id": "another"}
        storage.put(layout.MERGED, json.dumps(merged).encode())
    elif damage == "a rank twice":
        records = json.loads(storage.get(layout.COMBINED))
        storage.put(layout.COMBINED, json.dumps([records[0], *records[:2]]).encode())
    else:
        storage.put(damage, storage.get(damage)[:-20])
    summary = summarize(storage)
    assert summary["transport"]["used"] == "store"
    assert summary["transport"]["ranks"] == {"store": 3}
    same(table(storage), by_store["whole"])


def test_work_goes_to_the_meeting_by_itself(survey, tmp_path, address, by_store):
    """As on AWS: the item says where; the key is given to the worker alone."""
    request = RunRequest.parse(
        {
            "data": str(survey / "whole"), "results": str(tmp_path / "run"), "world_size": 3,
            "model": str(survey / "m.onnx"), "transport": "auto", "rendezvous_endpoint": address,
        }
    )  # fmt: skip
    begun = initialize(request)
    key = job_key(SECRET, begun.manifest.run_id).hex()
    items = [
        WorkItem.from_json(
            {**item.to_json(), "options": {**item.options.to_json(), "rendezvous_key": key}}
        )
        for item in begun.items
    ]
    with ThreadPoolExecutor(3) as pool:
        records = list(pool.map(work, items))
    assert [record.transport for record in records] == ["direct"] * 3
    storage = Storage(request.results_url)
    assert summarize(storage)["transport"]["used"] == "direct"
    same(table(storage), by_store["whole"])
    for info in storage.list():
        assert key.encode() not in storage.get(info.key), "no key in files that stay"
