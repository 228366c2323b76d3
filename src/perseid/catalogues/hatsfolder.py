"""Export to HATS: Parquet files by HEALPix pixel, which LSDB can join and search by position.

https://www.ivoa.net/documents/Notes/HATS/. Pixels are as large as possible with at most `MOST_ROWS`
objects. The rows are read twice: first to count them, then to distribute them to files on the local
disk. Memory holds at most `HELD_ROWS` objects, or those of one pixel.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.catalogues.parquetfile import footer_pairs, longest_texts
from perseid.catalogues.selection import Selection
from perseid.errors import BadInputError
from perseid.libraries import library_error
from perseid.plaintext import one_line, option
from perseid.survey.formats.arrow import pyarrow_module

MOST_ROWS = 1_000_000
"""Maximum number of objects in a pixel, except in the smallest pixels."""
HELD_ROWS = 1_000_000
"""Number of objects in memory at which they are written to the files of their pixels."""
ORDER = 8
"""HEALPix order of the smallest pixels (14 arc minutes) and of the map of the sky."""
INDEX, INDEX_ORDER = "_healpix_29", 29
"""The column that HATS sorts by, and the HEALPix order of its pixels."""
PROPERTIES = ("hats.properties", "properties")
"""Files that make a folder a catalogue; they are written last."""
_POSITIONS = {"ra": "NAME", "dec": "NAME"}
"""How a survey's columns are named."""


@dataclass(frozen=True)
class _Position:
    """Names of the columns with the coordinates, in degrees."""

    ra: str
    dec: str


def write_hats(selection: Selection, folder: Path, most: int = MOST_ROWS) -> int:
    """Write the folder of a HATS catalogue and return the number of objects in it.

    Objects without a position are left out. `most` is the maximum number of objects in a pixel.

    Raises
    ------
    BadInputError
        The catalogue has no coordinates, or no object has a position.
    NotInstalledError
        The package hats is missing.
    """
    hats = _hats_module()
    position = _position(selection)
    counts = np.zeros(12 << 2 * ORDER, np.int64)
    for _, index in _placed(selection, position):
        counts += np.bincount(index >> 2 * (INDEX_ORDER - ORDER), minlength=len(counts))
    rows = int(counts.sum())
    if not rows:
        raise BadInputError(f"no selected object of {selection.source} has a position: HATS "
                            "needs right ascension and declination")  # fmt: skip
    orders = pixel_orders(counts, most)
    shards = _deal_out(selection, position, orders, folder / "shards")
    pixels = _write_pixels(selection, shards, folder)
    # Fails if a file is left there: its rows would be in no pixel.
    (folder / "shards").rmdir()
    hats.catalog.PartitionInfo.from_healpix(
        [hats.pixel_math.HealpixPixel(*pixel) for pixel in pixels]
    ).write_to_file(catalog_path=folder)
    hats.io.write_parquet_metadata(folder)
    hats.io.skymap.write_skymap(counts, folder)
    _write_properties(selection, position, rows, pixels, folder)
    return rows


