"""Storage against a real S3 server."""
import time

import pytest
from perseid.storage import Storage

pytestmark = pytest.mark.s3


def test_round_trip(s3):
    store = Storage(s3.bucket())
    store.put("a/1.pt", b"abc")
    assert store.get("a/1.pt") == b"abc"
    assert [i.key for i in store.list("a")] == ["a/1.pt"]
