"""The manifest of a run: what it is to do, written once when it begins and never changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import accumulate
from typing import Annotated

from perseid import __version__
from perseid.errors import BadInputError, NotFoundError
from perseid.jsontext import parse_json
from perseid.model.identity import ModelIdentity
from perseid.pipeline import layout
from perseid.pipeline.items import PartitionRef, WorkItem, data_path
from perseid.pipeline.run_settings import RunSettings
from perseid.pipeline.schema import (
    FIRST,
    SCHEMA,
    Count,
    Name,
    Within,
    check_schema,
    from_plain,
    to_plain,
    written,
)
from perseid.storage import Storage

NEWER = "update perseid (`pip install --upgrade perseid`)"
"""Advice to the user if a run was begun by a newer version."""
ORDER = "natural"
"""The sort order of partitions: ``2.pt`` before ``10.pt``."""
LAST_SECOND = 253_402_300_799
"""The last second of the year 9999, the last one that can be shown as a date."""


@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``. The run that creates this object owns the prefix."""

    run_id: Name
    """Unique id of the run, carried by all of its records."""
    created: Annotated[float, Within(0, LAST_SECOND)]
    """When initialize began, seconds since the epoch (UTC)."""
    version: str
    """Version of perseid that began the run."""
    results_url: Name
    """The run's own prefix."""
    data_url: Name
    """URL of the bucket or folder that partition keys are relative to."""
    partitions: tuple[PartitionRef, ...]
    """The partitions, in natural order."""
    assignment: tuple[Count, ...]
    """Number of partitions per rank. Each rank takes a contiguous range, and rank 0 the first
    one."""
    settings: RunSettings
    """Those fields of `WorkItem` that are the same for all ranks (model, precision, …)."""
    request: Mapping[str, object]
    """The request as the user gave it, including unknown keys."""
    script: Mapping[str, str] | None = None
    """In script mode, the environment variables that all ranks share; None if our runtime does the
    work."""
    warnings: tuple[str, ...] = ()
    """Warnings for the user, one sentence each."""
    model: ModelIdentity | None = None
    """The model that the run began with; None in script mode and in runs of earlier versions."""
    resumed_with: ModelIdentity | None = field(default=None, metadata={"written": False})
    """In a resumed run, the model as it is now. Not written to the store."""
    allow_model_change: bool = field(default=False, metadata={"written": False})
    """In a resumed run, whether the model may differ from the one it began with. Not written to the
    store."""
    order: str = field(default=ORDER)
    """How `partitions` is sorted."""
    schema: int = FIRST
    """Version of the manifest's keys; see `perseid.pipeline.schema`."""

    @property
    def world_size(self) -> int:
        """Number of ranks, including those without data."""
        return len(self.assignment)

    @property
    def talks(self) -> bool:
        """Whether the ranks belong to a script and talk to each other, so that all must run at
        once."""
        return bool(self.settings.options.talks)

    @cached_property
    def _firsts(self) -> tuple[int, ...]:
        """For each rank, the position of its first partition among all partitions."""
        return (0, *accumulate(self.assignment))

    def of_rank(self, rank: int) -> tuple[PartitionRef, ...]:
        """The partitions of a rank, in natural order."""
        start = self._firsts[rank]
        return self.partitions[start : start + self.assignment[rank]]

    def item(self, rank: int) -> WorkItem:
        """The work item of one rank."""
        settings = self.settings
        if self.script is not None:
            script = {**self.script, **self._variables(rank)}
            settings = replace(settings, options=replace(settings.options, script=script))
        return WorkItem(
            run_id=self.run_id,
            rank=rank,
            world_size=self.world_size,
            results_url=self.results_url,
            data_url=self.data_url,
            partitions=self.of_rank(rank),
            first=self._firsts[rank],
            model=self.resumed_with or self.model,
            version=__version__,
            schema=SCHEMA,
            model_change=bool(
                self.model and self.resumed_with and self.model.difference(self.resumed_with)
            ),
            **{f.name: getattr(settings, f.name) for f in fields(settings)},
        )

    def _variables(self, rank: int) -> dict[str, str]:
        """Environment variables of a script that depend on its rank; the request cannot override
        them."""
        share = data_path(self.of_rank(rank))
        text = json.dumps(share) if isinstance(share, list) else share or ""
        return {"WORLD_SIZE": str(self.world_size), "RANK": str(rank), "DATA_PATH": text}

    def items(self) -> list[WorkItem]:
        """The work items of all ranks."""
        return [self.item(rank) for rank in range(self.world_size)]

    def plain_items(self) -> Iterator[dict[str, object]]:
        """The JSON values of `items`, one rank after the other. What the ranks share is converted
        only once."""
        if self.script is not None:
            yield from (item.to_json() for item in self.items())
            return
        first = self.item(0).to_json()
        for rank in range(self.world_size):
            own = {
                "rank": rank,
                "partitions": [to_plain(ref) for ref in self.of_rank(rank)],
                "first": self._firsts[rank],
            }
            yield first | own

    def data_map(self) -> dict[str, str | list[str] | None]:
        """The data map that existing scripts read: for each rank one key, a list of keys, or
        null."""
        return {str(rank): data_path(self.of_rank(rank)) for rank in range(self.world_size)}

    def to_json(self) -> dict[str, object]:
        """The manifest as JSON values, as stored in ``manifest.json``."""
        return {f.name: to_plain(getattr(self, f.name)) for f in written(Manifest)}

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Manifest:
        """The reverse of `to_json`; raises `BadInputError` naming what is wrong."""
        version = str(value.get("version", ""))
        schema = check_schema(value.get("schema"), "this run", version, NEWER)
        manifest = from_plain(cls, {**value, "schema": schema}, "this manifest")
        assigned, there = sum(manifest.assignment), len(manifest.partitions)
        if assigned != there or not manifest.assignment:
            raise BadInputError(
                f"this manifest cannot be read: 'assignment' names {assigned} partitions for "
                f"{manifest.world_size} ranks, and 'partitions' has {there}"
            )
        return manifest

    @classmethod
    def load(cls, storage: Storage) -> Manifest:
        """Load the manifest of the run at this prefix.

        Raises
        ------
        NotFoundError
            No run was started there.
        BadInputError
            The object there is not a manifest.
        """
        try:
            text = storage.get(layout.MANIFEST)
        except NotFoundError as error:
            raise NotFoundError(
                f"there is no run at {storage.where()}: it holds no {layout.MANIFEST}"
            ) from error
        try:
            manifest = cls.from_json(parse_json(text))
        except BadInputError:
            raise
        except (ValueError, AttributeError) as error:
            raise BadInputError(f"{storage.where(layout.MANIFEST)} is not a manifest") from error
        return replace(manifest, results_url=storage.url)  # the run may have been moved


