"""The merge through a communicator: every rank scores its own objects, rank 0 publishes.

A rank comes here when its inference is done and its objects and record lie in the store, so
whatever goes wrong from here on costs nothing but time: summarize merges from the store then.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perseid.comm import Communicator
from perseid.comm.ops import Op
from perseid.errors import NoPathError, PerseidError, RunError
from perseid.jsontext import parse_json
from perseid.pipeline import columns, layout, merge
from perseid.pipeline.columns import PartitionResult
from perseid.pipeline.exchange import Exchange
from perseid.pipeline.items import WorkItem
from perseid.pipeline.join_settings import JoinSettings
from perseid.pipeline.publish import dump, findings, publish_catalogue
from perseid.pipeline.records import ALONE, STORE, had_data
from perseid.pipeline.stored import Plain, StoredRecord
from perseid.pipeline.timeline import Timeline
from perseid.science import Partial
from perseid.storage import Storage
from perseid.survey.kinds import stored_label_names


@dataclass(frozen=True)
class RankOutputs:
    """What a rank left when its inference was done."""

    item: WorkItem
    record: StoredRecord
    """As it lies in the store."""
    storage: Storage
    """Of the run's prefix."""
    folder: Path | None = None
    """Where copies lie on this machine's disk, if anywhere."""
    lock: AbstractContextManager[Any] = field(default_factory=nullcontext)
    """Held while arrays are read: Python 3.11's `ast`, which numpy reads headers by, is not safe
    in several threads."""

    @classmethod
    def of_store(
        cls, item: WorkItem, storage: Storage, lock: AbstractContextManager[Any] | None = None
    ) -> RankOutputs:
        """What any rank left, as the store has it."""
        key = layout.record(item.rank)
        record = StoredRecord.of(parse_json(storage.get(key)), storage.where(key))
        return cls(item, record, storage, lock=lock or nullcontext())

    def share(self) -> Share:
        """Its share of the survey's statistics."""
        item = self.item
        data, where = self._data("moments", layout.moments(item.rank))
        with self.lock:
            stamp, parts = columns.read_moments(data, where)
        places = {ref.key: place for place, ref in enumerate(item.partitions, item.first)}
        return Share(dict(stamp.groups), Partial.of((places[key], part) for key, part in parts))

    def results(self) -> list[PartitionResult]:
        """Columns and features of the rank's partitions."""
        data, where = self._data("features", layout.features(self.item.rank))
        with self.lock:
            return columns.read_results(data, where)[1]

    def _data(self, name: str, key: str) -> tuple[bytes, str]:
        path = self.folder / name if self.folder else None
        if path is not None and path.exists():
            return path.read_bytes(), str(path)
        return self.storage.get(key), self.storage.where(key)


@dataclass(frozen=True)
class Exchanged:
    """What a meeting changes in a rank's record: fields of `RankRecord`, keys of its JSON."""

    transport: str
    routes: Mapping[str, str]
    transport_note: str
    stages: Mapping[str, float]
    timeline: tuple[tuple[str, float, float], ...]


@dataclass(frozen=True, eq=False)
class Share:
    """Statistics of some ranks' partitions."""

    groups: Mapping[str, int]
    """Feature groups; empty where nothing is scored."""
    partial: Partial

    def join(self, other: Share) -> Share:
        """Of both; raises `RunError` where the ranks score by other features."""
        if self.groups and other.groups and dict(self.groups) != dict(other.groups):
            raise RunError("the ranks' models score by different features: give all one model")
        return Share(self.groups or other.groups, self.partial.join(other.partial))


JOIN = Op.custom(Share.join, commutative=True, associative=True)
"""Bit for bit so, since `Partial` is: it may go up a tree."""


