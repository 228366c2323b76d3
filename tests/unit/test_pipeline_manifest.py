"""Assignment of partitions to ranks, manifests, the layout of a run."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseid.errors import BadInputError, NotFoundError
from perseid.pipeline import layout
from perseid.pipeline.items import PartitionRef, WorkItem
from perseid.pipeline.manifest import Manifest, assign
from perseid.pipeline.run_settings import ItemOptions, RunSettings
from perseid.storage import Storage


def manifest(files: int, world_size: int, script: dict | None = None) -> Manifest:
    return Manifest(
        run_id="r",
        created=1.0,
        version="0",
        results_url="memory://m/run",
        data_url="memory://m",
        partitions=tuple(PartitionRef(f"100MB/{i}.pt", 10 * i, "e") for i in range(1, files + 1)),
        assignment=assign(files, world_size),
        settings=RunSettings(batch_size=64, options=ItemOptions(timeout=3.0)),
        request={"bucket": "b"},
        script=script,
    )


@given(st.integers(0, 700), st.integers(1, 700))
def test_rank_r_takes_the_ceiling_of_what_is_left(files: int, world_size: int):
    counts = assign(files, world_size)
    left = files
    for rank, count in enumerate(counts):
        assert count == -(-left // (world_size - rank))
        left -= count
    assert left == 0
    assert max(counts) - min(counts) <= 1


def test_known_assignments():
    assert assign(11, 4) == (3, 3, 3, 2)
    assert assign(2, 5) == (1, 1, 0, 0, 0)
    assert assign(3, 3) == (1, 1, 1)


def test_data_map_has_the_three_forms_that_scripts_read():
    assert manifest(3, 2).data_map() == {"0": ["100MB/1.pt", "100MB/2.pt"], "1": "100MB/3.pt"}
    assert manifest(1, 2).data_map() == {"0": "100MB/1.pt", "1": None}


@given(st.integers(1, 40), st.integers(1, 50), st.sampled_from(["", "100MB/9.pt", '["x.pt"]']))
def test_data_path_is_the_ranks_own_share(files: int, world_size: int, given_path: str):
    """Old manifests hold the request's `data_path`: it must not reach a rank of theirs either."""
    run = manifest(files, world_size, script={"SCRIPT": "run.py", "DATA_PATH": given_path})
    shares = run.data_map()
    for item in run.items():
        text = item.options.script["DATA_PATH"]
        own = json.loads(text) if text.startswith("[") else text or None
        assert own == shares[str(item.rank)]
        keys = [own] if isinstance(own, str) else own or []
        assert keys == [ref.key for ref in item.partitions]


@given(st.integers(1, 40), st.integers(1, 50))
def test_every_partition_is_in_exactly_one_item(files: int, world_size: int):
    run = manifest(files, world_size)
    items = run.items()
    assert [item.rank for item in items] == list(range(world_size))
    assert [ref for item in items for ref in item.partitions] == list(run.partitions)


def test_json_and_back():
    run = manifest(5, 2, script={"SCRIPT": "s.py"})
    assert Manifest.from_json(json.loads(json.dumps(run.to_json()))) == run
    item = run.item(1)
    assert WorkItem.from_json(json.dumps(item.to_json())) == item
    assert item.options.script == {
        "SCRIPT": "s.py",
        "WORLD_SIZE": "2",
        "RANK": "1",
        "DATA_PATH": '["100MB/4.pt", "100MB/5.pt"]',
    }
    assert item.options.timeout == 3.0


def test_loading_what_is_no_manifest():
    storage = Storage("memory://manifest-test/run")
    with pytest.raises(NotFoundError, match="no run at"):
        Manifest.load(storage)
    for text in (b"{", b"[]", b"{}"):
        storage.put(layout.MANIFEST, text)
        with pytest.raises(BadInputError, match="manifest"):
            Manifest.load(storage)


@pytest.mark.parametrize(
    "key",
    [
        *(layout.MANIFEST, layout.ITEMS, layout.PAYLOAD, layout.COMBINED, layout.SUMMARY),
        *(layout.CATALOGUE, layout.ENGINE, layout.DRIVER, layout.record(0), layout.record(516)),
        *(layout.predictions(3), layout.features(3), layout.moments(3), layout.script_record(3)),
        layout.log(12),
    ],
)
def test_the_layout_knows_its_own_objects(key: str):
    assert layout.is_of_run(key)


@pytest.mark.parametrize(
    "key", ["1.pt", "100MB/1.json", "notes.txt", "x/manifest.json", "-1.json", "a.json", "1.json/x"]
)
def test_and_no_others(key: str):
    assert not layout.is_of_run(key)


@pytest.mark.parametrize("script", [None, {"SCRIPT": "run.py"}])
def test_the_items_that_are_written_are_the_items(script: dict | None):
    run = manifest(7, 3, script)
    plain = list(run.plain_items())
    assert plain == [item.to_json() for item in run.items()]
    assert [WorkItem.from_json(json.dumps(one)) for one in plain] == run.items()


def test_a_hundred_thousand_ranks():
    """Each step is of one rank's size: in all some seconds, where sums over ranks took minutes."""
    run = manifest(100_000, 100_000)
    assert sum(1 for _ in run.plain_items()) == 100_000
    assert run.data_map()["99999"] == "100MB/100000.pt"
