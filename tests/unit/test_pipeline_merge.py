"""The merge as plain functions: the same in any grouping, and over an exchange between ranks."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perseid.comm.ops import Op
from perseid.errors import RunError
from perseid.pipeline import merge
from perseid.pipeline.collective_merge import Share, score_together
from perseid.pipeline.columns import (
    NpzWriter,
    PartitionResult,
    Stamp,
    add_moments,
    add_result,
    read_moments,
    read_results,
)
from perseid.pipeline.exchange import Exchange
from perseid.science import Moments, Partial

GROUPS = {"embedding": 3, "residual": 2}


def partition(number: int, rows: int) -> PartitionResult:
    random = np.random.default_rng(number)
    features = random.normal(size=(rows, 5)).astype(np.float32)
    flag = np.zeros(rows, np.int32)
    flag[:1], features[:1] = 1, np.nan
    return PartitionResult(
        key=f"{number}.pt",
        z_pred=random.random(rows).astype(np.float32),
        flag=flag,
        object_id=np.arange(rows) + 100 * number,
        z_spec=random.random(rows) if number % 2 else None,
        label=None,
        features=features,
    )


def moments(results: list[PartitionResult]) -> list[Moments]:
    return [Moments.of(result.features) for result in results if result.features is not None]


class Shared:
    """What the threads of one exchange share."""

    def __init__(self, size: int) -> None:
        self.gate = threading.Barrier(size, timeout=30)
        self.values: list[Any] = [None] * size


class ThreadExchange:
    """Ranks as threads of this process."""

    def __init__(self, rank: int, shared: Shared) -> None:
        self.rank, self._shared = rank, shared
        self.world_size = len(shared.values)

    def gather(self, value: Any, root: int = 0) -> list[Any] | None:
        everything = self._all(value)
        return everything if self.rank == root else None

    def bcast(self, value: Any, root: int = 0) -> Any:
        return self._all(value)[root]

    def reduce(self, value: Any, op: Op, root: int = 0) -> Any:
        first, *others = self._all(value)
        for other in others:
            first = op.function(first, other)
        return first if self.rank == root else None

    def scatter(self, values: Any = None, root: int = 0) -> Any:
        return self._all(values)[root][self.rank]

    def _all(self, value: Any) -> list[Any]:
        self._shared.values[self.rank] = value
        self._shared.gate.wait()
        everything = list(self._shared.values)
        self._shared.gate.wait()
        return everything


class OfMemory:
    """What `score_together` asks of a rank's objects."""

    def __init__(self, first: int, own: list[PartitionResult]) -> None:
        self._first, self._own = first, own

    def share(self) -> Share:
        parts = Partial.of(enumerate(moments(self._own), self._first))
        return Share(GROUPS if self._own else {}, parts, sum(map(len, self._own)))

    def results(self) -> list[PartitionResult]:
        return self._own


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_over_an_exchange_between_ranks(ranks: int):
    results = [partition(number, 5 + number) for number in range(6)]
    metric = merge.survey_metric(moments(results), GROUPS)
    expected = merge.rank([merge.score(result, metric) for result in results])
    shared = Shared(ranks)
    per = -(-len(results) // ranks)
    shares = [OfMemory(r * per, results[r * per : (r + 1) * per]) for r in range(ranks)]
    with ThreadPoolExecutor(ranks) as pool:
        exchanges: list[Exchange] = [ThreadExchange(rank, shared) for rank in range(ranks)]
        ends = list(pool.map(score_together, exchanges, shares))
    assert all(end.groups == GROUPS and end.rows == 45 for end in ends)
    survey = merge.rank([part for end in ends for part in end.scored])
    np.testing.assert_array_equal(survey.rank, expected.rank)
    for got, wanted in zip(survey.parts, expected.parts, strict=True):
        np.testing.assert_array_equal(got.score, wanted.score)


def test_ranks_and_the_top_list():
    results = [partition(number, 4) for number in range(3)]
    scores = [[np.nan, 2.0, 9.0, 2.0], [np.nan, 5.0, 2.0, 1.0], [np.nan, 9.0, 3.0, 4.0]]
    survey = merge.rank(
        [merge.Scored(r, np.array(s)) for r, s in zip(results, scores, strict=True)]
    )
    assert survey.rank.tolist() == [0, 6, 1, 7, 0, 3, 8, 9, 0, 2, 5, 4]  # ties by place
    assert [part.tolist() for part in survey.ranks()][1] == [0, 3, 8, 9]
    top = merge.top_list(survey, 3, {})
    assert [(e["anomaly_rank"], e["partition"], e["row"]) for e in top] == [
        (1, "0.pt", 2),
        (2, "2.pt", 1),
        (3, "1.pt", 1),
    ]
    assert top[2]["object_id"] == 101
    assert top[0]["z_spec"] is None
    assert top[2]["z_spec"] == results[1].z_spec[1]
    assert merge.top_list(survey, 0, {}) == []


def test_redshifts_of_partitions_that_have_them():
    results = [partition(number, 10) for number in range(3)]
    survey = merge.rank([merge.Scored(r, np.full(10, np.nan)) for r in results])
    found = merge.redshifts(survey)
    assert found is not None
    assert found["n"] == 10
    error = np.abs(results[1].z_pred - results[1].z_spec)
    assert found["mae"] == pytest.approx(error.mean())
    assert merge.redshifts(merge.rank([])) is None


def test_a_kind_of_anomaly_that_we_do_not_know():
    result = partition(1, 20)
    label = np.zeros(20, np.int32)
    label[5:8] = 77
    known = PartitionResult("x", result.z_pred, result.flag, label=label)
    survey = merge.rank([merge.Scored(known, np.arange(20.0))])
    assert [found["kind"] for found in merge.detections(survey, {})] == ["all", "label 77"]


def test_objects_of_a_rank_and_back(tmp_path: Path):
    results = [partition(number, 3 + number) for number in (10, 2)]
    stamp = Stamp("run", 4, GROUPS)
    with NpzWriter(tmp_path / "f", stamp) as features, NpzWriter(tmp_path / "m", stamp) as small:
        for result in results:
            add_result(features, result)
            add_moments(small, result.key, Moments.of(result.features))
    got_stamp, got = read_results((tmp_path / "f").read_bytes(), "f")
    assert got_stamp == stamp
    assert [part.key for part in got] == ["10.pt", "2.pt"]
    for part, result in zip(got, results, strict=True):
        np.testing.assert_array_equal(part.features, result.features)
        np.testing.assert_array_equal(part.z_pred, result.z_pred)
        assert part.z_spec is None
    got_stamp, parts = read_moments((tmp_path / "m").read_bytes(), "m")
    assert [key for key, _ in parts] == ["10.pt", "2.pt"]
    np.testing.assert_array_equal(parts[0][1].scatter, Moments.of(results[0].features).scatter)
    for data in (b"", b"nonsense", (tmp_path / "f").read_bytes()[:-40]):
        with pytest.raises(RunError, match="the-place is broken"):
            read_results(data, "the-place")
