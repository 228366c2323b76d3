"""Missing values and types by content: every format, as other tools write it."""

from __future__ import annotations

import resource
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import surveyfiles
from astropy.io import fits
from surveyfiles import FORMATS

from perseid.errors import BadInputError, BadPartitionError, NotInstalledError, PerseidError
from perseid.storage import Storage
from perseid.survey import MissingValues, open_partition
from perseid.survey.cutouts import Cutouts
from perseid.survey.split import split

ROWS, BANDS, SIDE = 12, 3, 4
MAGNITUDES = (99, 99.99, -99, -99.99, -999, -9999)
REDSHIFTS = (-1, -9, -99, -999, -9999)
CORRUPT = ("truncated", "corrupt")


def arrays(**columns: np.ndarray) -> dict[str, np.ndarray]:
    """A plain survey of 12 rows with columns in place of its own; None leaves one out."""
    rng = np.random.default_rng(7)
    plain = {
        "image": rng.normal(size=(ROWS, BANDS, SIDE, SIDE)).astype(np.float32),
        "magnitude": rng.uniform(15, 22, (ROWS, BANDS)).astype(np.float32),
        "redshift": rng.uniform(0, 1, ROWS).astype(np.float32),
        "object_id": np.arange(ROWS, dtype=np.int64),
    }
    return {name: array for name, array in {**plain, **columns}.items() if array is not None}


def read(path: Path, missing: MissingValues | None = None) -> Cutouts:
    storage, key = Storage.holding(path)
    rules = {} if missing is None else {"missing": missing}
    with open_partition(storage, key, **rules) as reader:
        return reader.read()


# Missing values: formats x forms


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("suffix", FORMATS)
def test_sentinels_are_missing_in_magnitudes_and_redshifts_alone(
    suffix: str, dtype: str, tmp_path: Path
) -> None:
    given = arrays()
    magnitude, redshift = given["magnitude"].astype(dtype), given["redshift"].astype(dtype)
    for row, value in enumerate(MAGNITUDES):
        magnitude[row, row % BANDS] = value
    for row, value in enumerate(REDSHIFTS, start=3):
        redshift[row] = value
    image = given["image"].copy()
    image[9, 0, 0, :2] = 99, -9999
    ids = np.array([-1, -9, -99, -999, -9999, 99, 6, 7, 8, 9, 10, 11])
    path = tmp_path / f"1{suffix}"
    surveyfiles.write(path, arrays(magnitude=magnitude, redshift=redshift, image=image,
                                   object_id=ids))  # fmt: skip
    got = read(path, MissingValues())
    wanted = np.zeros((ROWS, BANDS), bool)
    wanted[range(6), [row % BANDS for row in range(6)]] = True
    assert np.array_equal(np.isnan(got.magnitudes), wanted)
    assert np.array_equal(got.magnitudes[~wanted], magnitude[~wanted])
    assert list(np.flatnonzero(np.isnan(got.redshift))) == [3, 4, 5, 6, 7]
    assert np.array_equal(got.images, image)
    assert list(got.object_id) == list(ids)
    kept = read(path)  # without rules every number is a value
    assert np.array_equal(kept.magnitudes, magnitude)
    assert np.array_equal(kept.redshift, redshift)


def nan_form(given: dict[str, np.ndarray], suffix: str) -> dict[str, np.ndarray]:
    given["magnitude"][2, 1] = given["redshift"][5] = np.nan
    return given


def null_form(given: dict[str, np.ndarray], suffix: str) -> dict[str, np.ndarray]:
    magnitude, redshift = np.ma.array(given["magnitude"]), np.ma.array(given["redshift"])
    magnitude[2, 1] = redshift[5] = np.ma.masked
    return {**given, "magnitude": magnitude, "redshift": redshift}


def null_integer_form(given: dict[str, np.ndarray], suffix: str) -> dict[str, np.ndarray]:
    """Whole millimagnitudes and redshifts of an integer column, with TNULL or null."""
    magnitude = np.ma.array(np.full((ROWS, BANDS), 17, np.int32))
    redshift = np.ma.array(np.full(ROWS, 1, np.int16))
    magnitude[2, 1] = redshift[5] = np.ma.masked
    return {**given, "magnitude": magnitude, "redshift": redshift}