def pixel_orders(counts: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """For each pixel of order k, the order of the output pixel that contains it, (12 * 4**k,).

    Parameters
    ----------
    counts
        Number of objects in each pixel of order k in the nested scheme, (12 * 4**k,).
    most
        Maximum number of objects in a pixel, unless it is of order k.

    Examples
    --------
    >>> counts = np.zeros(48, int)
    >>> counts[:5] = 9, 9, 0, 0, 3
    >>> pixel_orders(counts, 10)[:8].tolist()
    [1, 1, 1, 1, 0, 0, 0, 0]
    """
    last = int(np.log2(len(counts) // 12)) // 2
    orders = np.full(len(counts), last, np.int64)
    is_open = np.ones(12, bool)
    for order in range(last):
        sums = counts.reshape(12 << 2 * order, -1).sum(axis=1)
        done = is_open & (sums <= most)
        # In the nested scheme the pixels within one of a lower order are consecutive.
        orders.reshape(len(sums), -1)[done] = order
        is_open = np.repeat(is_open & ~done, 4)
    return orders


def _hats_module() -> Any:
    try:
        import hats
        import hats.catalog
        import hats.io.skymap
        import hats.pixel_math
    except ImportError as error:
        raise library_error(
            error, "writing a HATS catalogue needs hats: pip install 'perseid[hats]'"
        ) from error
    return hats


def _position(selection: Selection) -> _Position:
    """The columns of right ascension and declination, found by UCD or otherwise by name."""
    found = []
    for name, ucd in (("ra", "pos.eq.ra"), ("dec", "pos.eq.dec")):
        meanings = selection.meanings
        named = [c for c in selection.columns if meanings[c].ucd.split(";")[0] == ucd]
        # A survey may have several positions; the UCD marks the main one.
        named.sort(key=lambda column: "meta.main" not in meanings[column].ucd)
        named += [column for column in selection.columns if column.lower() == name]
        if not named:
            raise BadInputError(
                f"{selection.source} has no column {name}, and HATS is ordered by position: run "
                f"over a survey with coordinates ({option('columns', _POSITIONS)} names "
                f"them), and leave them among {option('columns')} of the catalogue"
            )
        found.append(named[0])
    return _Position(*found)


def _placed(selection: Selection, at: _Position) -> Iterator[tuple[Any, NDArray[np.int64]]]:
    """Yield tables of objects with a position, and the pixel of `INDEX_ORDER` of each object."""
    spatial_index = _hats_module().pixel_math.compute_spatial_index
    for table in selection.batches():
        # The survey may have a column of this name, with another order or outdated positions.
        if INDEX in table.column_names:
            table = table.drop_columns([INDEX])
        ra, dec = (_degrees(table[name]) for name in (at.ra, at.dec))
        # A position outside the sphere has no pixel.
        good = np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90)
        if not good.all():
            table = table.filter(good)
        if table.num_rows:
            yield table, np.asarray(spatial_index(ra[good] % 360, dec[good]), np.int64)


def _degrees(column: Any) -> NDArray[np.float64]:
    pa = pyarrow_module()
    try:
        values = column.cast(pa.float64()).combine_chunks()
    except pa.ArrowException as error:
        raise BadInputError(f"a coordinate is not a number: {one_line(str(error))}") from error
    return np.asarray(values.fill_null(np.nan).to_numpy(zero_copy_only=False), np.float64)


def _deal_out(
    selection: Selection, at: _Position, orders: NDArray[np.int64], folder: Path
) -> dict[tuple[int, int], list[Path]]:
    """Write the objects of each pixel (order, number) to separate files, unsorted."""
    pa = pyarrow_module()
    folder.mkdir(parents=True)
    files: dict[tuple[int, int], list[Path]] = defaultdict(list)
    held: dict[tuple[int, int], list[Any]] = defaultdict(list)

    def write() -> None:
        for pixel, tables in held.items():
            path = folder / f"{pixel[0]}-{pixel[1]}-{len(files[pixel])}.arrow"
            whole = pa.concat_tables(tables)
            with pa.ipc.new_file(path, whole.schema) as writer:
                writer.write_table(whole)
            files[pixel].append(path)
        held.clear()

    rows = 0
    for table, index in _placed(selection, at):
        table = table.add_column(0, pa.field(INDEX, pa.int64()), [index])
        order = orders[index >> 2 * (INDEX_ORDER - ORDER)]
        number = index >> 2 * (INDEX_ORDER - order)
        both = np.stack([order, number], axis=1)
        # One pass per pixel in the batch, not per object.
        pixels, which = np.unique(both, axis=0, return_inverse=True)
        for place, pixel in enumerate(pixels.tolist()):
            held[pixel[0], pixel[1]].append(table.filter(which.reshape(-1) == place))
        rows += table.num_rows
        # Few large files: a file per batch and pixel would be thousands.
        if rows >= HELD_ROWS:
            write()
            rows = 0
    write()
    return files


def _write_pixels(
    selection: Selection, shards: dict[tuple[int, int], list[Path]], folder: Path
) -> list[tuple[int, int]]:
    """Write the file of each pixel, sorted by position; return the sorted pixels."""
    pa = pyarrow_module()
    pairs = footer_pairs(selection, longest_texts(selection))
    for (order, number), paths in sorted(shards.items()):
        whole = pa.concat_tables([pa.ipc.open_file(path).read_all() for path in paths])
        # Readers of HATS search a file by this order.
        whole = whole.sort_by(INDEX).replace_schema_metadata(pairs)
        # The layout that the HATS note prescribes: 10,000 pixels per folder.
        path = folder / (
            f"dataset/Norder={order}/Dir={number // 10000 * 10000}/Npix={number}.parquet"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        pa.parquet.write_table(whole, path)
        for shard in paths:
            shard.unlink()  # at once, so that the disk never holds all objects twice
    return sorted(shards)


def _write_properties(
    selection: Selection,
    at: _Position,
    rows: int,
    pixels: list[tuple[int, int]],
    folder: Path,
) -> None:
    from hats.catalog.dataset.table_properties import TableProperties

    import perseid

    given = {
        "catalog_name": f"perseid_{selection.metadata.get('run_id', 'catalogue')}",
        "catalog_type": "object",
        "total_rows": rows,
        "ra_column": at.ra,
        "dec_column": at.dec,
        "healpix_column": INDEX,
        "healpix_order": INDEX_ORDER,
        "skymap_order": ORDER,
        "hats_order": max(order for order, _ in pixels),
        "moc_sky_fraction": sum(1 / (12 << 2 * order) for order, _ in pixels),
        "hats_builder": f"perseid v{perseid.__version__}",
    }
    TableProperties.model_validate(given).to_properties_file(folder)
