"""Columns that nothing uses are named, in every format that has names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import surveyfiles
from tiny import tiny_cutouts, tiny_model

from perseid.errors import BadInputError
from perseid.pipeline.initialize import plan
from perseid.pipeline.request import RunRequest
from perseid.storage import Storage
from perseid.survey.look import look_at_formats, notes_on
from perseid.survey.reader import open_partition

FORMATS = tuple(suffix for suffix in surveyfiles.FORMATS if suffix != ".pt")
"""A ``.pt`` file holds tensors without names."""


def write(folder: Path, form: str, extra: tuple[str, ...]) -> str:
    cutouts = tiny_cutouts(6)
    arrays = {"image": cutouts.images, "magnitude": cutouts.magnitudes}
    others = {name: np.arange(6, dtype=np.float64) for name in extra}
    return surveyfiles.write(folder / f"1{form}", {**arrays, **others}).name


@pytest.mark.parametrize("form", FORMATS)
def test_columns_that_nothing_uses_are_named(tmp_path: Path, form: str) -> None:
    key = write(tmp_path, form, ("ra", "dec"))
    with open_partition(Storage(tmp_path), key) as reader:
        assert sorted(reader.unused) == ["dec", "ra"]
    (note,) = notes_on(look_at_formats(Storage(tmp_path), [key]))
    assert key in note
    assert "nothing uses the columns" in note
    assert "ra" in note
    assert "dec" in note


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_is_said_where_all_are_used(tmp_path: Path, form: str) -> None:
    key = write(tmp_path, form, ())
    assert notes_on(look_at_formats(Storage(tmp_path), [key])) == ()


def test_a_run_names_them_and_counts_the_rest(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", ".npz", tuple(f"extra{n:02}" for n in range(20)))
    tiny_model(tmp_path / "m.onnx")
    request = {"data": str(tmp_path / "data"), "results": str(tmp_path / "r"),
               "model": str(tmp_path / "m.onnx")}  # fmt: skip
    (note,) = plan(RunRequest.parse(request)).warnings
    assert "extra11 and 8 more" in note


@pytest.mark.parametrize("keep", ["all", "na<b>me\x1b[1m"], ids=["all", "named"])
def test_a_name_that_a_catalogue_cannot_have_is_not_promised(tmp_path: Path, keep: str) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", ".parquet", ("na<b>me\x1b[1m",))
    tiny_model(tmp_path / "m.onnx")
    request = {"data": str(tmp_path / "data"), "results": str(tmp_path / "r"), "keep": keep,
               "model": str(tmp_path / "m.onnx")}  # fmt: skip
    if keep != "all":
        with pytest.raises(BadInputError, match="has control characters: give it another name"):
            plan(RunRequest.parse(request))
        return
    (note,) = plan(RunRequest.parse(request)).warnings
    assert "nothing uses the column" in note
    assert "`keep" not in note
