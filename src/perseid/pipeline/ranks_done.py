"""Which ranks of a run have left a record."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from perseid.errors import NotFoundError, RunError
from perseid.jsontext import parse_json
from perseid.pipeline import layout
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.rank_outputs import READERS
from perseid.pipeline.stored import StoredRecord
from perseid.storage import ObjectInfo, Storage


class RanksDone:
    """The records of a run as they come, each of which is read only once."""

    def __init__(self, store: Storage, manifest: Manifest) -> None:
        self._store, self._manifest = store, manifest
        self._read: dict[int, ObjectInfo] = {}
        """The listing entry of each record that was read and is of this run."""

    def ranks(self, *, published: bool) -> set[int]:
        """Ranks with a record of this run; a record of a user's script does not count.

        If the run is published, no object of a former run is left, and nothing is read.
        """
        listed = self._listed()
        if published:
            return set(listed)
        # A --replace that was killed after its claim has left records of the former run.
        new = [rank for rank, info in listed.items() if self._read.get(rank) != info]
        with ThreadPoolExecutor(READERS) as pool:
            found = zip(new, pool.map(self.record, new), strict=True)
            self._read |= {rank: listed[rank] for rank, record in found if record is not None}
        return {rank for rank, info in listed.items() if self._read.get(rank) == info}

    def record(self, rank: int) -> StoredRecord | None:
        """A rank's record; None if there is none of this run, or one that is no record."""
        key = self._key(rank)
        try:
            plain = parse_json(self._store.get(key))
            record = StoredRecord.of(plain, key) if isinstance(plain, dict) else None
        except (NotFoundError, ValueError, RunError):
            return None
        return record if record is not None and record.run_id == self._manifest.run_id else None

    def _listed(self) -> dict[int, ObjectInfo]:
        # One listing instead of one request per rank.
        found = {info.key: info for info in self._store.list()}
        keys = {rank: self._key(rank) for rank in range(self._manifest.world_size)}
        return {rank: found[key] for rank, key in keys.items() if key in found}

    def _key(self, rank: int) -> str:
        return layout.done_record(rank, script=self._manifest.script is not None)
