"""REPORT lines: the published sample against figures worked out by hand, and every odd form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseid.measure.report_line import (
    Report,
    find_reports,
    format_report,
)

TABBED = (
    "REPORT RequestId: adbca9aa-fe3a-4fd6-b4e7-5e7b46ae71f1\tDuration: 40243.33 ms\t"
    "Billed Duration: 40908 ms\tMemory Size: 10240 MB\tMax Memory Used: 5948 MB\t"
    "Init Duration: 663.81 ms\t"
)


def parse_report(line: str) -> Report | None:
    """The REPORT in one line, or None if the line has no whole one."""
    return next(find_reports(line), None)


def test_the_published_log_gives_the_figures_read_off_by_hand(cai: Path) -> None:
    reports = list(find_reports((cai / "log_example.txt").read_text()))
    assert [r.duration_ms for r in reports] == [
        40243.33, 33676.81, 33809.85, 33888.02, 33698.68, 34812.80, 33278.25, 32418.83, 33379.71,
    ]  # fmt: skip
    assert [r.billed_ms for r in reports] == [
        40908, 33677, 33810, 33889, 33699, 34813, 33279, 32419, 33380,
    ]  # fmt: skip
    assert {r.memory_mb for r in reports} == {10240}
    assert [r.max_memory_mb for r in reports] == [5948, 5948, *[5998] * 7]
    assert [r.cold for r in reports] == [True, *[False] * 8]
    assert reports[0].init_ms == 663.81


def test_tabs_and_spaces_are_the_same_line() -> None:
    spaced = "2024-11-17 02:41:24.412000+00:00 - " + TABBED.replace("\t", "       ")
    assert parse_report(spaced) == parse_report(TABBED)
    assert format_report(parse_report(spaced)) == TABBED


def test_the_billed_restore_is_part_of_the_billed_duration() -> None:
    line = (
        "REPORT RequestId: b771fecc Duration: 306.34 ms Billed Duration: 610 ms Memory Size: "
        "3009 MB Max Memory Used: 155 MB Restore Duration: 511.25 ms Billed Restore Duration: "
        "303 ms XRAY TraceId: 1-66d978e5 SegmentId: 29c3 Sampled: true"
    )
    report = parse_report(line)
    assert report == Report("b771fecc", 306.34, 610, 3009, 155, None, 511.25, 303)
    assert report.cold
    assert report.billed_ms == -(-(report.duration_ms + report.billed_restore_ms) // 1)


@pytest.mark.parametrize(
    ("ending", "status", "error"),
    [
        ("\tStatus: timeout", "timeout", None),
        ("\tStatus: error\tError Type: Runtime.OutOfMemory\t", "error", "Runtime.OutOfMemory"),
        ("\tStatus: error\tError Type: Runtime.ExitError", "error", "Runtime.ExitError"),
    ],
)
def test_failed_invocations(ending: str, status: str, error: str | None) -> None:
    report = parse_report(TABBED.rstrip() + ending)
    assert (report.status, report.error_type, report.succeeded) == (status, error, False)
    assert report.init_ms == 663.81


def test_what_is_no_whole_report_is_none() -> None:
    assert (
        parse_report("INIT_REPORT Init Duration: 10008.52 ms\tPhase: init\tStatus: timeout") is None
    )
    assert parse_report("END RequestId: adbca9aa") is None
    assert parse_report(TABBED.split("\tMemory Size")[0]) is None


def test_two_reports_in_one_line_do_not_mix() -> None:
    second = TABBED.replace("40243.33", "12.50").replace("\tInit Duration: 663.81 ms\t", "")
    found = list(find_reports(TABBED + second))
    assert [r.duration_ms for r in found] == [40243.33, 12.5]
    assert [r.init_ms for r in found] == [663.81, None]


def test_functions_that_log_in_json() -> None:
    event = {
        "time": "2026-01-01T00:00:00Z",
        "type": "platform.report",
        "record": {
            "requestId": "r-1",
            "status": "timeout",
            "metrics": {
                "durationMs": 3000.0, "billedDurationMs": 3000, "memorySizeMB": 128,
                "maxMemoryUsedMB": 36, "initDurationMs": 101.5,
            },
        },
    }  # fmt: skip
    assert parse_report(json.dumps(event)) == Report(
        "r-1", 3000, 3000, 128, 36, 101.5, status="timeout"
    )
    assert parse_report(json.dumps(event).replace("durationMs", "x")) is None


NUMBER = st.floats(0.01, 9e5).map(lambda value: round(value, 2))


@given(
    st.builds(
        Report,
        request_id=st.uuids().map(str),
        duration_ms=NUMBER,
        billed_ms=st.integers(1, 900_000).map(float),
        memory_mb=st.integers(128, 10_240).map(float),
        max_memory_mb=st.integers(1, 10_240).map(float),
        init_ms=st.none() | NUMBER,
        restore_ms=st.none() | NUMBER,
        billed_restore_ms=st.none() | st.integers(0, 9999).map(float),
        status=st.sampled_from(["success", "timeout", "error"]),
        error_type=st.none() | st.just("Runtime.Unknown"),
    )
)
def test_what_is_written_is_read_back(report: Report) -> None:
    assert parse_report(format_report(report)) == report
    assert parse_report(format_report(report).replace("\t", "   ")) == report