@pytest.mark.parametrize(
    ("suffix", "form"),
    [(suffix, nan_form) for suffix in FORMATS]
    + [
        (suffix, form)
        for suffix in (".fits", ".parquet")
        for form in (null_form, null_integer_form)
    ],
)
def test_nulls_of_a_format_are_missing(suffix: str, form, tmp_path: Path) -> None:
    path = surveyfiles.write(tmp_path / f"1{suffix}", form(arrays(), suffix))
    for rules in (None, MissingValues()):
        got = read(path, rules)
        assert [tuple(at) for at in np.argwhere(np.isnan(got.magnitudes))] == [(2, 1)]
        assert list(np.flatnonzero(np.isnan(got.redshift))) == [5]


@pytest.mark.parametrize("suffix", [".fits", ".parquet"])
def test_missing_ids_and_labels(suffix: str, tmp_path: Path) -> None:
    ids = np.ma.array(np.arange(ROWS) + (1 << 60))
    label = np.ma.array(np.arange(ROWS, dtype=np.int32))
    ids[3] = label[4] = np.ma.masked
    path = surveyfiles.write(tmp_path / f"1{suffix}", arrays(object_id=ids, label=label))
    got = read(path)
    assert got.object_id.tolist() == ids.tolist()
    assert got.label.tolist() == label.tolist()
    split(path, tmp_path / "parts", rows=5, format="parquet")
    again = [read(tmp_path / "parts" / f"{n}.parquet").object_id.tolist() for n in (1, 2, 3)]
    assert [one for part in again for one in part] == ids.tolist()
    with pytest.raises(BadInputError, match=r"\.npz files cannot hold missing ids"):
        split(path, tmp_path / "npz", format="npz")


def test_whole_lists_that_are_null(tmp_path: Path) -> None:
    given = arrays()
    for kind in (pa.list_(pa.float32()), pa.list_(pa.float32(), BANDS)):
        magnitudes = [
            None if row in (1, 4) else list(m) for row, m in enumerate(given["magnitude"])
        ]
        table = pa.table({
            "image": [list(image.reshape(-1)) for image in given["image"]],
            "magnitude": pa.array(magnitudes, kind),
            "redshift": pa.array([None] * ROWS),
        })  # fmt: skip
        pq.write_table(table, tmp_path / "1.parquet")
        got = read(tmp_path / "1.parquet")
        assert list(np.flatnonzero(np.isnan(got.magnitudes).all(axis=1))) == [1, 4]
        assert np.array_equal(got.magnitudes[5:], given["magnitude"][5:])
        assert got.redshift is None  # nothing but nulls, of no type


def test_the_rules_are_the_users() -> None:
    rules = MissingValues.parse(["magnitude=42,-5.5", "redshift=none"])
    given = Cutouts(
        np.ones((3, 1, 1, 1), np.float32),
        np.array([[42.0], [99.0], [-5.5]]),
        np.array([-1.0, -9.0, 0.5]),
    )
    got = rules.apply(given)
    assert list(np.isnan(got.magnitudes[:, 0])) == [True, False, True]
    assert list(got.redshift) == [-1.0, -9.0, 0.5]
    assert MissingValues.of(rules.to_json()) == rules
    assert MissingValues.of({"redshift": -5}).redshift == (-5.0,)


@pytest.mark.parametrize(
    "option", ["image=0", "object_id=-1", "redshift", "redshift=", "redshift=x", "magnitude=1,,2"]
)
def test_rules_that_make_no_sense(option: str) -> None:
    with pytest.raises(BadInputError):
        MissingValues.parse([option])


