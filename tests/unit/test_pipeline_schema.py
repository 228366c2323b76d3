"""Versions of the types that travel: who reads which, and what is said where it does not fit."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from itertools import takewhile
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_survey

from perseid import __version__
from perseid.api.outcome import outcome_lines
from perseid.aws.stack_resources import StackResources
from perseid.cli import main
from perseid.errors import BadInputError
from perseid.pipeline import layout
from perseid.pipeline.initialize import initialize
from perseid.pipeline.items import WorkItem
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.request import RunRequest
from perseid.pipeline.run_settings import ItemOptions
from perseid.pipeline.run_state import published
from perseid.pipeline.schema import SCHEMA, Within, minor
from perseid.storage import Storage

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "runs"
NEWER = "9.1.0"


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    tiny_survey(tmp_path / "data", rows=10, per_partition=5)
    keys = {"data": str(tmp_path / "data"), "results": str(tmp_path / "run")}
    keys["model"] = str(tiny_model(tmp_path / "m.onnx"))
    return initialize(RunRequest.parse(keys), run_id="one").manifest


def test_manifest_and_items_name_their_schema(manifest: Manifest, tmp_path: Path):
    written = json.loads((tmp_path / "run" / "manifest.json").read_text())
    items = json.loads((tmp_path / "run" / "items.json").read_text())
    assert written["schema"] == SCHEMA
    assert {item["schema"] for item in items} == {SCHEMA}
    assert {item["version"] for item in items} == {__version__}
    assert [WorkItem.from_json(item) for item in items] == manifest.items()
    assert Manifest.load(Storage(tmp_path / "run")) == manifest


def test_without_a_schema_it_is_the_first(manifest: Manifest):
    item, whole = manifest.item(0).to_json(), manifest.to_json()
    for key in ("schema", "version", "model", "model_change", "missing"):
        item.pop(key)
    for key in ("schema", "model"):
        whole.pop(key)
    assert (WorkItem.from_json(item).schema, WorkItem.from_json(item).version) == (1, "")
    assert Manifest.from_json(whole).schema == 1


def test_a_newer_item_is_refused_with_the_remedy(manifest: Manifest):
    """Whatever further keys it has: its schema is looked at before them."""
    plain = manifest.item(0).to_json() | {"schema": SCHEMA + 1, "version": NEWER, "colour": 1}
    with pytest.raises(BadInputError) as caught:
        WorkItem.from_json(plain)
    for word in (NEWER, __version__, f"schema {SCHEMA + 1}", "perseid aws deploy"):
        assert word in str(caught.value)
    assert "colour" not in str(caught.value)


def test_a_worker_of_another_minor_version_refuses_its_item(manifest: Manifest):
    plain = manifest.item(0).to_json()
    same = ".".join([minor(__version__), "99"])
    assert WorkItem.from_json(plain | {"version": same}).version == same
    with pytest.raises(BadInputError, match=r"is of perseid 9\.1\.0, but this is perseid"):
        WorkItem.from_json(plain | {"version": NEWER})


@pytest.mark.parametrize("schema", ["two", 0, -1, 1.5, True, [2]])
def test_a_schema_that_is_none(manifest: Manifest, schema: object):
    with pytest.raises(BadInputError, match="which is not a whole number from 1"):
        Manifest.from_json(manifest.to_json() | {"schema": schema})


@pytest.mark.parametrize("command", ["resume", "status", "report"])
def test_a_newer_run_is_one_sentence_for_every_command(
    manifest: Manifest, tmp_path: Path, command: str, capsys
):
    path = tmp_path / "run" / "manifest.json"
    plain = json.loads(path.read_text())
    path.write_text(json.dumps(plain | {"schema": 99, "version": NEWER, "colour": "blue"}))
    assert main([command, str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.strip()
    assert "this run was written by perseid 9.1.0 (schema 99)" in said
    assert "pip install --upgrade perseid" in said
    assert "\n" not in said


def test_a_stack_of_another_version_is_refused_before_anything_starts():
    outputs = {
        "StateMachineArn": "arn", "Bucket": "b", "WorkerFunction": "w", "InitializeFunction": "i",
        "SummarizeFunction": "s", "WorkerMemory": "1769", "Version": __version__,
    }  # fmt: skip
    StackResources.of_outputs(outputs, "perseid").check_version()
    with pytest.raises(BadInputError, match=r"the stack is of perseid 9\.1\.0.*perseid aws deploy"):
        StackResources.of_outputs(outputs | {"Version": NEWER}, "perseid").check_version()
    del outputs["Version"]
    with pytest.raises(BadInputError, match=r"before 0\.2.*perseid aws deploy"):
        StackResources.of_outputs(outputs, "perseid").check_version()


def test_a_step_that_goes_on_with_a_run_of_another_version_refuses_it(
    manifest: Manifest, tmp_path: Path
):
    """On AWS a client claims the place and a function begins the run."""
    other = dataclasses.replace(manifest, version=NEWER)
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(other.to_json()))
    with pytest.raises(BadInputError, match="the client that began this run is of perseid 9"):
        initialize(RunRequest.parse(manifest.request), run_id="one")


ODD = (None, True, -1, 1.5, "text", [], ["text"], {}, {"text": 1}, [[1]])
"""Values that no key takes all of."""


@pytest.mark.parametrize("kind", [Manifest, WorkItem])
def test_values_of_another_type_are_a_sentence(manifest: Manifest, kind: type):
    """Every key, the nested ones too, with every odd value: read, or refused in a sentence."""
    whole = manifest.to_json() if kind is Manifest else manifest.item(0).to_json()
    refused: list[str] = []
    for path in paths(whole):
        for value in ODD:
            try:
                kind.from_json(changed(whole, path, value))
            except BadInputError as error:
                refused.append(str(error))
    assert len(refused) > 100
    assert [said for said in refused if "\n" in said] == []


def numbers_of(kind: type) -> list[tuple[str, Within | None]]:
    """Names of a type's numbers, those of the types inside it too, with their bounds."""
    found: list[tuple[str, Within | None]] = []

    def walk(hint: object, name: str, bounds: Within | None = None) -> None:
        if typing.get_origin(hint) is typing.Annotated:
            hint, bounds = typing.get_args(hint)
        if hint in (int, float):
            found.append((name, bounds))
        elif dataclasses.is_dataclass(hint):
            for inner, one in typing.get_type_hints(hint, include_extras=True).items():
                walk(one, inner)
        else:
            for one in typing.get_args(hint):
                walk(one, name)

    walk(kind, "")
    return found


