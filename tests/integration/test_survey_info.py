"""``perseid survey info`` and `Survey.info`: what a survey holds, what a model uses and misses."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import surveyfiles
from tiny import SIDE, tiny_cutouts, tiny_model, tiny_survey

import perseid
from perseid.cli import main
from perseid.survey import write_cutouts

ROWS = 12


@pytest.fixture
def survey(tmp_path: Path) -> Path:
    """Two partitions with names of their own, one broken, and bands that are last."""
    rng = np.random.default_rng(5)
    (tmp_path / "data").mkdir()
    for number in (1, 2):
        surveyfiles.write(tmp_path / "data" / f"{number}.h5", {
            "image": rng.integers(0, 255, (ROWS, SIDE, SIDE, 3)).astype(np.uint8),
            "TARGETID": np.arange(ROWS) + (1 << 62),
            "RA": rng.uniform(0, 360, ROWS),
            "DEC": rng.uniform(-90, 90, ROWS),
            "MAG_G": rng.uniform(15, 22, ROWS),
            "votes": rng.random((ROWS, 7)),
            "note": np.array(["x"] * ROWS),
        })  # fmt: skip
    (tmp_path / "data" / "3.h5").write_bytes(b"no HDF5")
    return tmp_path / "data"


def test_what_is_there_and_what_is_not(survey: Path) -> None:
    opened = perseid.open_survey(survey)
    info = opened.info()
    assert (info.partitions, info.rows, info.shape) == (3, 2 * ROWS, (3, SIDE, SIDE))
    assert (info.channels_last, info.formats, list(info.unreadable)) == (True, (".h5",), ["3.h5"])
    assert info.sources == {
        "image": "image", "object_id": "TARGETID", "ra": "RA", "dec": "DEC",
    }  # fmt: skip
    assert opened.missing == info.missing == ("magnitude", "redshift", "label")
    kinds = {spec.source: (spec.kind, spec.shape) for spec in opened.columns}
    assert kinds["TARGETID"] == ("int64", ())
    assert kinds["votes"] == ("float64", (7,))
    assert kinds["note"] == ("text", ())


def test_names_that_are_given(survey: Path) -> None:
    info = perseid.open_survey(survey, columns={"magnitude": ["MAG_G", "RA"]}).info()
    assert info.sources["magnitude"] == "MAG_G, RA"
    assert info.magnitudes == 2


def test_on_the_command_line(survey: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["survey", "info", str(survey)]) == 0
    said = capsys.readouterr().out
    for words in ("rows        24", "3 bands of 8 x 8 pixels, the bands last in the file",
                  "object_id   TARGETID", "missing     magnitude, redshift, label",
                  "votes: float64 [7]", "unreadable  3.h5"):  # fmt: skip
        assert words in said
    assert main(["survey", "info", str(survey), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 2 * ROWS


TYPES = ("uint8", "int16", "uint16", "int32", "int64", "float32", "float64", "bool")


@pytest.mark.parametrize("suffix", [".h5", ".npz", ".safetensors", ".parquet", ".fits"])
def test_columns_have_the_files_own_types(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = {f"c_{name}": np.ones(ROWS, name) for name in TYPES}
    image = np.ones((ROWS, SIDE, SIDE, 3), np.uint8)
    surveyfiles.write(tmp_path / f"1{suffix}", {"image": image, **columns})
    assert main(["survey", "info", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for name in TYPES:
        assert f"  c_{name}: {name}\n" in said, said
    assert f"  image: uint8 [{SIDE} x {SIDE} x 3]\n" in said, said


def test_what_a_model_would_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_survey(tmp_path / "data", rows=20)
    tiny_model(tmp_path / "m.onnx")
    tiny_model(tmp_path / "other.onnx", side=16)
    words = ["survey", "info", str(tmp_path / "data"), "--model"]
    assert main([*words, str(tmp_path / "m.onnx")]) == 0
    said = capsys.readouterr().out
    assert "image: 5 bands of 8 x 8 pixels, from image" in said
    assert "magnitude: 5 numbers per row, from magnitude" in said
    assert main([*words, str(tmp_path / "other.onnx")]) == 1
    said = capsys.readouterr().out
    assert "(5, 8, 8), but the input `image` of the model 'tiny' takes (5, 16, 16)" in said
    assert main([*words, str(tmp_path / "other.onnx"), "--fit", "pad"]) == 0


def test_a_picture_of_nine_cutouts(tmp_path: Path) -> None:
    tiny_survey(tmp_path / "data", rows=20, per_partition=4)
    assert (
        main(["survey", "info", str(tmp_path / "data"), "--picture", str(tmp_path / "p.png")]) == 0
    )
    data = (tmp_path / "p.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (3 * 192 + 8, 3 * 192 + 8)
    from PIL import Image

    pixels = np.asarray(Image.open(tmp_path / "p.png"))
    corners = [pixels[96 + 196 * row, 96 + 196 * column] for row in range(3) for column in range(3)]
    assert pixels[96, 194].tolist() == [255, 255, 255]
    assert any(corner.tolist() != [255, 255, 255] for corner in corners)


@pytest.mark.parametrize("what", ["nothing there", "no such column", "one band", "no images"])
def test_what_goes_wrong_is_one_sentence(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    picture = ["--picture", str(tmp_path / "p.png")]
    match what:
        case "nothing there":
            words, code = [str(tmp_path / "none")], 2
        case "no such column":
            write_cutouts(tiny_cutouts(3), tmp_path / "data" / "1.npz")
            words, code = [str(tmp_path / "data"), "--columns", "redshift=Z"], 2
        case "one band":
            write_cutouts(tiny_cutouts(3, bands=1), tmp_path / "data" / "1.npz")
            words, code = [str(tmp_path / "data"), *picture], 0
        case _:
            surveyfiles.write(tmp_path / "data" / "1.npz", {"magnitude": np.ones((3, 5))})
            words, code = [str(tmp_path / "data"), *picture], 2
    assert main(["survey", "info", *words]) == code
    said = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in said if line.startswith("perseid:")]) == (code != 0)
