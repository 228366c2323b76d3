"""What a survey may lack, and how its images may lie: only what a model takes is required."""

from __future__ import annotations

import gzip
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import surveyfiles
from astropy.io import fits

from perseid.errors import BadPartitionError
from perseid.storage import Storage
from perseid.survey import Cutouts
from perseid.survey.column_spec import ColumnSpec
from perseid.survey.read_options import ReadOptions
from perseid.survey.reader import open_partition

ROWS, BANDS, SIDE = 7, 3, 6
NAMED = tuple(suffix for suffix in surveyfiles.FORMATS if suffix != ".pt")


def read(path: Path, options: ReadOptions) -> Cutouts:
    with open_partition(Storage(path.parent), path.name, options=options) as reader:
        return reader.read()


@pytest.mark.parametrize("suffix", NAMED)
def test_a_survey_without_images(suffix: str, tmp_path: Path) -> None:
    magnitude = np.arange(ROWS * 5, dtype=np.float32).reshape(ROWS, 5)
    given = {"magnitude": magnitude, "ebv": np.arange(ROWS, dtype=np.float64)}
    path = surveyfiles.write(tmp_path / f"1{suffix}", given)
    with pytest.raises(BadPartitionError, match=r"no (image column|binary table with an image)"):
        read(path, ReadOptions())
    got = read(path, ReadOptions(needs_image=False, further=(ColumnSpec("dust", "EBV"),)))
    assert got.images.shape == (ROWS, 0, 0, 0)
    assert np.array_equal(got.magnitudes, magnitude)
    assert got.further["dust"].tolist() == given["ebv"].tolist()


@pytest.mark.parametrize("suffix", surveyfiles.FORMATS)
def test_magnitudes_of_other_bands_than_the_images(suffix: str, tmp_path: Path) -> None:
    images = np.ones((ROWS, BANDS, SIDE, SIDE), np.float32)
    magnitude = np.ones((ROWS, 5), np.float32)
    metadata = {"image": images, "magnitude": magnitude}
    if suffix == ".parquet":  # flat lists: their shape would be told by the magnitudes
        columns = {"image": pa.FixedShapeTensorArray.from_numpy_ndarray(images),
                   "magnitude": list(magnitude)}  # fmt: skip
        pq.write_table(pa.table(columns), tmp_path / "1.parquet")
        path = tmp_path / "1.parquet"
    else:
        path = surveyfiles.write(tmp_path / f"1{suffix}", metadata)
    got = read(path, ReadOptions())
    assert (got.bands, got.magnitudes.shape) == (BANDS, (ROWS, 5))


@pytest.mark.parametrize("suffix", surveyfiles.FORMATS)
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8"])
def test_layouts_that_are_told(suffix: str, dtype: str, tmp_path: Path) -> None:
    """(4, 4, 4): no shape could say where the bands are."""
    images = np.arange(ROWS * 64).reshape(ROWS, 4, 4, 4).astype(dtype)
    path = surveyfiles.write(tmp_path / f"1{suffix}", {"image": images})
    plain = read(path, ReadOptions()).images
    assert np.array_equal(plain, images.astype(np.float32))
    last = read(path, ReadOptions(channels_last=True)).images
    assert np.array_equal(last, np.moveaxis(images, -1, 1).astype(np.float32))


def table_of(images: np.ndarray) -> fits.BinTableHDU:
    shape = ",".join(map(str, reversed(images.shape[1:])))
    columns = [
        fits.Column("TARGETID", "K", array=np.arange(len(images)) + (1 << 62)),
        fits.Column("image", f"{images[0].size}E", dim=f"({shape})", array=images),
    ]
    return fits.BinTableHDU.from_columns(columns)


IMAGES = np.random.default_rng(3).normal(size=(ROWS, BANDS, SIDE, SIDE)).astype(np.float32)


def test_a_table_that_gzip_has_packed(tmp_path: Path) -> None:
    table_of(IMAGES).writeto(tmp_path / "1.fits")
    plain = (tmp_path / "1.fits").read_bytes()
    packed = gzip.compress(plain)
    for data in (packed, gzip.compress(plain[:5000]) + gzip.compress(plain[5000:])):
        (tmp_path / "1.fits.gz").write_bytes(data)
        got = read(tmp_path / "1.fits.gz", ReadOptions())
        assert np.array_equal(got.images, IMAGES)
        assert got.object_id.tolist() == [(1 << 62) + n for n in range(ROWS)]
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 1
    for broken in (packed[:-20], bytes(flipped)):
        (tmp_path / "1.fits.gz").write_bytes(broken)
        with pytest.raises(BadPartitionError, match=r"truncated|corrupt"):
            read(tmp_path / "1.fits.gz", ReadOptions())