def test_every_number_of_an_item_and_a_manifest_has_bounds():
    found = numbers_of(Manifest) + numbers_of(WorkItem)
    assert len(found) > 40
    free = {name for name, bounds in found if bounds is None}
    # Any number can mean a missing one; a schema and a shape are checked by themselves.
    assert free == {"missing", "schema", "shape"}


@pytest.mark.parametrize("kind", [Manifest, WorkItem])
def test_numbers_outside_their_range_are_a_sentence(manifest: Manifest, kind: type):
    options = ItemOptions(
        memory_mb=1, timeout=1.0, retries=1, threads=1, workers=1, tolerated_failures=1.0,
        meeting_seconds=1.0, ends=1.0, death_timeout=1.0, link_timeout=1.0, silence_timeout=1.0,
        attempts_before=1,
    )  # fmt: skip
    settings = dataclasses.replace(manifest.settings, options=options, intervals={"0.68": 1.0})
    partitions = tuple(dataclasses.replace(ref, rows=5) for ref in manifest.partitions)
    manifest = dataclasses.replace(manifest, settings=settings, partitions=partitions)
    whole = manifest.to_json() if kind is Manifest else manifest.item(0).to_json()
    bounds = {name: within for name, within in numbers_of(kind) if within is not None}
    tried: set[str] = set()
    for path in paths(whole):
        name = next(key for key in reversed(path) if isinstance(key, str))
        name = "intervals" if "intervals" in path else name
        if name in bounds and isinstance(value_at(whole, path), (int, float)):
            tried.add(name)
            low, high = bounds[name].low, bounds[name].high
            for value in (low - 1, high * 2 + 1, 10**400, math.inf, -math.inf, math.nan):
                with pytest.raises(BadInputError) as caught:
                    kind.from_json(changed(whole, path, value))
                assert "\n" not in str(caught.value)
    assert tried == set(bounds)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        *((Manifest, ("assignment",), v) for v in ([-1, 3], [], [1], [1, 2], [0, 0], [2, 1])),
        (WorkItem, ("rank",), 2),
        *((WorkItem, (name,), "other") for name in ("precision", "anomaly", "transport", "layout")),
        *((Manifest, ("settings", name), "other") for name in ("precision", "fit", "transport")),
        *((kind, (name,), "\ud800") for kind in (Manifest, WorkItem)
          for name in ("run_id", "data_url", "results_url")),
    ],
    ids=lambda value: ascii(getattr(value, "__name__", value)),
)  # fmt: skip
def test_what_cannot_be_is_a_sentence(manifest: Manifest, kind: type, path, value):
    """Partitions that no rank has or that are there twice, and text that nobody can write."""
    whole = manifest.to_json() if kind is Manifest else manifest.item(0).to_json()
    with pytest.raises(BadInputError, match=r"cannot be read: '") as caught:
        kind.from_json(changed(whole, path, value))
    str(caught.value).encode()


