"""JSON that is nested too deeply, wherever it comes from, is a sentence."""

from pathlib import Path

import pytest
import yaml

from perseid.engines.attached import AttachedRun
from perseid.engines.block import done_since
from perseid.engines.engine_names import engine_of_run
from perseid.errors import BadInputError, BadModelError, PerseidError
from perseid.jsontext import parse_json
from perseid.measure.sources.exports import yaml_values
from perseid.model.python_source import find_source
from perseid.model.signature import ModelSignature
from perseid.pipeline import layout
from perseid.pipeline.items import WorkItem
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.run_settings import RunSettings
from perseid.pipeline.run_state import last_report, last_summary
from perseid.storage import Storage
from perseid.survey.kinds import SURVEY_FILE, read_label_names

DEEP = "[" * 100_000


def test_what_is_wrong_with_json_is_a_value_error():
    for text in (DEEP, b"\xff\xfe", "{", '{"a":' * 100_000):
        with pytest.raises(ValueError, match=r"."):
            parse_json(text)


@pytest.mark.parametrize("what", ["signature", "item", "manifest"])
def test_metadata_that_is_nested_deeply(what: str):
    store = Storage("memory://deep")
    store.put(layout.MANIFEST, DEEP.encode())
    readers = {
        "signature": lambda: ModelSignature.from_json(DEEP),
        "item": lambda: WorkItem.from_json(DEEP),
        "manifest": lambda: Manifest.load(store),
    }
    with pytest.raises(PerseidError):
        readers[what]()


@pytest.mark.parametrize(
    "key",
    [layout.DRIVER, layout.ENGINE, layout.SUMMARY, layout.record(0), layout.MANIFEST, SURVEY_FILE],
)
def test_objects_of_a_run_that_are_nested_deeply(key: str, tmp_path: Path):
    store = Storage(str(tmp_path))
    store.put(key, DEEP.encode())
    assert engine_of_run(store).name == "local"
    assert last_report(store) is None
    assert last_summary(store) is None
    manifest = Manifest("run", 0.0, "", str(tmp_path), "", (), (0,), RunSettings(), {})
    assert not done_since(manifest, 0, 0)
    watched = AttachedRun(manifest)
    watched.poll()
    assert not watched.seen
    assert read_label_names(store.location) == {}


@pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])
def test_yaml_that_is_nested_deeply(monkeypatch: pytest.MonkeyPatch, loader: str):
    if loader == "SafeLoader":  # as where PyYAML was built without its C parser
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    with pytest.raises(BadInputError, match=r"log.yaml is not YAML"):
        yaml_values("events: " + DEEP, "log.yaml")


@pytest.mark.parametrize(
    "line",
    ["x = " + "(" * 100_000, "x = " + "-" * 100_000 + "1", "x = " + "1+" * 100_000 + "1"],
    ids=["brackets", "signs", "sum"],
)
def test_a_models_source_that_is_nested_deeply(tmp_path: Path, line: str):
    (tmp_path / "deep.py").write_text(f"{line}\nclass M:\n    pass\n")
    with pytest.raises(BadModelError, match=r"is not a Python source: .*nested"):
        find_source("python:deep:M", str(tmp_path))
