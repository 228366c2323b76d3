"""A model without an image input reads columns alone: no byte of the pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import surveyfiles

from perseid.model.inputs import ColumnInput
from perseid.model.outputs import REDSHIFT
from perseid.model.signature import ModelSignature
from perseid.pipeline.feed import Block, Ended, Failed, Feed
from perseid.pipeline.items import PartitionRef
from perseid.pipeline.model_inputs import with_inputs
from perseid.storage import Storage
from perseid.survey.read_options import ReadOptions
from perseid.survey.reader import open_partition

ROWS, BANDS, SIDE = 1000, 5, 32
SIGNATURE = ModelSignature(
    "forest", 0, 0, 0, band_names=(), columns=(ColumnInput(),), outputs=(REDSHIFT,)
)


def write(path: Path, form: str) -> np.ndarray:
    """20 MB of pixels that cannot be compressed, and their magnitudes."""
    rng = np.random.default_rng(0)
    images = rng.random((ROWS, BANDS, SIDE, SIDE), np.float32)
    magnitudes = rng.uniform(15, 22, (ROWS, BANDS)).astype(np.float32)
    if form == "compressed":
        np.savez_compressed(path, image=images, magnitude=magnitudes)
    elif path.suffix == ".parquet":
        columns = {"image": pa.FixedShapeTensorArray.from_numpy_ndarray(images),
                   "magnitude": list(magnitudes)}  # fmt: skip
        pq.write_table(pa.table(columns), path, write_page_checksum=True, compression="none")
    else:
        surveyfiles.write(path, {"image": images, "magnitude": magnitudes})
    return magnitudes


@pytest.mark.parametrize(
    ("suffix", "form"),
    [(".pt", ""), (".safetensors", ""), (".npz", ""), (".npz", "compressed"), (".h5", ""),
     (".parquet", "")],
)  # fmt: skip
def test_pixels_are_not_fetched(suffix: str, form: str, tmp_path: Path) -> None:
    """Beyond the ends of the object, which hold its directory, little more than the columns."""
    magnitudes = write(tmp_path / f"1{suffix}", form)
    store = Storage(f"memory://unread{suffix}{form}/data")
    store.put(f"1{suffix}", tmp_path / f"1{suffix}")
    info = store.info(f"1{suffix}")
    steps = [*_fed(store, PartitionRef(info.key, info.size, info.etag))]
    assert not [step for step in steps if isinstance(step, Failed)]
    blocks = [step.cutouts for step in steps if isinstance(step, Block)]
    np.testing.assert_array_equal(np.concatenate([one.magnitudes for one in blocks]), magnitudes)
    (end,) = [step for step in steps if isinstance(step, Ended)]
    assert 0 < end.stats.num_bytes < info.size // 8


@pytest.mark.parametrize("suffix", [".pt", ".npz", ".h5", ".fits", ".parquet"])
def test_pixels_may_be_broken(suffix: str, tmp_path: Path) -> None:
    """What would end a model of images does not matter to a model of columns."""
    rng = np.random.default_rng(1)
    images = rng.random((40, BANDS, SIDE, SIDE), np.float32)
    magnitudes = rng.uniform(15, 22, (40, BANDS)).astype(np.float32)
    path = tmp_path / f"1{suffix}"
    surveyfiles.write(path, {"image": images, "magnitude": magnitudes})
    data = bytearray(path.read_bytes())
    kind = ">f4" if suffix == ".fits" else "<f4"
    pixels = images[7].astype(kind).tobytes()
    at = data.find(pixels[:64])
    assert at > 0
    data[at : at + len(pixels)] = np.full(images[7].size, np.nan, kind).tobytes()
    path.write_bytes(data)
    store = Storage(tmp_path)
    info = store.info(path.name)
    steps = [*_fed(store, PartitionRef(info.key, info.size, info.etag))]
    assert not [step for step in steps if isinstance(step, Failed)]
    (block,) = [step for step in steps if isinstance(step, Block)]
    assert not block.flag.any()
    np.testing.assert_array_equal(block.cutouts.magnitudes, magnitudes)


def test_rows_of_a_table_are_fetched_a_few_megabytes_at_a_time(tmp_path: Path) -> None:
    """In FITS the pixels lie between the columns: they are fetched, and never held."""
    magnitudes = write(tmp_path / "1.fits", "")
    store = Storage("memory://unread-fits/data")
    store.put("1.fits", tmp_path / "1.fits")
    options = with_inputs(ReadOptions(), SIGNATURE)
    with open_partition(store, "1.fits", options=options) as reader:
        got = np.concatenate([block.magnitudes for block in reader.blocks()])
        assert reader.stats.num_requests >= ROWS * BANDS * SIDE**2 * 4 // (8 << 20)
    np.testing.assert_array_equal(got, magnitudes)


def _fed(store: Storage, ref: PartitionRef):
    options = with_inputs(ReadOptions(), SIGNATURE)
    with Feed(store, [ref], SIGNATURE, 32, options=options) as feed:
        yield from feed