@pytest.mark.parametrize("suffix", [".fits", ".fits.fz", ".fits.gz"])
def test_images_that_are_no_column(suffix: str, tmp_path: Path) -> None:
    """A cube of cutouts, its columns in a table beside it; in ``.fz`` compressed by tiles."""
    image = fits.CompImageHDU(IMAGES, compression_type="GZIP_2", quantize_level=0.0)
    hdus = [fits.PrimaryHDU(), image if suffix == ".fits.fz" else fits.ImageHDU(IMAGES)]
    columns = [
        fits.Column("ID", "K", array=np.arange(ROWS)),
        fits.Column("RA", "D", unit="deg", array=np.linspace(1, 2, ROWS)),
    ]
    hdus.append(fits.BinTableHDU.from_columns(columns))
    fits.HDUList(hdus).writeto(tmp_path / f"1{suffix}")
    options = ReadOptions({"object_id": ("ID",)}, (ColumnSpec("ra", "RA"),))
    got = read(tmp_path / f"1{suffix}", options)
    assert np.array_equal(got.images, IMAGES)
    assert got.object_id.tolist() == list(range(ROWS))
    assert got.further["ra"].tolist() == np.linspace(1, 2, ROWS).tolist()
    with open_partition(Storage(tmp_path), f"1{suffix}", options=options) as reader:
        assert np.array_equal(reader.rows_at(3, 5).images, IMAGES[3:5])


def test_one_cutout_that_is_the_whole_file(tmp_path: Path) -> None:
    """As cutout services hand them out: scaled integers with a value for blank pixels."""
    raw = np.arange(BANDS * SIDE * SIDE, dtype=">i2").reshape(BANDS, SIDE, SIDE)
    raw[0, 0, 0] = -32768
    cards = {"SIMPLE": True, "BITPIX": 16, "NAXIS": 3, "NAXIS1": SIDE, "NAXIS2": SIDE,
             "NAXIS3": BANDS, "BSCALE": 0.5, "BZERO": 3.0, "BLANK": -32768}  # fmt: skip
    text = fits.Header(cards).tostring().encode("ascii")
    (tmp_path / "1.fits").write_bytes(text + raw.tobytes() + bytes(-raw.nbytes % 2880))
    got = read(tmp_path / "1.fits", ReadOptions())
    wanted = raw.astype(np.float32) * np.float32(0.5) + np.float32(3)
    assert got.images.shape == (1, BANDS, SIDE, SIDE)
    assert np.isnan(got.images[0, 0, 0, 0])
    assert np.array_equal(got.images[0].ravel()[1:], wanted.ravel()[1:])


@pytest.mark.parametrize("suffix", surveyfiles.FORMATS)
def test_images_of_one_band_without_an_axis_for_it(suffix: str, tmp_path: Path) -> None:
    """As the cutouts of Euclid's VIS."""
    images = np.random.default_rng(2).normal(size=(ROWS, SIDE, SIDE + 1)).astype(np.float32)
    path = surveyfiles.write(tmp_path / f"1{suffix}", {"image": images})
    with open_partition(Storage(tmp_path), path.name) as reader:
        assert reader.shape == (1, SIDE, SIDE + 1)
        assert np.array_equal(reader.read().images[:, 0], images)
        assert np.array_equal(reader.rows_at(2, 4).images[:, 0], images[2:4])


def test_the_multimodal_universe_in_hdf5(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "1.hdf5", "w") as file:
        file["image_array"] = IMAGES
        file["image_band"] = np.array([[b"DES-G", b"DES-R", b"DES-Z"]] * ROWS)
        file["object_id"] = np.array([f"id{number}" for number in range(ROWS)], "S8")
    with open_partition(Storage(tmp_path), "1.hdf5") as reader:
        assert reader.bands == ("DES-G", "DES-R", "DES-Z")
        got = reader.read()
    assert np.array_equal(got.images, IMAGES)
    assert got.object_id.tolist() == [f"id{number}" for number in range(ROWS)]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(3), pa.binary_view()])
def test_ids_that_are_bytes(kind: pa.DataType, tmp_path: Path) -> None:
    """As pandas writes NumPy's text of bytes."""
    ids = [b"a-1", b"b-2", None, b"c-3"]
    images = np.zeros((4, BANDS, SIDE, SIDE), np.float32)
    table = pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(images),
                      "object_id": pa.array(ids, kind)})  # fmt: skip
    pq.write_table(table, tmp_path / "1.parquet")
    got = read(tmp_path / "1.parquet", ReadOptions())
    assert got.object_id.tolist() == ["a-1", "b-2", None, "c-3"]
    table = table.set_column(1, "object_id", pa.array([b"\xff\xfe\xfd"] * 4, kind))
    pq.write_table(table, tmp_path / "2.parquet")
    with pytest.raises(BadPartitionError, match="bytes that are not UTF-8"):
        read(tmp_path / "2.parquet", ReadOptions())


def test_ids_that_are_views_of_text(tmp_path: Path) -> None:
    """As newer Arrow libraries keep text."""
    images = np.zeros((2, BANDS, SIDE, SIDE), np.float32)
    table = pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(images),
                      "object_id": pa.array(["a-1", None], pa.string_view())})  # fmt: skip
    pq.write_table(table, tmp_path / "1.parquet")
    assert read(tmp_path / "1.parquet", ReadOptions()).object_id.tolist() == ["a-1", None]
