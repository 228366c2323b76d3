"""The merge through a communicator: every rank scores its own objects, rank 0 publishes.

A rank starts merging only when its inference is done and its objects and record are in the store.
So a failure from here on costs only time: summarize then merges from the store.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perseid.comm import Communicator
from perseid.comm.ops import Op
from perseid.errors import NoPathError, PerseidError, RunError
from perseid.jsontext import json_bytes, parse_json
from perseid.pipeline import columns, layout, merge
from perseid.pipeline.catalogue_limits import LIMITS, CatalogueLimits
from perseid.pipeline.collective_parts import CollectiveParts
from perseid.pipeline.columns import PartitionResult
from perseid.pipeline.exchange import Exchange
from perseid.pipeline.items import WorkItem
from perseid.pipeline.join_settings import JoinSettings
from perseid.pipeline.publish import dump, findings, publish_catalogue
from perseid.pipeline.records import ALONE, STORE, had_data
from perseid.pipeline.stored import Findings, Plain, StoredRecord
from perseid.pipeline.timeline import Timeline
from perseid.science import Partial
from perseid.storage import Storage
from perseid.survey.kinds import stored_label_names


@dataclass(frozen=True)
class RankOutputs:
    """The outputs of a rank after its inference."""

    item: WorkItem
    record: StoredRecord
    """The rank's record as stored."""
    storage: Storage
    """Storage of the run's prefix."""
    folder: Path | None = None
    """Local folder with copies of the rank's objects; None if there are no copies."""
    lock: AbstractContextManager[Any] = field(default_factory=nullcontext)
    """Lock held while arrays are read: NumPy parses their headers with `ast`, which is not
    thread-safe in Python 3.11."""

    @classmethod
    def of_store(
        cls, item: WorkItem, storage: Storage, lock: AbstractContextManager[Any] | None = None
    ) -> RankOutputs:
        """Read the outputs of any rank from the store."""
        key = layout.record(item.rank)
        record = StoredRecord.of(parse_json(storage.get(key)), storage.where(key))
        return cls(item, record, storage, lock=lock or nullcontext())

    def share(self) -> Share:
        """The rank's share of the survey's statistics."""
        item = self.item
        data, where = self._data("moments", layout.moments(item.rank))
        with self.lock:
            stamp, parts = columns.read_moments(data, where)
        # Positions in the whole survey, not in the rank: sums are then merged in the same order
        # whatever the world size is.
        places = {ref.key: place for place, ref in enumerate(item.partitions, item.first)}
        partial = Partial.of((places[key], part) for key, part in parts)
        return Share(dict(stamp.groups), partial, self.record.rows)

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
    """Fields of `RankRecord` (and keys of its JSON) that a merge changes."""

    transport: str
    routes: Mapping[str, str]
    transport_note: str
    stages: Mapping[str, float]
    timeline: tuple[tuple[str, float, float], ...]


@dataclass(frozen=True, eq=False)
class Share:
    """Statistics of some ranks' partitions."""

    groups: Mapping[str, int]
    """Feature groups that the score uses; empty if nothing is scored."""
    partial: Partial
    rows: int = 0
    """Number of rows in the ranks' partitions."""

    def join(self, other: Share) -> Share:
        """Combine two shares; raises `RunError` if their ranks score by different features."""
        if self.groups and other.groups and dict(self.groups) != dict(other.groups):
            raise RunError("the ranks' models score by different features: give all one model")
        rows = self.rows + other.rows
        return Share(self.groups or other.groups, self.partial.join(other.partial), rows)


JOIN = Op.custom(Share.join, commutative=True, associative=True)
"""How `reduce` combines shares. Merging `Partial` values is associative bit for bit, so the shares
may be combined along a tree."""


def merge_collectively(
    outputs: RankOutputs, settings: JoinSettings, limits: CatalogueLimits = LIMITS
) -> Exchanged:
    """Take part in the merge of a run as one rank; returns the fields of its record that change.

    Never raises: if something goes wrong, the record's ``transport_note`` says what, and its
    ``transport`` is ``store``. The record in the store is replaced.
    """
    clock, transports = Timeline(), dict[int, str]()
    try:
        changes = _merge(outputs, settings, clock, transports, limits)
    except Exception as error:  # summarize merges from the store; a retry would redo the inference
        known = isinstance(error, PerseidError)
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        if isinstance(error, NoPathError):
            transports |= dict.fromkeys(error.ranks, STORE)
        changes = _changes(outputs, clock, STORE, transports, reason)
    # The old record, if it cannot be replaced, says `store`, so summarize merges from there.
    with contextlib.suppress(PerseidError):
        outputs.storage.put(
            layout.record(outputs.item.rank), json_bytes({**outputs.record.plain, **vars(changes)})
        )
    return changes