def test_a_summary_with_what_cannot_be_is_as_none():
    """The status of a run whose summary has any value in any place: read, or not published."""
    store = Storage("memory://odd-summary")
    for key in (layout.MANIFEST, layout.SUMMARY, layout.ENGINE):
        store.put(key, GOLDEN / "complete" / key)
    manifest, whole = Manifest.load(store), json.loads(store.get(layout.SUMMARY))
    refused = 0
    firsts = [path for path in paths(whole) if not any(isinstance(n, int) and n for n in path)]
    for path in firsts:
        for value in (None, -1, 1e308, 10**400, [[1]]):
            store.put(layout.SUMMARY, json.dumps(changed(whole, path, value)).encode())
            found = published(store, manifest)
            refused += found is None
            if found is not None:
                # Up to the table, which is made from the records.
                "\n".join(takewhile(bool, outcome_lines(found, store)))
    assert refused > 200


def value_at(whole: object, path: tuple[object, ...]) -> object:
    for name in path:
        whole = whole[name]
    return whole


def changed(whole: dict[str, object], path: tuple[object, ...], value: object):
    """A copy of a JSON object with another value in one place."""
    plain = json.loads(json.dumps(whole))
    value_at(plain, path[:-1])[path[-1]] = value
    return plain


def paths(value: object, above: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """Where each value of a JSON object stands."""
    found = [above] if above else []
    if isinstance(value, dict):
        return found + [p for name, item in value.items() for p in paths(item, (*above, name))]
    if isinstance(value, list):
        return found + [p for i, item in enumerate(value) for p in paths(item, (*above, i))]
    return found


def test_an_unknown_or_a_missing_key_is_named(manifest: Manifest):
    plain = manifest.item(0).to_json()
    with pytest.raises(BadInputError, match="the key 'colour' is not known"):
        WorkItem.from_json(plain | {"colour": 1})
    with pytest.raises(BadInputError, match="`options` of this work item cannot be read: the key"):
        WorkItem.from_json(plain | {"options": {"colour": 1}})
    del plain["rank"]
    with pytest.raises(BadInputError, match="it has no 'rank'"):
        WorkItem.from_json(plain)
