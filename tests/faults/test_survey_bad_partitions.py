"""Partitions that cannot be used: one sentence that names the file and what is wrong."""

from __future__ import annotations

import io
import json
import resource
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perseid.errors import BadPartitionError, NotFoundError, StorageError
from perseid.storage import Storage
from perseid.survey import Cutouts, open_partition, read_cutouts, suffixes, write_cutouts
from perseid.survey.file_columns import Columns
from perseid.survey.reader import creating

SUFFIXES = [s for s in suffixes() if s not in (".pth", ".hdf5")]
CHECKED = [".pt", ".npz", ".parquet"]
"""Formats whose files carry checksums of the pixels."""


def refused(path: Path) -> str:
    """The sentence with which a file is refused."""
    with pytest.raises(BadPartitionError) as caught:
        read_cutouts(path)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    return sentence


def raw(path: Path, **arrays: np.ndarray) -> Path:
    """A file with any arrays, right or wrong, written by other libraries."""
    if path.suffix == ".pt":
        torch = pytest.importorskip("torch")
        tensors = [torch.from_numpy(array.copy()) for array in arrays.values()]
        dataset = torch.utils.data.TensorDataset()
        dataset.tensors = tuple(tensors)
        torch.save(dataset, path)
    elif path.suffix == ".safetensors":
        pytest.importorskip("safetensors.numpy").save_file(arrays, path)
    elif path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with pytest.importorskip("h5py").File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    return path


