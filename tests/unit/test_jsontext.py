"""JSON that is nested too deeply, wherever it comes from, is a sentence."""

import pytest

from perseid.errors import PerseidError
from perseid.jsontext import parse_json
from perseid.model.signature import ModelSignature
from perseid.pipeline import layout
from perseid.pipeline.items import WorkItem
from perseid.pipeline.manifest import Manifest
from perseid.storage import Storage

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