def merge_collectively(left: RankOutputs, meeting: JoinSettings) -> Exchanged:
    """Take part in the merge of a run as one rank; what this changes in its record.

    Never raises: what goes wrong is in ``transport_note`` of the record, and ``transport`` is
    ``store`` then. The record in the store is replaced.
    """
    clock, routes = Timeline(), dict[int, str]()
    try:
        changes = _meet(left, meeting, clock, routes)
    except Exception as error:  # the store has all that is needed; a retry would redo the inference
        said = str(error) if isinstance(error, PerseidError) else f"{type(error).__name__}: {error}"
        if isinstance(error, NoPathError):
            routes |= dict.fromkeys(error.ranks, STORE)
        changes = _changes(left, clock, STORE, routes, said)
    # A record that cannot be replaced says `store`, which is what summarize believes anyway.
    with contextlib.suppress(PerseidError):
        left.storage.put(
            layout.record(left.item.rank), _json({**left.record.plain, **vars(changes)})
        )
    return changes


def _meet(
    left: RankOutputs, meeting: JoinSettings, clock: Timeline, routes: dict[int, str]
) -> Exchanged:
    item = left.item
    with clock.stage("rendezvous"):
        comm = Communicator.join(
            item.run_id,
            item.rank,
            item.world_size,
            meeting.rendezvous,
            meeting.key,
            transport=meeting.transport,
            deadline=meeting.deadline,
            timeout=meeting.timeout,
            death_timeout=meeting.losses.death,
            link_timeout=meeting.losses.link,
            silence_timeout=meeting.losses.silence,
        )
    with comm:
        try:
            with clock.stage("collectives"):
                groups, parts = merged(comm, left)
        finally:
            routes |= comm.routes
        used = "+".join(sorted(set(routes.values())))
        changes = _changes(left, clock, used or ALONE, routes, "")
        records = comm.gather({**left.record.plain, **vars(changes)})
    if parts is not None and records is not None:
        publish(left, groups, parts, records, clock)
    return changes


def merged(
    comm: Exchange, left: RankOutputs
) -> tuple[Mapping[str, int], list[merge.Scored] | None]:
    """Score every rank's objects against the whole survey.

    Returns
    -------
    Feature groups of the score, and on rank 0 all partitions in natural order (else None). Scores
    go to rank 0 with the columns, since the catalogue is one file: some 40 bytes an object, while
    the features (400) stay where they are. Ranks over all scores follow from them exactly.
    """
    share = comm.reduce(left.share(), JOIN)
    whole = None
    if share is not None:
        whole = (share.groups, merge.survey_metric(share.partial, share.groups))
    # One rank's metric for all: eigenvectors may differ by a bit from machine to machine.
    groups, metric = comm.bcast(whole)
    scored = [merge.score(result, metric) for result in left.results()]
    parts = comm.gather(scored)
    if parts is None:
        return groups, None
    return groups, [part for of_rank in parts for part in of_rank]


def publish(
    left: RankOutputs,
    groups: Mapping[str, int],
    parts: list[merge.Scored],
    records: list[Plain],
    clock: Timeline,
) -> None:
    """Rank 0: the catalogue, all records, and last what says that both are whole."""
    item, storage = left.item, left.storage
    survey = merge.rank(parts)
    with clock.stage("publish"):
        size = publish_catalogue(storage, survey, item.run_id, "rank 0")
        storage.put(layout.COMBINED, _json([one for one in records if had_data(one)]))
    names = stored_label_names(item.options.to_json(), item.data_url)
    done = {
        "run_id": item.run_id,
        "world_size": item.world_size,
        "catalogue_bytes": size,
        "seconds": {stage: clock.seconds(stage) for stage in ("rendezvous", "collectives",
                                                              "publish")},
        "found": vars(findings(survey, groups, item.anomaly, item.top, names)),
    }  # fmt: skip
    storage.put(layout.MERGED, dump(done))


def _changes(
    left: RankOutputs, clock: Timeline, transport: str, routes: Mapping[int, str], note: str
) -> Exchanged:
    spent = {stage: clock.seconds(stage) for stage in ("rendezvous", "collectives")}
    stages = {**left.record.stages, **spent}
    stages["total"] = left.record.stages["total"] + sum(spent.values())
    return Exchanged(
        transport=transport,
        routes={str(peer): route for peer, route in sorted(routes.items())},
        transport_note=note,
        stages=stages,
        timeline=(*left.record.timeline, *clock.joined()),
    )


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()
