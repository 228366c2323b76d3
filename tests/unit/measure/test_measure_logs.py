"""Invocations out of whole logs: interleaved, cut, timed out."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from perseid.measure.sources.log_files import read_log, timestamp


def test_the_published_log_has_nine_invocations_of_eight_result_paths(cai: Path) -> None:
    found = read_log((cai / "log_example.txt").read_text())
    assert [(i.event.rank, str(i.event.world_size), i.event.result_path) for i in found] == [
        ("18", "110", "result-partition-75MB/8GB/2"),
        ("9", "110", "result-partition-75MB/8GB/3"),
        ("0", "110", "result-partition-75MB/8GB/2"),
        ("1", "137", "result-partition-75MB/10GB/1"),
        ("14", "137", "result-partition-75MB/10GB/2"),
        ("0", "137", "result-partition-75MB/10GB/3"),
        ("23", "173", "result-partition-75MB/total/1"),
        ("0", "173", "result-partition-75MB/total/2"),
        ("0", "173", "result-partition-75MB/total/3"),
    ]
    first = found[0]
    assert first.started == datetime(2024, 11, 17, 2, 40, 44, 168000, UTC).timestamp()
    assert round(first.ended - first.started, 3) == 40.244
    assert not any(i.failed for i in found)


def test_interleaved_streams_are_put_together_by_request_id() -> None:
    text = """\
2026-01-01T00:00:00.000Z START RequestId: a Version: $LATEST
2026-01-01T00:00:00.100Z START RequestId: b Version: $LATEST
[INFO]\t2026-01-01T00:00:00.200Z\tb\treceived: {'RANK': '1', 'RESULT_PATH': 'x'}
[INFO]\t2026-01-01T00:00:00.300Z\ta\treceived: {"RANK": "0", "RESULT_PATH": "x"}
2026-01-01T00:00:02.000Z END RequestId: b
2026-01-01T00:00:02.000Z REPORT RequestId: b\tDuration: 1900.00 ms\tBilled Duration: 1900 ms\t\
Memory Size: 1769 MB\tMax Memory Used: 200 MB\t
2026-01-01T00:00:03.000Z a Task timed out after 3.00 seconds
2026-01-01T00:00:03.000Z END RequestId: a
2026-01-01T00:00:03.500Z START RequestId: c Version: $LATEST
"""
    a, b, c = read_log(text)
    assert (a.event.rank, b.event.rank, c.event.known) == ("0", "1", False)
    assert (a.failed, b.failed, c.failed) == (True, False, False)
    assert (a.report, b.seconds, c.report) == (None, 1.9, None)
    assert round(b.ended - b.started, 3) == 1.9


def test_an_event_without_an_owner_is_given_to_nobody() -> None:
    text = "START RequestId: a\nSTART RequestId: b\nreceived: {'RANK': '1'}\n"
    assert not any(i.event.known for i in read_log(text))


def test_times_with_and_without_a_zone() -> None:
    exact = datetime(2026, 3, 1, 10, 0, 0, 250000, UTC).timestamp()
    assert timestamp("2026-03-01T10:00:00.250Z x") == exact
    assert timestamp("2026-03-01 11:00:00.25+01:00 x") == exact
    assert timestamp("2026-03-01 10:00:00.250 x") == exact
    assert timestamp("no time") is None
    assert timestamp("2026-13-99 10:00:00") is None