# Types: formats x dtypes


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        (suffix, dtype)
        for suffix in FORMATS
        for dtype in ("float64", "float16", "uint8", "int16", "uint16", "int32")
        if (suffix, dtype) != (".fits", "float16")
    ],
)
def test_images_of_any_numbers(suffix: str, dtype: str, tmp_path: Path) -> None:
    image = (np.arange(ROWS * BANDS * SIDE * SIDE) % 200).astype(dtype)
    image = image.reshape(ROWS, BANDS, SIDE, SIDE)
    path = surveyfiles.write(tmp_path / f"1{suffix}", arrays(image=image))
    got = read(path)
    assert got.images.dtype == np.float32
    assert np.array_equal(got.images, image.astype(np.float32))


@pytest.mark.parametrize("suffix", FORMATS)
def test_images_that_do_not_fit(suffix: str, tmp_path: Path) -> None:
    image = arrays()["image"].astype(np.float64)
    image[3, 0, 0, 0] = 1e300
    refused(suffix, tmp_path, "1e+300; it is beyond the range of float32", image=image)
    whole = np.full((ROWS, BANDS, SIDE, SIDE), 20_000_001, np.int32)
    refused(suffix, tmp_path, "20000001; float32 holds whole numbers exactly", image=whole)
    image[3, 0, 0, 0] = np.inf  # a value of its own, which a run flags
    path = surveyfiles.write(tmp_path / f"3{suffix}", arrays(image=image))
    assert np.isinf(read(path).images[3, 0, 0, 0])


def refused(suffix: str, tmp_path: Path, says: str, **columns: np.ndarray) -> None:
    number = 10 + len(list(tmp_path.iterdir()))
    path = surveyfiles.write(tmp_path / f"{number}{suffix}", arrays(**columns))
    with pytest.raises(BadPartitionError) as error:
        read(path)
    assert says in str(error.value)
    assert not any(word in str(error.value) for word in CORRUPT)


BIG = [(1 << 63) - 1, -(1 << 63), 1237680000000000001, 0, *range(8)]
IDS = {
    "int64": np.array(BIG, np.int64),
    "int16": np.arange(ROWS, dtype=np.int16),
    "uint64": np.array([(1 << 64) - 1, 1 << 63, *range(10)], np.uint64),
    "text": np.array(["J103040.5+012233", "é", "a b", *map(str, range(9))]),
}


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [(s, k) for s in FORMATS for k in IDS
     if (s, k) != (".safetensors", "text")],
)  # fmt: skip
def test_ids_are_exact(suffix: str, kind: str, tmp_path: Path) -> None:
    ids = IDS[kind]
    if (suffix, kind) == (".fits", "text"):
        ids = np.where(ids == "é", "e", ids)  # FITS has ASCII
    path = surveyfiles.write(tmp_path / f"1{suffix}", arrays(object_id=ids))
    got = read(path)
    assert got.object_id.tolist() == ids.tolist()
    if kind == "text":
        for other in (".npz", ".h5", ".parquet"):
            split(path, tmp_path / other, rows=5, format=other)
            parts = [read(tmp_path / other / f"{n}{other}").object_id.tolist() for n in (1, 2, 3)]
            assert [one for part in parts for one in part] == ids.tolist()
        with pytest.raises(
            BadInputError, match=r"\.pt files cannot hold text ids or labels: write parquet"
        ):
            split(path, tmp_path / "pt")
    elif kind == "uint64":
        for other in (".npz", ".h5", ".parquet", ".fits", ".safetensors"):
            split(path, tmp_path / other, format=other)
            assert read(tmp_path / other / f"1{other}").object_id.tolist() == ids.tolist()
        with pytest.raises(BadPartitionError, match="18446744073709551615, which do not fit"):
            split(path, tmp_path / "pt")


@pytest.mark.parametrize("suffix", [s for s in FORMATS if s != ".pt"])
def test_ids_as_floats(suffix: str, tmp_path: Path) -> None:
    """As pandas makes them of integers with a missing one: exact, or refused."""
    ids = np.arange(ROWS) + 0.0
    ids[2] = np.nan
    path = surveyfiles.write(tmp_path / f"1{suffix}", arrays(object_id=ids))
    assert read(path).object_id.tolist() == [0, 1, None, *range(3, ROWS)]
    ids[4] = 1237680000000000001
    refused(suffix, tmp_path, "write the column as integers or text", object_id=ids)


