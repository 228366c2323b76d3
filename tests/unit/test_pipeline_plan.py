"""What a plan says of its request: quick tests of each decision, without a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny import tiny_cutouts, tiny_model, tiny_survey

from perseid.compat.scripts.script_job import script_job
from perseid.errors import BadInputError, BadModelError, StorageError
from perseid.pipeline import layout
from perseid.pipeline.initialize import initialize, plan
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.rank_outputs import ahead
from perseid.pipeline.request import RunRequest
from perseid.pipeline.resumption import with_current_model
from perseid.storage import Storage
from perseid.survey.kinds import KINDS
from perseid.survey.reader import write_cutouts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a tiny survey and a tiny model."""
    tiny_survey(tmp_path / "data", rows=6, per_partition=2)
    tiny_model(tmp_path / "m.onnx")
    return tmp_path


def planned(folder: Path, **more: object) -> Manifest:
    given = {"data": str(folder / "data"), "model": str(folder / "m.onnx")}
    return plan(RunRequest.parse({**given, "results": str(folder / "run"), **more}))


def script(folder: Path, **more: object) -> Manifest:
    (folder / "bucket" / "code").mkdir(parents=True, exist_ok=True)
    (folder / "bucket" / "code" / "run.py").write_text("print(1)")
    tiny_survey(folder / "bucket" / "data", rows=4, per_partition=2)
    keys = {
        "bucket": "bucket", "data_bucket": "bucket", "data_prefix": "data", "result_path": "r",
        "S3_object_name": "code", "script": "/tmp/code/run.py", "bucket_root": str(folder),
    }  # fmt: skip
    request = RunRequest.parse({**keys, **more})
    return plan(request, script_job(request))


def test_a_script_talks_where_the_request_or_its_folder_says_so(tmp_path: Path) -> None:
    assert script(tmp_path).settings.options.talks is None
    assert script(tmp_path, fmi_enabled=True).settings.options.talks is True
    (tmp_path / "bucket" / "code" / "fmi.json").write_text('{"backends": {"Direct": {}}}')
    assert script(tmp_path).settings.options.talks is True
    assert script(tmp_path, fmi_enabled=False).settings.options.talks is None


def test_a_run_of_a_whole_bucket_may_leave_its_results_there(folder: Path) -> None:
    keys = {"bucket_root": str(folder), "model": str(folder / "m.onnx")}
    whole = {"data_bucket": "data", "bucket": "data", "result_path": "r", **keys}
    assert len(plan(RunRequest.parse(whole)).partitions) == 3
    with pytest.raises(BadInputError, match="another"):
        planned(folder, results=str(folder / "data" / "r"))


def test_the_names_of_labels_are_read_where_the_survey_has_them(folder: Path) -> None:
    names = {KINDS: {"5": "merger"}}
    (folder / "data" / "survey.json").write_text(json.dumps(names))
    found = planned(folder).settings.options.label_names
    keys = {"bucket_root": str(folder.parent), "model": str(folder / "m.onnx")}
    below = {"data_bucket": folder.name, "data_prefix": "data", "results": str(folder / "run")}
    again = plan(RunRequest.parse({**keys, **below})).settings.options.label_names
    assert found == again
    assert found["5"] == "merger"


def test_names_of_columns_stand_in_the_plan(folder: Path) -> None:
    shutil.rmtree(folder / "data")
    (folder / "data").mkdir()
    write_cutouts(tiny_cutouts(6), folder / "data" / "1.npz")
    assert planned(folder).settings.columns is None
    named = planned(folder, columns={"object_id": "object_id"}).settings.columns
    assert named == {"object_id": ("object_id",)}


def test_images_that_the_model_cannot_take_are_refused(folder: Path) -> None:
    tiny_model(folder / "m.onnx", side=16)
    with pytest.raises(BadInputError, match="16"):
        planned(folder)


def test_lists_that_the_model_does_not_give_are_refused(folder: Path) -> None:
    assert planned(folder, lists="embedding").settings.lists == ("embedding",)
    with pytest.raises(BadInputError, match="lists of the kind pdf"):
        planned(folder, lists="pdf")


def test_partitions_that_differ_in_size_are_spread_by_number(folder: Path) -> None:
    """Only those of HATS, whose pixels are uneven by their nature, are spread by their rows."""
    write_cutouts(tiny_cutouts(60), folder / "data" / "1.pt")
    assert planned(folder, world_size=2).assignment == (2, 1)


PIXEL = "dataset/Norder=0/Dir=0/Npix={}.parquet"


