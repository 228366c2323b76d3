"""A catalogue as HATS: valid by hats' own checks, and opened and searched by lsdb."""

from __future__ import annotations

import io
import uuid

import lsdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hats.io.validation import is_valid_catalog
from hats.pixel_math import generate_alignment

from perseid import Catalogue, Storage
from perseid.catalogues.hatsfolder import pixel_orders, write_hats
from perseid.catalogues.selection import Selection
from perseid.errors import AlreadyExistsError, BadInputError
from perseid.pipeline.catalogue_reader import StoredCatalogue
from perseid.pipeline.voparquet import VOField, votable_pairs

ROWS = 3000


def sky(rows: int = ROWS) -> pa.Table:
    """A catalogue with positions over the sky, most of them in one place; some have none."""
    random = np.random.default_rng(3)
    ra = np.where(
        random.random(rows) < 0.5, random.normal(150, 3, rows), random.uniform(0, 360, rows)
    )
    dec = np.where(ra > 140, random.normal(2, 3, rows), random.uniform(-89, 89, rows))
    table = pa.table(
        {
            "object_id": pa.array(2**60 + np.arange(rows)),
            "partition": [f"{i % 7}.pt" for i in range(rows)],
            "row": pa.array(np.arange(rows) // 7, pa.int32()),
            "z_pred": pa.array(random.random(rows), pa.float32()),
            "RAJ2000": pa.array(np.where(np.arange(rows) < 5, np.nan, ra - 360)),
            "DEJ2000": dec,
            "label": pa.array([None if i % 3 else i for i in range(rows)], pa.int32()),
        }
    )
    meant = {"RAJ2000": ("deg", "pos.eq.ra;meta.main"), "DEJ2000": ("deg", "pos.eq.dec;meta.main")}
    fields = [VOField(n, "double", "", *meant.get(n, ("", ""))) for n in table.column_names]
    return table.replace_schema_metadata(votable_pairs(fields) | {"run_id": "r1"})


def stored(table: pa.Table) -> Storage:
    store, data = Storage(f"memory://{uuid.uuid4().hex}"), io.BytesIO()
    pq.write_table(table, data, row_group_size=500)
    store.put("catalogue.parquet", data.getvalue())
    return store


def test_lsdb_opens_and_searches_it(tmp_path):
    table, folder = sky(), tmp_path / "hats"
    written = Catalogue(stored(table)).write(f"{folder}/")
    assert (written.format, written.rows) == ("hats", ROWS - 5)
    assert is_valid_catalog(folder, strict=True)
    catalogue = lsdb.open_catalog(folder)
    frame = catalogue.compute()
    assert sorted(frame["object_id"]) == table["object_id"].to_pylist()[5:]
    assert frame.index.name == "_healpix_29"
    assert frame.index.is_monotonic_increasing
    near = catalogue.cone_search(150, 2, 3600).compute()
    here = np.hypot((table["RAJ2000"].to_numpy() + 360 - 150) * np.cos(np.radians(2)),
                    table["DEJ2000"].to_numpy() - 2) < 0.999  # fmt: skip
    assert set(table["object_id"].to_numpy()[here]) <= set(near["object_id"])
    assert "deg" in str(pq.read_schema(folder / "dataset/_common_metadata").metadata)


def test_dense_places_have_smaller_pixels(tmp_path):
    selection = Selection(StoredCatalogue(stored(sky())), ["object_id", "RAJ2000", "DEJ2000"])
    assert write_hats(selection, tmp_path, most=200) == ROWS - 5
    assert is_valid_catalog(tmp_path, strict=True)
    catalogue = lsdb.open_catalog(tmp_path)
    orders = {pixel.order for pixel in catalogue.get_healpix_pixels()}
    assert len(orders) >= 3
    sizes = [pq.read_metadata(path).num_rows for path in tmp_path.rglob("Npix=*.parquet")]
    assert (sum(sizes), max(sizes) <= 200) == (ROWS - 5, True)
    assert len(catalogue.compute()) == ROWS - 5


def test_pixels_are_those_of_hats_itself():
    counts = np.random.default_rng(1).poisson(2, 12 << 2 * 4)
    counts[100:160] = 0
    wanted = generate_alignment(counts, highest_order=4, threshold=50)
    ours = pixel_orders(counts, 50)
    there = counts > 0
    np.testing.assert_array_equal(ours[there], [one[0] for one in np.asarray(wanted)[there]])


@pytest.mark.parametrize(
    ("columns", "where", "said"),
    [
        (["object_id", "z_pred"], None, "has no column ra"),
        (None, "row > 100000", "no selected object .* has a position"),
        (["object_id", "DEJ2000", "RAJ2000"], "RAJ2000 is null", "has a position"),
    ],
)
def test_what_has_no_position(tmp_path, columns, where, said):
    with pytest.raises(BadInputError, match=said):
        Catalogue(stored(sky())).write(f"{tmp_path}/a/", columns=columns, where=where)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(AlreadyExistsError, match="holds files already"):
        Catalogue(stored(sky())).write(f"{tmp_path}/")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
