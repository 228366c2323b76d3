"""What a script writes into its record is its own business: any value under any key of ours."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path

import pytest
from scripts import begin_script
from tiny import tiny_survey

from perseid.compat.scripts.run_script import ScriptMeasurement, leave_records
from perseid.engines.driver import finished, missing_ranks
from perseid.errors import RunIncompleteError, WorkerFailedError
from perseid.measure.present.report import render_report
from perseid.measure.present.run_tables import tables
from perseid.measure.prices import Prices
from perseid.measure.sources.load import load_runs
from perseid.pipeline import layout
from perseid.pipeline.initialize import Initialized
from perseid.pipeline.records import RankRecord
from perseid.pipeline.request import RunRequest
from perseid.pipeline.summarize import summarize
from perseid.pipeline.timeline import Timeline
from perseid.storage import Storage

SOUND = {
    "total_cpu_time (seconds)": 2.0, "total_cpu_memory (MB)": 12.5,
    "execution_time (seconds/batch)": 1.0, "num_batches": 2, "batch_size": 4, "device": "cpu",
    "throughput_bps": 800.0, "sample_persec": 5.0, "result_path": "results/1",
    "data_path": "data/1.pt",
}  # fmt: skip
THEIRS = [*SOUND, "s3_num_requests", "s3_total_time"]
"""Keys of the existing system: numbers in them are the script's word."""
OURS = sorted({field.name for field in fields(RankRecord)} - set(SOUND))
"""Keys that mean something to us, and may mean something else to a script."""
DEEP = json.loads("[" * 40 + "]" * 40)
VALUES = {
    "null": None, "true": True, "negative": -1, "fraction": 0.5, "many": 7, "huge": 10**400,
    "no number": math.nan, "infinite": math.inf, "text": "seven", "markup": "<script>x</script>",
    "surrogate": "\ud800", "empty list": [], "numbers": [1, 2], "spans": [["<b>x</b>", 1.0, 2.0]],
    "half a span": [["inference", 5.0]], "empty object": {}, "texts": {"<i>a</i>": "<u>b</u>"},
    "objects": {"0": {"x": 1}}, "objects in a list": [{"key": 5}], "deep": DEEP,
}  # fmt: skip


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Initialized:
    """A run of two ranks with data and one without, the last two of them done."""
    root = tmp_path_factory.mktemp("records")
    (root / "bucket" / "code").mkdir(parents=True)
    (root / "bucket" / "code" / "run.py").write_text("pass")
    tiny_survey(root / "bucket" / "data", rows=20, per_partition=10)
    given = {
        "bucket": "bucket", "data_bucket": "bucket", "data_prefix": "data", "world_size": 3,
        "S3_object_name": "code", "script": "run.py", "result_path": "results/1",
        "bucket_root": str(root),
    }  # fmt: skip
    one = begin_script(RunRequest.parse(given))
    leave(one, 1, json.dumps(SOUND))
    leave_records(one.items[2], store(one), measured())
    return one


def store(begun: Initialized) -> Storage:
    return Storage(begun.manifest.results_url)


def measured() -> ScriptMeasurement:
    clock = Timeline()
    with clock.stage("inference"):
        pass
    return ScriptMeasurement(clock, attempt=1, cold=True, init_seconds=0.1)


def leave(begun: Initialized, rank: int, text: str) -> RankRecord:
    store(begun).put(layout.record(rank), text.encode())
    return leave_records(begun.items[rank], store(begun), measured())


def read_all(begun: Initialized) -> tuple[dict, list, str]:
    """Summary, combined records and the table, as a user gets them."""
    summary = summarize(store(begun))
    [run] = load_runs([begun.manifest.results_url])
    text = "".join(table.render("text") for table in tables([run], Prices()))
    return summary, json.loads(store(begun).get(layout.COMBINED)), text


@pytest.mark.parametrize("value", VALUES)
def test_any_value_under_any_key(begun: Initialized, value: str):
    plain = VALUES[value]
    written = json.loads(json.dumps(plain))
    expected = None if isinstance(plain, float) and not math.isfinite(plain) else written
    for key in (*THEIRS, *OURS):
        leave(begun, 0, json.dumps({**SOUND, key: plain}))
        summary, combined, table = read_all(begun)
        assert summary["status"] == "complete", key
        assert combined[0][key] == expected, key  # the script's own word stays
        assert len(combined) == 2  # and a surplus rank leaves none
        assert "3/3" in table, key
        if key in OURS:
            assert summary["rows"]["received"] == 20, key
            assert summary["workers"]["retried"] == []
            assert summary["transport"]["ranks"] == {"none": 3}
            assert summary["workers"]["stage_seconds"]["init"]["max"] == 0.1


@pytest.mark.parametrize("value", VALUES)
def test_no_markup_of_a_script_reaches_the_report(begun: Initialized, value: str):
    leave(begun, 0, json.dumps({**SOUND, **dict.fromkeys((*OURS, "device"), VALUES[value])}))
    summarize(store(begun))
    page = render_report(load_runs([begun.manifest.results_url])[0])
    assert not [tag for tag in ("<script", "<b>x", "<i>a", "<u>b") if tag in page]
    page.encode()


@pytest.mark.parametrize(
    "text", ["[1]", "null", "{", '{"a": ' * 100_000, '{"a":' * 65 + "1" + "}" * 65, "\xff"]
)
def test_what_is_no_result_is_refused(begun: Initialized, text: str):
    with pytest.raises(WorkerFailedError, match=r"rank 0: .*0\.json, which the script wrote, is"):
        leave(begun, 0, text)


def test_another_ranks_script_that_writes_over_our_own_record(begun: Initialized):
    """It can write to the bucket: then that rank is missing, by name, and nothing crashes."""
    leave(begun, 0, json.dumps(SOUND))
    own = json.loads(store(begun).get(layout.script_record(0)))
    for key in ("rank", "rows", "stages", "timeline", "routes", "attempt", "partitions"):
        text = json.dumps({**own, key: "<script>"}).encode()
        store(begun).put(layout.script_record(0), text)
        with pytest.raises(RunIncompleteError, match=f"not a rank's record: '{key}' is wrong"):
            summarize(store(begun))
        assert missing_ranks(store(begun), begun.manifest) == [0]


def test_a_result_that_is_removed_afterwards_is_missed(begun: Initialized):
    leave(begun, 0, json.dumps(SOUND))
    summarize(store(begun))
    assert finished(store(begun), begun.manifest)
    store(begun).delete([layout.record(0)])
    assert finished(store(begun), begun.manifest) is None
    assert missing_ranks(store(begun), begun.manifest) == [0]


@pytest.mark.parametrize(("rows", "batch"), [(5113, 512), (1278, 512), (3, 512), (512, 512)])
def test_time_a_batch_counts_a_part_of_a_batch_as_a_part(rows: int, batch: int):
    """As in every published record: the total by rows / batch_size."""
    published = Path(__file__).parents[1] / "data/cai/result-partition-100MB/1GB/3"
    [first, *_] = json.loads((published / "combined_data.json").read_text())
    whole = first["total_cpu_time (seconds)"] / first["execution_time (seconds/batch)"]
    assert whole == pytest.approx(5113 / 512)
    seconds = 20.0
    plain = dict.fromkeys((f.name for f in fields(RankRecord)), 0) | {"s3": {}}
    plain |= {"rows": rows, "batch_size": batch, "num_batches": -(-rows // batch)}
    record = RankRecord(**plain | {"model_seconds": seconds}).to_json()
    assert record["execution_time (seconds/batch)"] == pytest.approx(seconds / (rows / batch))
