"""A device that computes on its own is never left without work between blocks and partitions."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from networks import random_rows

from perseid.model.config import SMALL
from perseid.model.identity import CUDA
from perseid.model.loading import load_on
from perseid.pipeline import inference
from perseid.pipeline.items import PartitionRef, WorkItem
from perseid.pipeline.timeline import Timeline
from perseid.storage import Storage
from perseid.survey.cutouts import Cutouts
from perseid.survey.reader import write_cutouts

ROWS, MICRO_BATCH, PARTITIONS = 40, 16, 3


class OnItsOwn:
    """A session that computes in a thread of its own, as a GPU does, and says when it had what."""

    def __init__(self, session: Any) -> None:
        self._session, self._thread = session, ThreadPoolExecutor(1)
        self.begun = self.waited = 0
        self.least = 99
        """Least number of micro-batches that it had while one was waited for, at the end aside."""

    def begin(self, names: Any, feed: Any) -> Callable[[], Any]:
        copied = {name: np.array(array) for name, array in feed.items()}
        self.begun += 1
        computed = self._thread.submit(self._session.run, names, copied)

        def wait() -> Any:
            if self.begun < PARTITIONS * -(-ROWS // MICRO_BATCH):
                self.least = min(self.least, self.begun - self.waited)
            self.waited += 1
            return computed.result()

        return wait


@pytest.fixture
def item(tmp_path) -> WorkItem:
    storage, refs = Storage(str(tmp_path)), []
    for number in range(PARTITIONS):
        key = f"{number}.pt"
        write_cutouts(Cutouts(*random_rows(ROWS, SMALL, seed=number)), tmp_path / key)
        info = storage.info(key)
        refs.append(PartitionRef(key, info.size, info.etag))
    return WorkItem("run", 0, 1, str(tmp_path / "results"), str(tmp_path), tuple(refs))


def results(item: WorkItem, runtime: Any, progress: list[int]) -> list[Any]:
    return list(inference.Inference(item, runtime, Timeline()).results(progress.append))


@pytest.mark.parametrize("block", [1, ROWS])
def test_the_next_block_begins_before_the_last_one_is_waited_for(item, monkeypatch, block):
    expected, told = results(item, load_on("cpu", threads=1), []), []
    runtime = load_on("cpu", threads=1, micro_batch=MICRO_BATCH)
    session = OnItsOwn(runtime._session)
    runtime._session, runtime.identity = session, replace(runtime.identity, device=CUDA)
    monkeypatch.setattr(inference, "GPU_BLOCK_BYTES", block * 5 * 32 * 32 * 4)
    found = results(item, runtime, told)
    assert session.least == 2, "it would have had nothing to compute"
    assert told == sorted(told)
    assert told[-1] == PARTITIONS * ROWS
    assert [part.key for part in found] == [part.key for part in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.z_pred, other.z_pred, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(one.flag, other.flag)


def test_a_failed_partition_between_others_costs_only_itself(item):
    changed = replace(item.partitions[1], etag="another", size=1)
    item = replace(item, partitions=(item.partitions[0], changed, item.partitions[2]))
    runtime = load_on("cpu", threads=1, micro_batch=MICRO_BATCH)
    runtime._session = OnItsOwn(runtime._session)
    runtime.identity = replace(runtime.identity, device=CUDA)
    work = inference.Inference(item, runtime, Timeline())
    assert [part.key for part in work.results(lambda rows: None)] == ["0.pt", "2.pt"]
    assert [one["key"] for one in work.failed] == ["1.pt"]
    assert work.rows == 2 * ROWS


def test_the_next_partition_is_read_while_the_last_block_of_this_one_is_computed(item):
    runtime = load_on("cpu", threads=1, micro_batch=MICRO_BATCH)
    with inference.Feed(
        Storage(item.data_url), item.partitions, runtime.signature, MICRO_BATCH,
        block_bytes=inference.GPU_BLOCK_BYTES, ahead=inference.GPU_AHEAD,
    ) as feed:  # fmt: skip
        steps = iter(feed)
        assert isinstance(next(steps), inference.Begun)
        assert isinstance(next(steps), inference.Block)
        deadline = time.monotonic() + 60
        while len(feed.spans) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(feed.spans) >= 2, "the first block of the second partition was not read"
