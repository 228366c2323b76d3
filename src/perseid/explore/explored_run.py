"""A run as it is explored: its catalogue, its pictures, and the rows that a query selects."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.api.catalogue import Catalogue
from perseid.api.run import Run
from perseid.errors import BadInputError, NotFoundError, PerseidError
from perseid.explore.conditions import PAGE_ROWS, Mask, Query, all_of
from perseid.explore.cutout_images import CutoutImages
from perseid.explore.object_table import ObjectTable, ResultCache
from perseid.explore.plots import MAP_X, MAP_Y, Plots, Shown
from perseid.explore.run_features import RunFeatures, load_features
from perseid.jsontext import parse_json
from perseid.measure.sources.rank_measures import read_record
from perseid.model.export.residual_image import ResidualImages
from perseid.pipeline import layout
from perseid.plaintext import counted
from perseid.storage import Storage
from perseid.survey.kinds import stored_label_names

FIRST = (
    "object_id", "class", "z_pred", "z_spec", "anomaly_score", "anomaly_rank", "label", "rating",
    "learned_score", "learned_rank",
)  # fmt: skip
"""Columns that come first in the table."""
HIDDEN = ("partition", "row", "flag")
"""Columns that come last in the table."""


@dataclass(frozen=True)
class TablePage:
    """One page of the table."""

    rows: NDArray[np.int64]
    """Row numbers in the catalogue."""
    number: int
    pages: int
    total: int
    """Number of rows on all pages."""


class ExploredRun:
    """One run for all visitors; safe to use from several threads.

    Parameters
    ----------
    run
        The run, which may be finished or going on.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.store = Storage(run.url)
        """The store at the run's prefix."""
        self.images = CutoutImages(run.manifest, self.model_bands)
        """Cutouts of the run's survey."""
        self._lock = threading.RLock()
        self._table: ObjectTable | None = None
        self._plots: Plots | None = None
        self._bands: tuple[str, ...] | None = None
        self._features: RunFeatures | None = None
        # Separate from `_lock`: reading features takes long, and pages must not wait for it.
        self._loading = threading.RLock()
        self._preparing = False
        self.prepared = threading.Event()
        """Set once the features were read or could not be read."""
        self.residuals: ResidualImages | None = None
        """Residuals of the model's reconstruction; None if the model gives none."""
        self.map_note = ""
        """Reason why there is no map; empty if there is one or it is not yet made."""
        self._masks = ResultCache(24)
        self._pages = ResultCache(12)

    @property
    def label_names(self) -> dict[int, str]:
        """Names of the survey's labels, else the model's classes in order; empty if unknown."""
        manifest = self.run.manifest
        names = stored_label_names(manifest.settings.options.to_json(), manifest.data_url)
        if names:
            return names
        try:
            found = parse_json(self.store.get(layout.SUMMARY))["classification"]["classes"]
        except (PerseidError, ValueError, KeyError, TypeError):
            return {}
        return dict(enumerate(str(name) for name in found))

    def table(self) -> ObjectTable | None:
        """The catalogue, read when it is first needed; None while the run has none."""
        with self._lock:
            if self._table is None:
                try:
                    found = Catalogue(self.store).to_arrow()
                except NotFoundError:
                    return None
                # Read once; `forget` is called when the catalogue changes.
                self._table = ObjectTable(found, self.label_names)
                self._plots = Plots(self._table)
            return self._table

    def needed_table(self) -> ObjectTable:
        """The catalogue; raises `NotFoundError` while the run has none."""
        table = self.table()
        if table is None:
            raise NotFoundError("the run has no catalogue yet: it is written when the run ends")
        return table

    def features(self) -> RunFeatures:
        """The features of all objects, read when they are first needed.

        Raises
        ------
        NotFoundError
            The run has no features.
        BadInputError
            The features do not fit into memory.
        """
        table = self.needed_table()
        with self._loading:
            # After the end of a run the catalogue may have more rows than before.
            if self._features is None or len(self._features.values) != len(table):
                found = load_features(self.store, self.run.manifest, table)
                # The positions become columns, so that brushes and filters work on the map as well.
                places = found.places()
                for name, column in zip((MAP_X, MAP_Y), places.T, strict=True):
                    table.add(name, np.ascontiguousarray(column))
                    self.changed(name)
                self._features = found
            return self._features

    @property
    def known_groups(self) -> Mapping[str, int]:
        """Width of each group of features; empty until the features are read."""
        return self._features.groups if self._features else {}

    @property
    def known_features(self) -> RunFeatures | None:
        """The features; None until they are read."""
        return self._features

    def prepare(self) -> None:
        """Begin to read the features in a separate thread, unless that has begun already."""
        with self._lock:
            if self._preparing or self.table() is None:
                return
            self._preparing = True
        threading.Thread(target=self._prepare, name="features", daemon=True).start()

    def _prepare(self) -> None:
        try:
            self.features()
        except PerseidError as error:
            self.map_note = str(error)
        finally:
            self.prepared.set()
        model = self.run.manifest.model
        if "residual" in self.known_groups and model is not None:
            # The model may be missing on this machine, or be of another version.
            with suppress(PerseidError):  # the page then shows no residuals
                self.residuals = ResidualImages(model.uri, model.digest)

    def find(self, partition: str, row: int) -> int | None:
        """The row number of an object in the catalogue; None if it is not there."""
        table = self.needed_table()
        names = table.texts("partition")
        if partition not in names:
            return None
        # Codes are compared, which is faster than a million texts.
        of_partition = table.numbers("partition") == names.index(partition)
        found = np.flatnonzero(of_partition & (table.numbers("row") == row))
        return int(found[0]) if len(found) else None

    def plots(self) -> Plots:
        """The plots of the catalogue; raises `NotFoundError` while the run has none."""
        self.needed_table()
        assert self._plots is not None
        return self._plots

    def forget(self) -> None:
        """Forget what was read, after the run has ended or was published again."""
        with self._lock:
            self._table = self._plots = self._features = None
            self._preparing, self.map_note = False, ""
            self.prepared.clear()
            self._masks.forget(lambda key: True)
            self._pages.forget(lambda key: True)

    def changed(self, column: str) -> None:
        """Forget results after the values of an added column have changed."""
        self._masks.forget(lambda key: True)
        self._pages.forget(lambda key: True)
        self.plots().forget(column)

    def shown(self, query: Query) -> Shown:
        """The rows that a query leaves, and those of them that it selects."""
        table = self.needed_table()
        base = self._mask(query.filters, table)
        selected = self._mask(query.selection, table)
        if base is not None and selected is not None:
            selected = base & selected
        return Shown(base, selected, query.selection)

    def _mask(self, conditions: Sequence[Any], table: ObjectTable) -> Mask | None:
        found: Mask | None = self._masks.get(tuple(conditions), lambda: all_of(conditions, table))
        return found

    def ordered(self, query: Query) -> NDArray[np.int64]:
        """Row numbers of all rows of the table, in the order of the query."""
        key = (query.filters, query.selection, query.sort, query.descending)
        # The page is not in the key: all pages share one order.
        return self._pages.get(key, lambda: self._ordered(query))

    def _ordered(self, query: Query) -> NDArray[np.int64]:
        table, shown = self.needed_table(), self.shown(query)
        rows = shown.base if shown.selected is None else shown.selected
        if not query.sort:
            found = np.arange(len(table)) if rows is None else np.flatnonzero(rows)
            return np.asarray(found, np.int64)
        table.kind(query.sort)  # raises if there is no such column
        order = table.order(query.sort, descending=query.descending)
        return np.asarray(order if rows is None else order[rows[order]], np.int64)

    def page(self, query: Query) -> TablePage:
        """One page of the table; the last page if the requested one does not exist."""
        rows = self.ordered(query)
        # At least one page, so that an empty table can say that it is empty.
        pages = max(1, -(-len(rows) // PAGE_ROWS))
        number = min(query.page, pages)
        start = (number - 1) * PAGE_ROWS
        return TablePage(rows[start : start + PAGE_ROWS], number, pages, len(rows))

    def place(self, index: int) -> tuple[str, int]:
        """Partition and row of an object; raises `BadInputError` if there is no such object."""
        table = self.needed_table()
        if not 0 <= index < len(table):
            raise BadInputError(
                f"there is no object {index}: the catalogue has {counted(len(table), 'row')}"
            )
        one = np.array([index])
        (partition,), (row,) = table.values("partition", one), table.values("row", one)
        return str(partition), int(str(row))

    def model_bands(self) -> tuple[str, ...]:
        """Names of the model's bands; empty if they are unknown."""
        if self._bands is None:
            # All ranks have the same model, so the record of any rank tells.
            try:
                self._bands = read_record(parse_json(self.store.get(layout.record(0))), 0).bands
            except (PerseidError, ValueError):
                self._bands = ()
        return self._bands

    def band_names(self, count: int) -> tuple[str, ...]:
        """Names of this many bands, from the model; numbered if it does not name as many."""
        names = self.model_bands()
        if len(names) == count:
            return names
        return tuple(f"band {number}" for number in range(1, count + 1))

    def columns(self) -> list[str]:
        """Columns of the table in order: the most important first, the technical ones last."""
        table = self.needed_table()
        names = [*table.names, *(n for n in table.added if n not in (MAP_X, MAP_Y))]
        ordered = [n for n in FIRST if n in names]
        ordered += [n for n in names if n not in ordered and n not in HIDDEN]
        return ordered + [n for n in HIDDEN if n in names]

    def close(self) -> None:
        """Close the open partitions."""
        self.images.close()