@pytest.mark.parametrize(("rows", "spread"), [((1, 1, 9), (2, 1)), ((), (1, 2))])
def test_pixels_of_hats_are_spread_by_rows_or_bytes(
    rows: tuple[int, ...], spread: tuple[int, ...], folder: Path
) -> None:
    """By the rows that the catalogue's table has; without it, by the size of the files."""
    top = folder / "hats"
    (top / PIXEL.format(0)).parent.mkdir(parents=True)
    table = pq.read_table(as_parquet(folder))
    for pixel, part in enumerate((table, table.slice(0, 1), table.slice(1, 1))):
        pq.write_table(part, top / PIXEL.format(pixel))
    (top / "hats.properties").write_text("obs_collection=c\ndataproduct_type=object\n")
    if rows:
        lines = [f"0,{pixel},{count}\n" for pixel, count in enumerate(rows)]
        (top / "partition_info.csv").write_text("Norder,Npix,num_rows\n" + "".join(lines))
    assert planned(folder, data=str(top), world_size=2).assignment == spread


def as_parquet(folder: Path) -> Path:
    write_cutouts(tiny_cutouts(40), folder / "0.parquet")
    return folder / "0.parquet"


MODULE = """
class Flat:
    signature = {
        "name": "flat",
        "inputs": {"magnitude": {"kind": "column", "column": "magnitude", "width": 5}},
        "outputs": {"z": {"kind": "redshift"}},
    }

    def predict(self, images, columns):
        return {"z": columns["magnitude"][:, 0]}
"""


def test_a_resumption_looks_for_a_python_model_where_the_run_did(folder: Path) -> None:
    (folder / "models").mkdir()
    (folder / "models" / "flat.py").write_text(MODULE)
    begun = planned(folder, model="python:flat:Flat", model_path=str(folder / "models"))
    assert not difference(begun, with_current_model(begun))
    (folder / "models" / "flat.py").write_text(MODULE.replace("0]", "1]"))
    with pytest.raises(BadModelError, match="is not the one that the run"):
        with_current_model(begun)
    changed = with_current_model(begun, allow_model_change=True)
    assert "instead of" in difference(begun, changed)
    assert changed.allow_model_change


def difference(begun: Manifest, resumed: Manifest) -> str:
    assert begun.model is not None
    assert resumed.resumed_with is not None
    return begun.model.difference(resumed.resumed_with)


def test_a_script_has_no_model_that_could_change(tmp_path: Path) -> None:
    begun = script(tmp_path)
    assert with_current_model(begun) == begun


def test_the_default_model_of_workers_elsewhere_is_not_looked_at(folder: Path) -> None:
    begun = planned(folder)
    elsewhere = replace(begun, settings=replace(begun.settings, model_url="default"))
    assert with_current_model(elsewhere, own_default=False).resumed_with is None
    assert not difference(begun, with_current_model(begun, own_default=False))


def test_a_run_that_cannot_write_its_items_leaves_its_place_free(folder: Path) -> None:
    (folder / "run" / layout.ITEMS).mkdir(parents=True)  # in the way of the object
    given = {"data": str(folder / "data"), "model": str(folder / "m.onnx")}
    with pytest.raises(StorageError):
        initialize(RunRequest.parse({**given, "results": str(folder / "run")}))
    assert not Storage(folder / "run").exists(layout.MANIFEST)


class Taken:
    """Numbers from 0, and how many of them were taken."""

    def __init__(self) -> None:
        self.number = 0

    def __iter__(self) -> Iterator[int]:
        for value in count():
            self.number = value + 1
            yield value


def first(over: Iterable[int], *limits: object) -> int:
    results = ahead(lambda value: value * value, over, *limits)  # type: ignore[arg-type]
    try:
        return [next(results) for _ in range(3)][-1]
    finally:
        results.close()


@pytest.mark.parametrize(
    ("limits", "at_the_third"),
    [
        ((1,), 4),
        ((4,), 7),
        ((9, lambda _: 10, 25), 5),
        ((9, lambda _: 10, 30), 6),
        ((9, lambda _: 100, 25), 4),
        ((3, lambda _: 10, 1000), 6),
    ],
    ids=["one", "window", "weight", "as much weight as allowed", "heavy", "window before weight"],
)
def test_results_are_computed_ahead_in_order(limits: tuple[object, ...], at_the_third: int) -> None:
    """As many as the window holds and the weight allows, and one that is waited for."""
    taken = Taken()
    assert first(taken, *limits) == 4
    assert taken.number == at_the_third


def test_all_of_what_was_computed_is_given_out() -> None:
    assert list(ahead(lambda value: -value, range(20), 7)) == [-value for value in range(20)]