def _merge(
    outputs: RankOutputs,
    settings: JoinSettings,
    clock: Timeline,
    transports: dict[int, str],
    limits: CatalogueLimits,
) -> Exchanged:
    item = outputs.item
    with clock.stage("rendezvous"):
        comm = Communicator.join(
            item.run_id,
            item.rank,
            item.world_size,
            settings.rendezvous,
            settings.key,
            transport=settings.transport,
            certificate=settings.certificate,
            deadline=settings.deadline,
            timeout=settings.timeout,
            death_timeout=settings.losses.death,
            link_timeout=settings.losses.link,
            silence_timeout=settings.losses.silence,
        )
    with comm:
        try:
            with clock.stage("collectives"):
                survey = score_together(comm, outputs)
                catalogue = _catalogue(comm, outputs, survey, limits)
        finally:
            transports |= comm.transports
        used = "+".join(sorted(set(transports.values())))
        changes = _changes(outputs, clock, used or ALONE, transports, "")
        # Still within the communicator: rank 0 must not publish if any rank is lost before this
        # point.
        records = comm.gather({**outputs.record.plain, **vars(changes)})
    if catalogue is not None and records is not None:
        publish(outputs, catalogue, records, clock)
    return changes


@dataclass(frozen=True, eq=False)
class RankScores:
    """One rank's rows, scored against the whole survey."""

    scored: list[merge.Scored]
    """Scored rows of the rank's partitions."""
    groups: Mapping[str, int]
    """Feature groups that the score uses."""
    rows: int
    """Number of rows in the whole survey."""


Catalogue = Callable[[], tuple[Findings, int]]
"""Called on rank 0 to publish what is not published yet; returns the findings and the size of the
catalogue in bytes."""


def score_together(comm: Exchange, outputs: RankOutputs) -> RankScores:
    """Score every rank's objects against the whole survey."""
    share = comm.reduce(outputs.share(), JOIN)
    whole = None
    if share is not None:
        metric = merge.survey_metric(share.partial, share.groups)
        whole = (share.groups, metric, share.rows)
    # All ranks use rank 0's metric, as eigenvectors may differ in the last bit between machines.
    groups, metric, rows = comm.bcast(whole)
    return RankScores([merge.score(result, metric) for result in outputs.results()], groups, rows)


def _catalogue(
    comm: Exchange, outputs: RankOutputs, survey: RankScores, limits: CatalogueLimits
) -> Catalogue | None:
    """Gather the catalogue on rank 0 (the other ranks get None), or write one part of it per rank.

    If the catalogue is one file, scores and columns go to rank 0, about 40 bytes per object; the
    features, about 400 bytes per object, stay on their ranks. Rank 0 computes the anomaly ranks
    from all scores.
    """
    item, storage = outputs.item, outputs.storage
    if survey.rows > limits.single_file:
        written = CollectiveParts(comm, item, storage, limits).publish(survey.scored, survey.groups)
        return None if written is None else lambda: written
    gathered = comm.gather(survey.scored)
    if gathered is None:
        return None
    parts = [part for of_rank in gathered for part in of_rank]

    def publish_file() -> tuple[Findings, int]:
        whole = merge.rank(parts)
        size = publish_catalogue(storage, whole, item.run_id, "rank 0", item.survey_columns)
        names = stored_label_names(item.options.to_json(), item.data_url)
        return findings(whole, survey.groups, item.anomaly, item.top, names), size

    return publish_file


def publish(
    outputs: RankOutputs, catalogue: Catalogue, records: list[Plain], clock: Timeline
) -> None:
    """On rank 0: write the catalogue, all records, and last the object that marks both as
    complete."""
    item, storage = outputs.item, outputs.storage
    with clock.stage("publish"):
        found, size = catalogue()
        storage.put(layout.COMBINED, json_bytes([one for one in records if had_data(one)]))
    done = {
        "run_id": item.run_id,
        "world_size": item.world_size,
        "catalogue_bytes": size,
        "seconds": {stage: clock.seconds(stage) for stage in ("rendezvous", "collectives",
                                                              "publish")},
        "found": vars(found),
    }  # fmt: skip
    # Written last: summarize ignores a collective merge until this object exists.
    storage.put(layout.MERGED, dump(done))


def _changes(
    outputs: RankOutputs, clock: Timeline, transport: str, transports: Mapping[int, str], note: str
) -> Exchanged:
    spent = {stage: clock.seconds(stage) for stage in ("rendezvous", "collectives")}
    stages = {**outputs.record.stages, **spent}
    stages["total"] = outputs.record.stages["total"] + sum(spent.values())
    return Exchanged(
        transport=transport,
        routes={str(peer): used for peer, used in sorted(transports.items())},
        transport_note=note,
        stages=stages,
        timeline=(*outputs.record.timeline, *clock.joined()),
    )