@pytest.mark.parametrize("suffix", FORMATS)
def test_columns_of_shape_n_1(suffix: str, tmp_path: Path) -> None:
    given = arrays()
    ids = given["object_id"].reshape(-1, 1)
    path = surveyfiles.write(
        tmp_path / f"1{suffix}", {**given, "redshift": given["redshift"].reshape(-1, 1),
                                  "object_id": ids, "label": ids.astype(np.int32)},
    )  # fmt: skip
    got = read(path)
    assert np.array_equal(got.redshift, given["redshift"])
    assert got.object_id.tolist() == got.label.tolist() == list(range(ROWS))


@pytest.mark.parametrize("suffix", [s for s in FORMATS if s != ".pt"])
def test_two_names_of_one_column(suffix: str, tmp_path: Path) -> None:
    given = arrays()
    if suffix == ".fits":
        path = tmp_path / "1.fits"
        surveyfiles.write(path, {**given, "images": given["image"] + 1})
    else:
        path = surveyfiles.write(tmp_path / f"1{suffix}", {**given, "IMAGES": given["image"] + 1})
    with pytest.raises(BadPartitionError, match=r"has both .*, which mean the same column"):
        read(path)


def test_one_band_without_an_axis_of_bands(tmp_path: Path) -> None:
    for suffix in (".npz", ".h5", ".safetensors", ".fits", ".parquet"):
        image = np.ones((ROWS, 1, SIDE, SIDE), np.float32)
        magnitude = np.arange(ROWS, dtype=np.float32)
        path = tmp_path / f"1{suffix}"
        surveyfiles.write(path, arrays(image=image, magnitude=magnitude))
        assert read(path).magnitudes[:, 0].tolist() == magnitude.tolist()


# FITS: scaled, unsigned, logical, fixed and variable


