"""The reference pages name every key that a request takes and a run writes."""

import runpy
from pathlib import Path

from perseid.pipeline import tables
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.records import STAGES, RankRecord
from perseid.pipeline.request import RunRequest
from perseid.pipeline.request_keys import KEYS
from perseid.pipeline.schema import written

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def missing(page: str, names: list[str]) -> list[str]:
    text = (REFERENCE / page).read_text()
    return [name for name in names if f"`{name}`" not in text]


def test_request():
    names = [field.alias or name for name, field in RunRequest.model_fields.items()]
    assert len(names) > 25
    assert missing("request.md", names) == []


def test_the_tables_of_the_request_are_made_from_its_fields():
    made = runpy.run_path(str(REFERENCE.parents[1] / "scripts" / "request_reference.py"))
    assert list(KEYS) == list(RunRequest.model_fields)
    assert made["PAGE"].read_text() == made["page"](), "run python scripts/request_reference.py"


def test_results():
    empty = RankRecord(
        *("r", 0, 1, 1, 0, 0, (), (), "", None, 1, 1, 0, "cpu", "float32", "store", {}, ()),
        *(0.0, 0.0, 0.0, True, 0),
        s3=dict.fromkeys(("num_requests", "total_time", "avg_time", "min_time", "max_time"), 0.0),
    )
    names = [
        *empty.to_json(),
        *STAGES,
        *(field.name for field in written(Manifest)),
    ]
    names += [column.name for column in tables.CATALOGUE]
    assert missing("results.md", names) == []