def assign(files: int, world_size: int, weights: Sequence[int] | None = None) -> tuple[int, ...]:
    """Number of files per rank: rank r takes ceil(files left / ranks left) of them; surplus ranks
    take none.

    With `weights`, one per file, the weight of the heaviest rank is minimized, and every rank takes
    at least one file as long as there are any.

    Examples
    --------
    >>> assign(5, 2), assign(5, 2, [9, 1, 1, 1, 1])
    ((3, 2), (1, 4))
    """
    if weights is not None:
        return _balanced(weights, world_size)
    counts, left = [], files
    for rank in range(world_size):
        counts.append(-(-left // (world_size - rank)))
        left -= counts[-1]
    return tuple(counts)


def _balanced(weights: Sequence[int], world_size: int) -> tuple[int, ...]:
    """Number of files per rank, for the smallest weight limit with which the ranks can take all
    files."""
    low, high = max(weights, default=0), sum(weights)
    while low < high:
        limit = (low + high) // 2
        low, high = (low, limit) if sum(_within(weights, world_size, limit)) == len(weights) else (
            limit + 1, high
        )  # fmt: skip
    return _within(weights, world_size, low)


def _within(weights: Sequence[int], world_size: int, limit: int) -> tuple[int, ...]:
    """Number of files per rank if each takes as many as `limit` allows but leaves one for every
    later rank."""
    counts, at = [], 0
    for rank in range(world_size):
        start, total = at, 0
        spare = len(weights) - (world_size - rank - 1)
        while at < len(weights) and total + weights[at] <= limit and (at == start or at < spare):
            total += weights[at]
            at += 1
        counts.append(at - start)
    return tuple(counts)