def test_fits_columns_that_are_scaled(tmp_path: Path) -> None:
    given = arrays()
    shape = f"({SIDE},{SIDE},{BANDS})"
    counts = (np.arange(ROWS * BANDS * SIDE * SIDE) % 4000).reshape(given["image"].shape) - 2000
    columns = [
        fits.Column("IMAGE", f"{BANDS * SIDE * SIDE}I", dim=shape, array=counts.astype(np.int16)),
        fits.Column("MAGNITUDE", f"{BANDS}J", array=np.full((ROWS, BANDS), 17125, np.int32)),
        fits.Column("OBJECT_ID", "K", bzero=1 << 63, array=np.array(IDS["uint64"])),
        fits.Column("LABEL", "L", array=np.arange(ROWS) % 2 == 1),
        fits.Column("REDSHIFT", "B", array=np.full(ROWS, 129, np.uint8)),
    ]
    path = tmp_path / "1.fits"
    fits.BinTableHDU.from_columns(columns).writeto(path)
    for key, value in {"TSCAL1": 0.25, "TZERO1": 10.0, "TSCAL2": 0.001, "TZERO5": -128}.items():
        fits.setval(path, key, value=value, ext=1)
    got = read(tmp_path / "1.fits")
    assert np.array_equal(got.images, (counts * 0.25 + 10.0).astype(np.float32))
    assert np.allclose(got.magnitudes, 17.125, atol=1e-12)
    assert got.object_id.tolist() == IDS["uint64"].tolist()
    assert got.label.tolist() == [0, 1] * (ROWS // 2)
    assert got.redshift.tolist() == [1] * ROWS


def test_fits_columns_without_a_name_or_with_the_same(tmp_path: Path) -> None:
    """FITS allows both, and such a file is not corrupt."""
    given = arrays()
    image = fits.Column("image", "48E", dim="(4,4,3)", array=given["image"])
    others = [fits.Column(f"x{n}", "E", array=given["redshift"]) for n in range(3)]
    magnitude = fits.Column("magnitude", "3E", array=given["magnitude"])
    path = tmp_path / "1.fits"
    fits.BinTableHDU.from_columns([image, *others, magnitude]).writeto(path)
    for column, name in (
        ("TTYPE2", ""),
        ("TTYPE3", ""),
        ("TTYPE4", "image2"),
        ("TTYPE5", "image2"),
    ):
        fits.setval(path, column, value=name, ext=1)
    fits.setval(path, "TTYPE5", value="magnitude", ext=1)
    assert np.array_equal(read(path).magnitudes, given["magnitude"])
    fits.setval(path, "TTYPE3", value="x", ext=1)
    fits.setval(path, "TTYPE4", value="x", ext=1)
    got = read(path)
    assert np.array_equal(got.magnitudes, given["magnitude"])
    assert np.array_equal(got.images, given["image"])


# HDF5: numbers that are packed as netCDF packs them


@pytest.mark.parametrize("chunks", [None, True])
def test_hdf5_numbers_that_are_packed(chunks: bool | None, tmp_path: Path) -> None:
    """As netCDF and xarray write them: scaled integers, and values that mean missing."""
    given = arrays()
    counts = (given["image"] * 1000).astype(np.int16)
    counts[0, 0, 0, 0] = -32768
    magnitude = np.full((ROWS, BANDS), 17125, np.int32)
    magnitude[2, 1] = -1
    redshift = given["redshift"].copy()
    redshift[5] = 99.9
    ids = given["object_id"].copy()
    with h5py.File(tmp_path / "1.h5", "w") as file:
        packed = {"image": counts, "magnitude": magnitude, "redshift": redshift, "object_id": ids}
        for name, array in packed.items():
            file.create_dataset(name, data=array, chunks=chunks)
        file["image"].attrs.update(scale_factor=0.001, add_offset=2.0, _FillValue=np.int16(-32768))
        file["magnitude"].attrs.update(scale_factor=[0.001], missing_value=[-2, -1])
        file["redshift"].attrs.update(_FillValue=np.float32(np.nan), missing_value=99.9)
        file["object_id"].attrs.update(_FillValue=3, scale_factor="none")
    got = read(tmp_path / "1.h5")
    images = np.where(counts == -32768, np.nan, counts * 0.001 + 2.0)
    assert np.allclose(got.images, images, atol=1e-6, equal_nan=True)
    assert np.allclose(got.magnitudes, np.where(magnitude == -1, np.nan, 17.125), equal_nan=True)
    assert list(np.flatnonzero(np.isnan(got.redshift))) == [5]
    assert [n for n, one in enumerate(got.object_id.tolist()) if one is None] == [3]


def test_fits_columns_that_are_refused(tmp_path: Path) -> None:
    given = arrays()
    shape = f"({SIDE},{SIDE},{BANDS})"
    image = fits.Column("image", f"{BANDS * SIDE * SIDE}E", dim=shape, array=given["image"])
    rows = np.empty(ROWS, object)
    rows[:] = [np.ones(n % 3 + 1, np.float32) for n in range(ROWS)]
    varying = fits.Column("magnitude", "PE()", array=rows)
    fits.BinTableHDU.from_columns([image, varying]).writeto(tmp_path / "1.fits")
    with pytest.raises(BadPartitionError, match="rows of varying length") as error:
        read(tmp_path / "1.fits")
    assert not any(word in str(error.value) for word in CORRUPT)
    waves = fits.Column("magnitude", f"{BANDS}C", array=given["magnitude"].astype(np.complex64))
    fits.BinTableHDU.from_columns([image, waves]).writeto(tmp_path / "2.fits")
    with pytest.raises(BadPartitionError, match="magnitude must be numbers, not"):
        read(tmp_path / "2.fits")


# Parquet: lists and tensors


@pytest.mark.parametrize("form", ["list", "large", "nested", "tensor", "fixed", "dictionary"])
def test_parquet_lists_of_all_kinds(form: str, tmp_path: Path) -> None:
    given = arrays()
    image, flat = given["image"], given["image"].reshape(ROWS, -1)
    ids: pa.Array = pa.array([f"id{n}" for n in range(ROWS)])
    if form == "nested":
        column = pa.array(image.tolist(), pa.list_(pa.list_(pa.list_(pa.float64()))))
    elif form == "tensor":
        column = pa.FixedShapeTensorArray.from_numpy_ndarray(image)
    elif form == "fixed":
        column = pa.array(list(flat), pa.list_(pa.float32(), flat.shape[1]))
    else:
        column = pa.array(
            list(flat), (pa.large_list if form == "large" else pa.list_)(pa.float32())
        )
        ids = ids.dictionary_encode() if form == "dictionary" else ids
    table = pa.table({
        "image": column, "magnitude": pa.array(given["magnitude"].tolist()), "object_id": ids,
    })  # fmt: skip
    pq.write_table(table, tmp_path / "1.parquet", row_group_size=5)
    got = read(tmp_path / "1.parquet")
    assert np.array_equal(got.images, image)
    assert np.array_equal(got.magnitudes, given["magnitude"])
    assert got.object_id.tolist() == [f"id{n}" for n in range(ROWS)]
    storage, key = Storage.holding(tmp_path / "1.parquet")
    with open_partition(storage, key) as reader:  # in any order
        for start in (7, 3, 11, 0, 4):
            assert np.array_equal(reader.rows_at(start, start + 1).images, image[start : start + 1])


def test_a_tensor_with_permuted_axes_is_named(tmp_path: Path) -> None:
    given = arrays()
    kind = pa.fixed_shape_tensor(pa.float32(), [SIDE, SIDE, BANDS], permutation=[2, 0, 1])
    flat = pa.array(given["image"].reshape(ROWS, -1).tolist(), pa.list_(pa.float32(), 48))
    table = {"image": pa.ExtensionArray.from_storage(kind, flat)}
    pq.write_table(pa.table(table), tmp_path / "1.parquet")
    with pytest.raises(BadPartitionError, match=r"1\.parquet: image: a tensor column"):
        read(tmp_path / "1.parquet")


def test_parquet_lists_of_several_lengths(tmp_path: Path) -> None:
    given = arrays()
    lists = [row[: 2 + (n != 4)] for n, row in enumerate(given["magnitude"].tolist())]
    table = pa.table({"image": list(given["image"].reshape(ROWS, -1)), "magnitude": lists})
    pq.write_table(table, tmp_path / "1.parquet")
    with pytest.raises(
        BadPartitionError, match="lists of other lengths than the first, of 3 values"
    ):
        read(tmp_path / "1.parquet")


# What is corrupt, and what is only not supported


def test_a_filter_that_is_not_installed(tmp_path: Path) -> None:
    """The filter's number is that of zstd (32015), which h5py does not bring along."""
    given = arrays()
    with h5py.File(tmp_path / "1.h5", "w") as file:
        for name, array in given.items():
            if name != "image":
                file[name] = array
        created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        created.set_chunk((1, BANDS, SIDE, SIDE))
        created.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)
        space = h5py.h5s.create_simple(given["image"].shape)
        h5py.h5d.create(file.id, b"image", h5py.h5t.IEEE_F32LE, space, created)
    with pytest.raises(NotInstalledError, match=r"HDF5 filter 32015.*hdf5plugin") as error:
        read(tmp_path / "1.h5")
    assert not any(word in str(error.value) for word in CORRUPT)


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_text_that_is_not_utf8(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"1{suffix}"
    ids = np.array([b"\xff\xfe"] * ROWS)
    if suffix == ".npz":
        np.savez(path, **arrays(object_id=ids))
    else:
        with h5py.File(path, "w") as file:
            for name, array in arrays(object_id=ids).items():
                file[name] = array
    with pytest.raises(BadPartitionError, match="has text that is not UTF-8") as error:
        read(path)
    assert not any(word in str(error.value) for word in CORRUPT)


def test_parquet_that_is_encrypted(tmp_path: Path) -> None:
    data = surveyfiles.write(tmp_path / "1.parquet", arrays()).read_bytes()
    (tmp_path / "2.parquet").write_bytes(b"PARE" + data[4:-4] + b"PARE")
    with pytest.raises(PerseidError) as error:
        read(tmp_path / "2.parquet")
    assert "encrypt" in str(error.value).lower()
    assert "corrupt" not in str(error.value)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_cut_short_is_called_so(suffix: str, tmp_path: Path) -> None:
    path = surveyfiles.write(tmp_path / f"1{suffix}", arrays())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(BadPartitionError, match=r"truncated|corrupt|no binary table"):
            read(path)


# Resources

PEAK = """
import resource, sys
from perseid.errors import PerseidError
from perseid.storage import Storage
from perseid.survey import open_partition
storage, key = Storage.holding(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    with open_partition(storage, key) as reader:
        rows = sum(len(block) for block in reader.blocks(32))
        print("read", rows)
except PerseidError as error:
    print("refused", error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before >> 10)
"""


def peak(path: Path) -> tuple[str, int]:
    """What came of reading a file in a process of its own, and the memory it took, MiB."""
    limit = 4 << 30
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, timeout=200,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said, mebibytes = done.stdout.strip().splitlines()
    return said, int(mebibytes)


def constant(path: Path, rows: int, **options: object) -> Path:
    """Images of one value: a few bytes in the file, 20 KB per row in memory."""
    size = 5 * 32 * 32
    schema = pa.schema(
        [("image", pa.list_(pa.float32(), size)), ("magnitude", pa.list_(pa.float32(), 5))]
    )
    with pq.ParquetWriter(path, schema, compression="zstd", **options) as writer:
        image = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(rows * size, np.float32)), size)
        mag = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(rows * 5, np.float32)), 5)
        writer.write_table(pa.table([image, mag], schema=schema), row_group_size=rows)
    return path


