"""Every format: what was written comes back, bit for bit, and other programs can read it."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perseid.errors import BadInputError, StorageError
from perseid.storage import Storage
from perseid.survey import Cutouts, open_partition, read_cutouts, suffixes, write_cutouts
from perseid.survey.bytesource import ByteSource, BytesSource
from perseid.survey.file_columns import Columns
from perseid.survey.formats import open_table
from perseid.survey.reader import creating

SUFFIXES = [s for s in suffixes() if s not in (".pth", ".hdf5")]
SHAPES = st.tuples(
    st.integers(0, 9), st.integers(1, 7), st.integers(1, 9), st.integers(1, 9)
)  # rows, bands, height, width


@pytest.mark.parametrize("suffix", suffixes())
@pytest.mark.parametrize("place", ["disk", "memory"])
def test_a_round_trip_keeps_every_bit(
    suffix: str, place: str, tmp_path: Path, make_cutouts, same_bits
) -> None:
    base = str(tmp_path) if place == "disk" else f"memory://{uuid.uuid4().hex}"
    written = make_cutouts(101)
    assert np.isnan(written.images).any()  # random bits hold NaNs of many payloads
    write_cutouts(written, f"{base}/a b%20{suffix}")
    assert same_bits(read_cutouts(f"{base}/a b%20{suffix}"), written)


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    shape=SHAPES,
    magnitude=st.sampled_from(["float32", "float64"]),
    redshift=st.sampled_from([None, "float32", "float64"]),
    object_id=st.booleans(),
    label=st.booleans(),
    step=st.integers(1, 4),
)
def test_any_shape_and_columns(
    suffix, shape, magnitude, redshift, object_id, label, step, make_cutouts, same_bits
) -> None:
    written = make_cutouts(
        *shape, magnitude=magnitude, redshift=redshift, object_id=object_id, label=label
    )
    store, key = Storage(f"memory://{uuid.uuid4().hex}"), f"x{suffix}"
    with creating(store, key, Columns.of(written)) as writer:
        for block in written.batches(step):  # written in blocks, read in others
            writer.write(block)
    assert same_bits(read_cutouts(f"{store.url}/{key}"), written)
    with open_partition(store, key) as reader:
        assert (reader.rows, reader.shape) == (shape[0], shape[1:])
        blocks = list(reader.blocks(step + 1))
        assert [len(block) for block in blocks[:-1]] == [step + 1] * (len(blocks) - 1)
        at = 0
        for block in blocks:
            assert same_bits(block, written[at : at + step + 1])
            at += len(block)
        assert at == shape[0]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_rows_give_the_same_file(suffix: str, tmp_path: Path, make_cutouts) -> None:
    for folder in ("one", "two"):
        write_cutouts(make_cutouts(5), tmp_path / folder / f"1{suffix}")
    assert (tmp_path / f"one/1{suffix}").read_bytes() == (tmp_path / f"two/1{suffix}").read_bytes()


def test_torch_reads_our_datasets_as_published(tmp_path: Path, make_cutouts) -> None:
    torch = pytest.importorskip("torch")
    cutouts = make_cutouts(37)
    write_cutouts(cutouts, tmp_path / "1.pt")
    for mapped in (False, True):
        dataset = torch.load(tmp_path / "1.pt", weights_only=False, mmap=mapped)
        assert type(dataset) is torch.utils.data.TensorDataset
        image, magnitude, redshift = dataset.tensors  # as scripts unpack them
        assert image.shape == (37, 5, 32, 32)
        assert magnitude.dtype == torch.float64
        assert image.numpy().tobytes() == cutouts.images.tobytes()
        assert magnitude.numpy().tobytes() == cutouts.magnitudes.tobytes()
        assert redshift.numpy().tobytes() == cutouts.redshift.tobytes()
        assert dataset.object_id.numpy().tobytes() == cutouts.object_id.tobytes()
        assert dataset.label.dtype == torch.int32
    loader = torch.utils.data.DataLoader(dataset, batch_size=10)
    assert [len(image) for image, _, _ in loader] == [10, 10, 10, 7]


def test_a_dataset_without_redshifts_still_has_three_tensors(tmp_path, make_cutouts) -> None:
    torch = pytest.importorskip("torch")
    write_cutouts(make_cutouts(3, redshift=None), tmp_path / "1.pt")
    _, _, redshift = torch.load(tmp_path / "1.pt", weights_only=False).tensors
    assert redshift.isnan().all()
    assert read_cutouts(tmp_path / "1.pt").redshift is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_we_read_what_torch_saves(tmp_path: Path, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    image, magnitude = torch.rand(64, 5, 32, 32), torch.rand(64, 5, dtype=getattr(torch, dtype))
    redshift = torch.rand(64, 1)
    whole = torch.utils.data.TensorDataset(image, magnitude, redshift)
    part = torch.utils.data.TensorDataset(image[10:20], magnitude[10:20], redshift[10:20, 0])
    torch.save(whole, tmp_path / "whole.pt")
    torch.save(part, tmp_path / "part.pt")  # views: the file holds the whole storages
    read = read_cutouts(tmp_path / "whole.pt")
    assert np.array_equal(read.images, image.numpy())
    assert read.magnitudes.dtype == dtype
    assert np.array_equal(read.redshift, redshift[:, 0].numpy())
    read = read_cutouts(tmp_path / "part.pt")
    assert np.array_equal(read.images, image[10:20].numpy())
    assert np.array_equal(read.magnitudes, magnitude[10:20].numpy())


def test_numpy_reads_our_archives_and_we_read_its(tmp_path: Path, make_cutouts, same_bits) -> None:
    cutouts = make_cutouts(9)
    write_cutouts(cutouts, tmp_path / "1.npz")
    with np.load(tmp_path / "1.npz", allow_pickle=False) as archive:
        assert archive["image"].tobytes() == cutouts.images.tobytes()
        assert archive["label"].dtype == np.int32
    arrays = {"images": cutouts.images, "Magnitudes": cutouts.magnitudes, "unrelated": np.ones(3)}
    for save, name in ((np.savez, "plain.npz"), (np.savez_compressed, "small.npz")):
        save(tmp_path / name, **arrays)
        expected = Cutouts(cutouts.images, cutouts.magnitudes)
        assert same_bits(read_cutouts(tmp_path / name), expected)
        with open_partition(Storage(tmp_path), name) as reader:
            assert [len(block) for block in reader.blocks(4)] == [4, 4, 1]
            assert sum(len(block) for block in reader.blocks(2)) == 9  # again, from the start


def test_safetensors_reads_our_files_and_we_read_its(tmp_path, make_cutouts, same_bits) -> None:
    library = pytest.importorskip("safetensors.numpy")
    cutouts = make_cutouts(9)
    write_cutouts(cutouts, tmp_path / "1.safetensors")
    read = library.load_file(tmp_path / "1.safetensors")
    assert read["image"].tobytes() == cutouts.images.tobytes()
    assert read["magnitude"].tobytes() == cutouts.magnitudes.tobytes()
    library.save_file(
        {"image": cutouts.images, "magnitude": cutouts.magnitudes}, tmp_path / "2.safetensors"
    )
    expected = Cutouts(cutouts.images, cutouts.magnitudes)
    assert same_bits(read_cutouts(tmp_path / "2.safetensors"), expected)


def test_h5py_reads_our_files_and_we_read_chunked_ones(tmp_path, make_cutouts, same_bits) -> None:
    h5py = pytest.importorskip("h5py")
    cutouts = make_cutouts(9)
    write_cutouts(cutouts, tmp_path / "1.h5")
    with h5py.File(tmp_path / "1.h5") as file:
        assert file["image"][:].tobytes() == cutouts.images.tobytes()
    with h5py.File(tmp_path / "2.h5", "w") as file:
        file.create_dataset("image", data=cutouts.images, chunks=(2, 5, 32, 32), compression=4)
        file.create_dataset("magnitude", data=cutouts.magnitudes.astype(">f8"))
    expected = Cutouts(cutouts.images, cutouts.magnitudes.astype(">f8").astype("<f8"))
    assert same_bits(read_cutouts(tmp_path / "2.h5"), expected)


def test_astropy_reads_our_tables_and_we_read_its(tmp_path, make_cutouts, same_bits) -> None:
    fits = pytest.importorskip("astropy.io.fits")
    cutouts = make_cutouts(9, 3, 8, 6)
    write_cutouts(cutouts, tmp_path / "1.fits")
    with fits.open(tmp_path / "1.fits") as hdus:
        hdus.verify("exception")
        table = hdus["CUTOUTS"].data
        assert table["image"].shape == (9, 3, 8, 6)
        assert table["image"].astype("<f4").tobytes() == cutouts.images.tobytes()
        assert table["object_id"].astype("<i8").tobytes() == cutouts.object_id.tobytes()
    columns = [
        fits.Column("NAME", "8A", array=np.array([f"g{i}" for i in range(9)])),
        fits.Column("IMAGE", "144E", dim="(6,8,3)", array=cutouts.images),
        fits.Column("MAGNITUDE", "3D", array=cutouts.magnitudes),
    ]
    hdus = fits.HDUList([fits.PrimaryHDU(np.ones((5, 5))), fits.BinTableHDU.from_columns(columns)])
    hdus.writeto(tmp_path / "2.fits")
    expected = Cutouts(cutouts.images, cutouts.magnitudes)
    assert same_bits(read_cutouts(tmp_path / "2.fits"), expected)


def test_pyarrow_reads_our_files_and_we_read_its(tmp_path, make_cutouts, same_bits) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    cutouts = make_cutouts(9)
    write_cutouts(cutouts, tmp_path / "1.parquet")
    table = pq.read_table(tmp_path / "1.parquet")
    assert table.schema.field("image").type == pa.list_(pa.float32(), 5120)
    flat = table["image"].combine_chunks().flatten().to_numpy()
    assert flat.tobytes() == cutouts.images.tobytes()
    columns = {  # another writer's: no metadata about the shape
        name: pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), length)
        for name, array, length in (
            ("image", cutouts.images, 5120),
            ("magnitude", cutouts.magnitudes, 5),
        )
    }
    pq.write_table(pa.table(columns), tmp_path / "2.parquet", row_group_size=4)
    expected = Cutouts(cutouts.images, cutouts.magnitudes)
    assert same_bits(read_cutouts(tmp_path / "2.parquet"), expected)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_appears_whole_or_not_at_all(suffix: str, tmp_path: Path, make_cutouts) -> None:
    cutouts, store = make_cutouts(4), Storage(tmp_path)
    with (
        pytest.raises(ZeroDivisionError),
        creating(store, f"1{suffix}", Columns.of(cutouts)) as writer,
    ):
        _ = [writer.write(cutouts[:2]), 1 // 0]
    with (
        pytest.raises(BadInputError, match="2 of 4 rows"),
        creating(store, f"1{suffix}", Columns.of(cutouts)) as writer,
    ):
        writer.write(cutouts[:2])
    with (
        pytest.raises(BadInputError, match="5 rows are too many: 4"),
        creating(store, f"1{suffix}", Columns.of(cutouts)) as writer,
    ):
        writer.write(make_cutouts(5))
    with (
        pytest.raises(BadInputError, match="these rows have 3 bands"),
        creating(store, f"1{suffix}", Columns.of(cutouts)) as writer,
    ):
        writer.write(make_cutouts(2, 3))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_suffix_is_named_with_the_known_ones(tmp_path: Path, make_cutouts) -> None:
    with pytest.raises(BadInputError, match=r"1\.tiff.*known: \.pt"):
        write_cutouts(make_cutouts(1), tmp_path / "1.tiff")
    with pytest.raises(BadInputError, match=r"1\.tiff"):
        read_cutouts(tmp_path / "1.tiff")


class _Failing(ByteSource):
    """A file of which the read number `at` fails, as that of a store that is lost for a while."""

    def __init__(self, whole: BytesSource, name: str, at: int) -> None:
        super().__init__(name, whole.size)
        self._whole, self._left = whole, at

    def _read(self, start: int, length: int) -> memoryview:
        self._left -= 1
        if self._left < 0:
            raise StorageError("the store went away")
        return self._whole.read(start, length)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_store_that_fails_is_no_corrupt_file(suffix: str, tmp_path: Path, make_cutouts) -> None:
    """Whichever read fails: zipfile, astropy, h5py and pyarrow catch OSError and ValueError."""
    path = tmp_path / f"1{suffix}"
    write_cutouts(make_cutouts(37), path)
    whole = BytesSource(path.read_bytes())
    for at in range(200):
        source = _Failing(whole, path.name, at)
        try:
            open_table(source).read(0, 37)
        except StorageError as error:
            assert str(error) == "the store went away"  # noqa: PT017
        else:
            break
    assert 0 < at < 199
