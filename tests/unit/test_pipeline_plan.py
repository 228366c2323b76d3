"""What a plan says of its request: quick tests of each decision, without a run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_survey

from perseid.errors import BadInputError, StorageError
from perseid.pipeline import layout
from perseid.pipeline.initialize import initialize, plan
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.rank_outputs import ahead
from perseid.pipeline.request import RunRequest
from perseid.storage import Storage
from perseid.survey.kinds import KINDS


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
    return plan(RunRequest.parse({**keys, **more}))


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
    assert planned(folder).settings.columns is None
    named = planned(folder, columns={"object_id": "object_id"}).settings.columns
    assert named == {"object_id": ("object_id",)}


def test_images_that_the_model_cannot_take_are_refused(folder: Path) -> None:
    tiny_model(folder / "m.onnx", side=16)
    with pytest.raises(BadInputError, match="16"):
        planned(folder)


def test_partitions_that_differ_in_size_are_spread_by_number(folder: Path) -> None:
    """Only those of HATS, whose pixels are uneven by their nature, are spread by their rows."""
    assert planned(folder, world_size=2).assignment == (2, 1)


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