def test_a_small_file_takes_little_memory(tmp_path: Path) -> None:
    path = constant(tmp_path / "1.parquet", 10_000)  # 205 MB of pixels
    assert path.stat().st_size < 100_000
    said, mebibytes = peak(path)
    assert said == "read 10000"
    assert mebibytes < 150


@pytest.mark.slow
def test_a_row_group_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    path = constant(tmp_path / "1.parquet", 60_000)
    said, mebibytes = peak(path)
    assert said.startswith("refused")
    assert "its row group 1 of 60,000 rows takes 1,1" in said
    assert "write row groups of at most 64 MB" in said
    assert mebibytes < 150


def test_pages_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    path = constant(tmp_path / "1.parquet", 20_000, use_dictionary=False, data_page_size=1 << 30)
    assert path.stat().st_size < 200_000
    said, mebibytes = peak(path)
    assert said.startswith("refused")
    assert mebibytes < 150


def test_one_long_text_that_many_rows_share(tmp_path: Path) -> None:
    given = arrays()
    with h5py.File(tmp_path / "1.h5", "w") as file:
        for name, array in given.items():
            if name != "object_id":
                file[name] = array
        file["object_id"] = np.full(ROWS, "x" * 1_000_000, object)
    with pytest.raises(BadPartitionError, match="256 are read at most"):
        read(tmp_path / "1.h5")
    table = pa.table({
        "image": list(given["image"].reshape(ROWS, -1)), "magnitude": list(given["magnitude"]),
        "object_id": pa.array(["x" * 1_000_000] * ROWS),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "1.parquet")
    with pytest.raises(BadPartitionError, match="1,000,000 characters; 256 are read at most"):
        read(tmp_path / "1.parquet")


@pytest.mark.parametrize("suffix", [".safetensors", ".parquet"])
def test_json_that_is_nested_deeply(suffix: str, tmp_path: Path) -> None:
    deep = "[" * 100_000
    path = tmp_path / f"1{suffix}"
    if suffix == ".safetensors":
        path.write_bytes(len(deep).to_bytes(8, "little") + deep.encode())
    else:
        given = arrays()
        table = pa.table({"image": list(given["image"].reshape(ROWS, -1)),
                          "magnitude": list(given["magnitude"])})  # fmt: skip
        pq.write_table(table.replace_schema_metadata({"perseid.image_shape": deep}), path)
    with pytest.raises(BadPartitionError, match="nested too deeply"):
        read(path)


# Layouts and names


LAYOUTS = {
    "by the number of magnitudes": ((3, 4, 4), 3, False),
    "bands last, by the number of magnitudes": ((4, 5, 3), 3, True),
    "both axes could be bands": ((3, 4, 3), 3, False),
    "square, bands last": ((69, 69, 3), None, True),
    "square, bands first": ((3, 69, 69), None, False),
    "many bands of small images": ((5, 4, 4), None, False),
    "a cube": ((4, 4, 4), None, False),
    "one band last": ((8, 8, 1), 1, True),
}


@pytest.mark.parametrize("suffix", [s for s in FORMATS if s != ".pt"])
@pytest.mark.parametrize("what", LAYOUTS)
def test_where_the_bands_are(what: str, suffix: str, tmp_path: Path) -> None:
    shape, bands, last = LAYOUTS[what]
    image = np.random.default_rng(3).integers(0, 255, (ROWS, *shape)).astype(np.uint8)
    magnitude = None if bands is None else np.ones((ROWS, bands), np.float32)
    given = {"image": image, "object_id": np.arange(ROWS)}
    given |= {} if magnitude is None else {"magnitude": magnitude}
    if suffix == ".parquet":
        table = pa.table({
            **{n: pa.array(a.tolist()) for n, a in given.items() if n != "image"},
            "image": pa.array(image.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8())))),
        })  # fmt: skip
        pq.write_table(table, tmp_path / "1.parquet")
    else:
        surveyfiles.write(tmp_path / f"1{suffix}", given)
    got = read(tmp_path / f"1{suffix}")
    wanted = np.moveaxis(image, -1, 1) if last else image
    assert np.array_equal(got.images, wanted.astype(np.float32))
    assert got.images.flags.c_contiguous
    storage, key = Storage.holding(tmp_path / f"1{suffix}")
    with open_partition(storage, key) as reader:
        assert reader.shape == wanted.shape[1:]
        assert np.array_equal(reader.rows_at(5, 8).images, wanted[5:8].astype(np.float32))
    split(tmp_path / f"1{suffix}", tmp_path / "parts", rows=ROWS)
    assert np.array_equal(read(tmp_path / "parts" / "1.pt").images, wanted.astype(np.float32))