IMAGE = np.ones((4, 5, 8, 8), np.float32)
MAGNITUDE = np.ones((4, 5), np.float64)
REDSHIFT = np.ones(4, np.float32)
WRONG = {
    "no images": (None, MAGNITUDE, REDSHIFT),
    "images that are rows": (IMAGE[:, 0, 0], MAGNITUDE, REDSHIFT),
    "no pixels": (IMAGE[:, :, :0], MAGNITUDE, REDSHIFT),
    "magnitudes of other rows": (IMAGE, MAGNITUDE[:3], REDSHIFT),
    "redshifts of other rows": (IMAGE, MAGNITUDE, REDSHIFT[:2]),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz", ".h5"])
@pytest.mark.parametrize("what", WRONG)
def test_wrong_columns_shapes_and_dtypes(what: str, suffix: str, tmp_path: Path) -> None:
    names = ("image", "magnitude", "redshift")
    arrays = {n: a for n, a in zip(names, WRONG[what], strict=True) if a is not None}
    sentence = refused(raw(tmp_path / f"1{suffix}", **arrays))
    guilty = "tensors" if suffix == ".pt" and len(arrays) == 1 else what.split()[-1]
    known = {"images", "magnitudes", "redshifts", "bands", "rows", "pixels", "tensors"}
    assert guilty in known
    assert any(name in sentence for name in ("image", "magnitude", "redshift"))
    if what != "no images":
        assert "must be" in sentence


def test_the_wrong_number_of_tensors(tmp_path: Path) -> None:
    four = {"image": IMAGE, "magnitude": MAGNITUDE, "redshift": REDSHIFT, "more": REDSHIFT}
    assert "has 4 tensors" in refused(raw(tmp_path / "4.pt", **four))
    torch = pytest.importorskip("torch")
    torch.save([1, 2, 3], tmp_path / "list.pt")
    assert "holds a list, not a TensorDataset" in refused(tmp_path / "list.pt")
    torch.save(torch.utils.data.TensorDataset(torch.rand(2, 5, 8, 8).transpose(2, 3),
                                              torch.rand(2, 5)), tmp_path / "t.pt")  # fmt: skip
    assert "image is not contiguous" in refused(tmp_path / "t.pt")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_rows_are_a_valid_partition(suffix: str, tmp_path: Path, make_cutouts) -> None:
    write_cutouts(make_cutouts(0), tmp_path / f"0{suffix}")
    with open_partition(Storage(tmp_path), f"0{suffix}") as reader:
        assert reader.rows == 0
        assert list(reader.blocks()) == []
        assert reader.read().images.shape == (0, 5, 32, 32)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_numbers_that_are_not_finite_are_read(suffix: str, tmp_path: Path) -> None:
    images = np.full((2, 5, 8, 8), np.nan, np.float32)
    images[1] = np.inf
    write_cutouts(Cutouts(images, MAGNITUDE[:2] * np.nan), tmp_path / f"1{suffix}")
    assert np.array_equal(read_cutouts(tmp_path / f"1{suffix}").images, images, equal_nan=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_empty_files_and_missing_files(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"1{suffix}").write_bytes(b"")
    assert "is empty (0 bytes)" in refused(tmp_path / f"1{suffix}")
    with pytest.raises(NotFoundError, match=f"2{suffix} is not there"):
        read_cutouts(tmp_path / f"2{suffix}")
    (tmp_path / f"3{suffix}").mkdir()
    with pytest.raises(StorageError, match=f"3{suffix}"):
        read_cutouts(tmp_path / f"3{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_truncated_files(suffix: str, tmp_path: Path, make_cutouts) -> None:
    path = tmp_path / f"1{suffix}"
    write_cutouts(make_cutouts(8, 5, 16, 16), path)
    whole = path.read_bytes()
    padding = 2880 if suffix == ".fits" else 1  # FITS ends in padding that nobody needs
    for length in {1, 7, 8, 100, 3000, len(whole) // 2, len(whole) - padding}:
        path.write_bytes(whole[:length])
        refused(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_random_bytes(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"1{suffix}"
    starts = [b"", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"SIMPLE  =", b"PAR1", b"\x93NUMPY"]
    for seed, start in enumerate(starts * 2):
        path.write_bytes(start + np.random.default_rng(seed).bytes(5000))
        refused(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_files_are_refused_or_have_the_announced_shape(suffix, data, tmp_path) -> None:
    path = tmp_path / f"1{suffix}"
    rng = np.random.default_rng(1)
    images = rng.random((3, 5, 4, 4), np.float32)
    write_cutouts(Cutouts(images, rng.random((3, 5)), rng.random(3)), path)
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(damaged)
    try:
        read = read_cutouts(path)
    except BadPartitionError as caught:
        sentence = str(caught)
    else:
        assert read.images.ndim == 4
        if suffix in (".pt", ".npz") and read.images.shape == images.shape:
            assert read.images.tobytes() == images.tobytes()
        return
    assert str(path) in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("suffix", CHECKED)
@pytest.mark.parametrize("place", [0.3, 0.6])
def test_a_flipped_pixel_is_found(suffix: str, place: float, tmp_path: Path, make_cutouts) -> None:
    path = tmp_path / f"1{suffix}"
    write_cutouts(make_cutouts(1000), path)
    damaged = bytearray(path.read_bytes())
    damaged[int(len(damaged) * place)] ^= 1
    path.write_bytes(damaged)
    with (
        open_partition(Storage(tmp_path), path.name) as reader,
        pytest.raises(BadPartitionError, match=rf"1\{suffix} is .*corrupt"),
    ):
        list(reader.blocks(64))
    refused(path)


# sizes that are lies


def limited(code: str, folder: Path) -> str:
    """Run Python with 1 GiB of memory to itself; what it prints."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder, preexec_fn=limit, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


READ = """
from perseid.errors import BadPartitionError
from perseid.survey import read_cutouts
try:
    read_cutouts({name!r})
except BadPartitionError as error:
    print(error)
"""


def test_huge_declared_sizes_cost_no_memory(tmp_path: Path) -> None:
    def npy(shape: tuple[int, ...], dtype: str, data: bytes = b"") -> bytes:
        head = io.BytesIO()
        spec = {"descr": dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(head, spec)
        return head.getvalue() + data

    big = (1 << 40, 5, 32, 32)
    with zipfile.ZipFile(tmp_path / "1.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", npy(big, "<f4"))
        archive.writestr("magnitude.npy", npy((1 << 40, 5), "<f4"))
    zeros = bytes(20480 * 1000)
    with zipfile.ZipFile(tmp_path / "2.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", npy((1000, 5, 32, 32), "<f4", zeros))
        archive.writestr("magnitude.npy", npy((1000, 1 << 20), "<f4", zeros))
    header = {
        "image": {"dtype": "F32", "shape": big, "data_offsets": [0, (1 << 40) * 20480]},
        "magnitude": {"dtype": "F32", "shape": [1 << 40, 5], "data_offsets": [0, 20 << 40]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "1.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(1000))
    (tmp_path / "2.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + text)
    for name in ("1.npz", "2.npz", "1.safetensors", "2.safetensors"):
        assert name in limited(READ.format(name=name), tmp_path)


def test_huge_arrays_of_other_formats_cost_no_memory(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    fits = pytest.importorskip("astropy.io.fits")
    with h5py.File(tmp_path / "1.h5", "w") as file:
        file.create_dataset("image", (1 << 30, 5, 32, 32), "f4", chunks=(1, 5, 32, 32))
        file.create_dataset("magnitude", (1 << 30, 5), "f8", chunks=(1000, 5))
    columns = [fits.Column("image", "5120E", dim="(32,32,5)"), fits.Column("magnitude", "5D")]
    hdu = fits.BinTableHDU.from_columns(columns, nrows=1)
    hdu.writeto(tmp_path / "1.fits")
    data = (tmp_path / "1.fits").read_bytes()
    at = data.index(b"NAXIS2  =")
    card = f"NAXIS2  = {1 << 40:>20}".encode().ljust(80)
    (tmp_path / "1.fits").write_bytes(data[:at] + card + data[at + 80 :])
    for name in ("1.h5", "1.fits"):
        assert name in limited(READ.format(name=name), tmp_path)


# files that would make a worker read something else


def test_hdf5_does_not_follow_links(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    (tmp_path / "secret").write_bytes(bytes(4 * 5 * 8 * 8 * 4))
    with h5py.File(tmp_path / "target.h5", "w") as file:
        file["image"], file["magnitude"] = IMAGE, MAGNITUDE
    with h5py.File(tmp_path / "1.h5", "w") as file:
        file["image"], file["magnitude"] = h5py.ExternalLink("target.h5", "image"), MAGNITUDE
    assert "image is a link" in refused(tmp_path / "1.h5")
    with h5py.File(tmp_path / "2.h5", "w") as file:
        where = [(str(tmp_path / "secret"), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("image", IMAGE.shape, "f4", external=where)
        file["magnitude"] = MAGNITUDE
    assert "lies in another file" in refused(tmp_path / "2.h5")


def test_npz_never_unpickles(tmp_path: Path) -> None:
    objects = np.array([{"a": 1}] * 4, dtype=object)
    np.savez(tmp_path / "1.npz", image=objects, magnitude=MAGNITUDE)
    assert "pickled arrays are not read" in refused(tmp_path / "1.npz")


def test_parquet_images_of_another_shape_than_stated(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    magnitude = pa.FixedSizeListArray.from_arrays(pa.array(MAGNITUDE.ravel()), 5)
    image = pa.FixedSizeListArray.from_arrays(pa.array(IMAGE.ravel()), 320)
    table = pa.table({"image": image, "magnitude": magnitude})
    table = table.replace_schema_metadata({"perseid.image_shape": "[5, 9, 9]"})
    pq.write_table(table, tmp_path / "3.parquet")
    assert "320 pixels an image do not have the shape [5, 9, 9]" in refused(tmp_path / "3.parquet")


# the disk


def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on file sizes stands in for the full disk: write() fails in the same way."""
    code = """
import resource, signal
import numpy as np
from perseid.errors import StorageError
from perseid.survey import Cutouts, write_cutouts
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
cutouts = Cutouts(np.zeros((100, 5, 32, 32), np.float32), np.zeros((100, 5)))
for suffix in ("pt", "npz", "safetensors", "h5", "fits", "parquet"):
    if suffix == "parquet":
        cutouts = Cutouts(np.random.random((100, 5, 32, 32)).astype("f4"), np.zeros((100, 5)))
    try:
        write_cutouts(cutouts, "1." + suffix)
    except StorageError as error:
        print(error)
"""
    sentences = limited(code, tmp_path).splitlines()
    assert len(sentences) == 6
    assert all("cannot be written" in sentence for sentence in sentences)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path, make_cutouts) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"file/1\.pt cannot be written"):
        write_cutouts(make_cutouts(1), tmp_path / "file" / "1.pt")


@pytest.mark.s3
def test_an_object_replaced_while_it_is_read(s3, make_cutouts) -> None:
    store = Storage(s3.bucket())
    write_cutouts(make_cutouts(1500), f"{store.url}/1.pt")
    with open_partition(store, "1.pt") as reader:
        blocks = reader.blocks(100)
        assert len(next(blocks)) == 100
        with creating(store, "1.pt", Columns.of(make_cutouts(1500, seed=1))) as writer:
            writer.write(make_cutouts(1500, seed=1))
        with pytest.raises(StorageError, match=r"1\.pt was replaced while it was being read"):
            list(blocks)


def header(**cards: object) -> bytes:
    """A FITS header with these cards."""
    lines = [f"{keyword:<8}= {value!s:>20}".ljust(80) for keyword, value in cards.items()]
    text = "".join([*lines, "END".ljust(80)])
    return text.ljust(-(-len(text) // 2880) * 2880).encode()


PRIMARY: dict[str, object] = {"SIMPLE": "T", "BITPIX": 8, "NAXIS": 0}
TABLE: dict[str, object] = {
    "XTENSION": "'BINTABLE'", "BITPIX": 8, "NAXIS": 2, "NAXIS1": 8, "NAXIS2": 4, "PCOUNT": 0,
    "GCOUNT": 1, "TFIELDS": 1, "TTYPE1": "'x'", "TFORM1": "'2E'",
}  # fmt: skip
STATED = {
    "columns": header(**PRIMARY) + header(**TABLE | {"TFIELDS": 10**9}),
    "fewer than no columns": header(**PRIMARY) + header(**TABLE | {"TFIELDS": -1}),
    "columns in words": header(**PRIMARY) + header(**TABLE | {"TFIELDS": "'many'"}),
    "axes of the first image": header(**PRIMARY | {"NAXIS": 10**9}),
    "axes of a later image": header(**PRIMARY)
    + header(XTENSION="'IMAGE   '", BITPIX=8, NAXIS=10**9),
    "axes of a compressed image": header(**PRIMARY)
    + header(**TABLE, ZIMAGE="T", ZBITPIX=8, ZNAXIS=10**9, ZCMPTYPE="'GZIP_1'"),
    "a header without end": header(**PRIMARY)[:-2880] + b"SIMPLE  =".ljust(20 << 20),
    "a heap that ends at the header": header(**PRIMARY) + header(**TABLE | {"PCOUNT": -32 - 2880}),
    "a negative axis": header(**PRIMARY | {"NAXIS": 1}, NAXIS1=-2880),
    "four negative axes": header(
        SIMPLE="T", BITPIX=-32, NAXIS=4, NAXIS1=-8, NAXIS2=-8, NAXIS3=-5, NAXIS4=-4
    ),
}
"""Files of a few kilobytes whose headers state what no FITS file has, by what it is."""


def test_fits_headers_that_would_never_end_are_refused_at_once(tmp_path: Path) -> None:
    pytest.importorskip("astropy")
    for what, text in STATED.items():
        (tmp_path / f"{what}.fits").write_bytes(text + bytes(2880))
    said = limited("".join(READ.format(name=f"{what}.fits") for what in STATED), tmp_path)
    refused_files = [line.partition(".fits is corrupt: ")[0] for line in said.splitlines()]
    assert [Path(file).name for file in refused_files] == [*STATED]


def test_small_files_that_claim_to_be_large_cost_no_memory(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    for name, shape, dtype in (
        ("width", (4, 10**8), "S8"),
        ("rows", (10**9, 5), "S8"),
        ("text", (10**8, 5), h5py.string_dtype()),
        ("length", (4, 5), "S100000000"),
    ):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["image"], file["magnitude"] = IMAGE, MAGNITUDE
            chunks = tuple(min(size, 10**6) for size in shape) if shape[0] > 4 else (1, 5)
            file.create_dataset("image_band", shape, dtype, chunks=chunks, compression="gzip")
    with h5py.File(tmp_path / "never written.h5", "w") as file:
        file.create_dataset("image", (10**7, 5, 32, 32), "f4", chunks=(1, 5, 32, 32))
        file.create_dataset("magnitude", (10**7, 5), "f4", chunks=(10**5, 5))
    pixels = pa.ListArray.from_arrays(
        pa.array([0, 25 << 20], pa.int32()), pa.array(np.zeros(25 << 20, np.float32))
    )
    table = pa.table({"image": pixels, "magnitude": pa.array([[1.0] * 5])})
    pa.parquet.write_table(table, tmp_path / "list.parquet", compression="zstd")
    with zipfile.ZipFile(tmp_path / "nested.npz", "w") as archive:
        archive.writestr("image.npy", b"\x93NUMPY\x01\x00\x76\x00" + b"(" * 118)
        archive.writestr("magnitude.npy", b"")
    names = [path.name for path in sorted(tmp_path.iterdir())]
    said = limited("".join(BANDS.format(name=name) for name in names), tmp_path).splitlines()
    assert [Path(line.split(":")[0].split(" is ")[0]).name for line in said] == names


BANDS = """
from perseid.errors import BadPartitionError
from perseid.storage import Storage
from perseid.survey import open_partition
try:
    with open_partition(Storage("."), {name!r}) as reader:
        print(reader.bands)
except BadPartitionError as error:
    print(error)
"""
