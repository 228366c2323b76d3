"""What a survey may lack, and how its images may lie: only what a model takes is required."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import surveyfiles

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
        import pyarrow as pa
        import pyarrow.parquet as pq

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