@pytest.mark.parametrize("suffix", [s for s in FORMATS if s != ".pt"])
def test_names_of_common_surveys(suffix: str, tmp_path: Path) -> None:
    given = arrays()
    ids = np.arange(ROWS) + 1237680000000000000
    path = surveyfiles.write(
        tmp_path / f"1{suffix}",
        {"IMAGES": given["image"], "magnitude": given["magnitude"], "Z_SPEC": given["redshift"],
         "TARGETID": ids, "ans": np.arange(ROWS, dtype=np.int32), "z": np.zeros(ROWS)},
    )  # fmt: skip
    storage, key = Storage.holding(path)
    with open_partition(storage, key) as reader:
        assert reader.columns.renamed == {
            "redshift": "Z_SPEC", "object_id": "TARGETID", "label": "ans"
        }  # fmt: skip
        got = reader.read()
    assert got.object_id.tolist() == ids.tolist()
    assert np.array_equal(got.redshift, given["redshift"])
    assert got.label.tolist() == list(range(ROWS))


@pytest.mark.parametrize("suffix", [s for s in FORMATS if s != ".pt"])
def test_names_of_ours_come_first_and_strangers_are_left_alone(suffix: str, tmp_path: Path) -> None:
    given = arrays(z_spec=np.full(ROWS, 9.0), ans=np.full((ROWS, 7), 2), targetid=np.zeros(ROWS))
    path = surveyfiles.write(tmp_path / f"1{suffix}", given)
    storage, key = Storage.holding(path)
    with open_partition(storage, key) as reader:
        assert reader.columns.renamed == {}
        got = reader.read()
    assert np.array_equal(got.redshift, given["redshift"])
    assert got.object_id.tolist() == list(range(ROWS))
    assert got.label is None
