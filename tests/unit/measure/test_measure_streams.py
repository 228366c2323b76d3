"""Events of streams put together: interleaved, cold, restored, cut off; and whose they are."""

from __future__ import annotations

import json
import random
from pathlib import Path

from perseid.aws.observe.cloudwatch_logs import Tail
from perseid.aws.observe.run_archive import attempts_of, ending_of, most_at_once
from perseid.measure.sources.load import load_runs
from perseid.measure.sources.streams import LogEvent, trace
from perseid.pipeline.attempts import Attempt, Ending
from perseid.pipeline.stored import StoredRecord

REPORT = (
    "Duration: 100.00 ms\tBilled Duration: 120 ms\tMemory Size: 1769 MB\tMax Memory Used: 300 MB\t"
)


def mark(**values: object) -> str:
    return "PERSEID " + json.dumps(values)


def invocation(
    request: str,
    rank: int,
    *,
    run: str = "R",
    end: str = "done",
    report: str = "",
    head: bool = False,
) -> list[str]:
    lines = ["INIT_START Runtime Version: python:3.12"] if head else []
    lines += [f"START RequestId: {request} Version: $LATEST"]
    lines += [mark(event="start", run=run, rank=rank, attempt=1, request=request)]
    if end == "done":
        lines.append(mark(event="done", run=run, rank=rank, rows=9, seconds=0.1))
    elif end:
        lines.append(end)
    lines.append(f"END RequestId: {request}")
    return [*lines, f"REPORT RequestId: {request}\t{REPORT}{report}"]


def events(**streams: list[str]) -> list[LogEvent]:
    return [
        LogEvent(name, 1000.0 + 0.01 * n, line)
        for name, lines in streams.items()
        for n, line in enumerate(lines)
    ]


def test_interleaved_streams_in_any_order() -> None:
    given = events(
        a=[*invocation("a1", 0, head=True, report="Init Duration: 20.00 ms\t"),
           *invocation("a2", 2)],
        b=[*invocation("b1", 1, run="other"), *invocation("b2", 3)],
    )  # fmt: skip
    order = sorted(given, key=lambda e: (e.time, e.stream))
    found = [t for t in trace(order) if t.is_of("R")]
    assert sorted((t.count("rank"), t.invocation.request_id) for t in found) == [
        (0, "a1"), (2, "a2"), (3, "b2")]  # fmt: skip
    cold = next(t for t in found if t.invocation.request_id == "a1")
    assert cold.lines[0].endswith("python:3.12")
    assert cold.invocation.report.init_ms == 20
    assert trace(random.Random(1).sample(order, len(order)))[0].invocation.report is not None


def test_a_late_line_of_the_invocation_before_changes_nothing() -> None:
    """Its rank is not the next one's, and its run has no second attempt."""
    former, later = invocation("c1", 3, run="other"), invocation("c2", 0)
    late = next(line for line in former if '"done"' in line)
    former.remove(late)
    for place in (1, 2, 3):  # behind START, behind the next one's own first line, and at its end
        lines = [*former, *later[:place], late, *later[place:]]
        first, second = trace(events(c=lines))
        assert (first.count("rank"), second.count("rank")) == (3, 0)
        assert [t.invocation.request_id for t in (first, second) if t.is_of("R")] == ["c2"]
        assert [t.invocation.request_id for t in (first, second) if t.is_of("other")] == ["c1"]


def test_several_lines_in_one_event_and_restore() -> None:
    text = "\n".join(invocation("s1", 5, report="Restore Duration: 300.00 ms\t"))
    (found,) = trace([LogEvent("s", 1.0, text)])
    assert found.invocation.report.restore_ms == 300
    assert found.count("rank") == 5


def test_ways_to_end() -> None:
    given = events(
        done=invocation("1", 1),
        late=invocation("2", 2, end="2026-11-22T10:00:00Z 2 Task timed out after 60.00 seconds",
                        report="Status: timeout"),
        memory=invocation("3", 3, end="RequestId: 3 Error: Runtime exited with error",
                          report="Status: error\tError Type: Runtime.OutOfMemory"),
        exited=invocation("4", 4, end="RequestId: 4 Error: Runtime exited with error",
                          report="Status: error\tError Type: Runtime.ExitError"),
        raised=invocation("5", 5, end="[ERROR] StorageError: the disk is full\nTraceback …"),
        bad=invocation("6", 6, end=mark(event="failed", run="R", rank=6, error="BadModelError",
                                        message="no such file")),
        silent=invocation("7", 7, end=""),
        cut=invocation("8", 8)[:2],
    )  # fmt: skip
    found = {t.count("rank"): t for t in trace(given)}
    ends = {rank: ending_of(traced) for rank, traced in found.items()}
    assert {rank: ending.value for rank, (ending, _) in ends.items()} == {
        1: "done", 2: "timed out", 3: "out of memory", 4: "no result", 5: "raised",
        6: "bad input", 7: "no result", 8: "no result",
    }  # fmt: skip
    assert "the disk is full" in ends[5][1]
    assert "no such file" in ends[6][1]
    assert "1769 MB" in ends[3][1]
    assert "no REPORT" in ends[8][1]
    plain = {"run_id": "r", "rank": 7, "attempt": 1, "rows": 4, "stages": {"total": 0.5}}
    records = {7: StoredRecord.of(plain, "7.json")}
    by_rank = {a.rank: a for a in attempts_of(found.values(), 1769, records)}
    assert (by_rank[7].ending, by_rank[7].rows) == (Ending.DONE, 4)  # its record is there
    assert by_rank[1].rows == 9
    assert by_rank[1].billed_ms == 100
    assert by_rank[8].duration_ms == 0


def test_how_many_worked_at_once() -> None:
    def attempt(start: float, seconds: float) -> Attempt:
        return Attempt(0, 1, "", Ending.DONE, "", start, seconds * 1e3, 128, 0.0)

    assert most_at_once([]) == 0
    assert most_at_once([attempt(0, 5), attempt(1, 1), attempt(1.5, 4), attempt(5, 1)]) == 3


def test_a_tail_says_each_line_once_and_only_of_its_run() -> None:
    given = events(a=[*invocation("a1", 0, head=True), *invocation("a2", 1, run="other")],
                   b=invocation("b1", 2))  # fmt: skip
    tail, one = Tail("R"), Tail("R", rank=2)
    said = [pair for event in sorted(given, key=lambda e: e.time) for pair in tail.feed(event)]
    lines = [line.split(" ", 1)[1] for rank, line in said if rank == 0]
    assert lines == invocation("a1", 0, head=True)
    assert [rank for rank, _ in said].count(2) == len(invocation("b1", 2))
    assert {rank for event in given for rank, _ in one.feed(event)} == {2}


def test_a_file_of_filter_log_events(tmp_path: Path) -> None:
    plain = {"events": [
        {"logStreamName": e.stream, "timestamp": int(e.time * 1e3), "message": e.text}
        for e in events(a=invocation("a1", 0), b=invocation("b1", 1))
    ]}  # fmt: skip
    (tmp_path / "events.json").write_text(json.dumps(plain))
    (run,) = load_runs([str(tmp_path / "events.json")])
    assert len(run.reports) == 2
    assert run.durations == (0.1, 0.1)
