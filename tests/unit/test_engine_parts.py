"""Channel, logs, memory, owner and progress of the local engine."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys

import pytest

from perseid.api.progress_display import RunProgress, Tally, duration
from perseid.engines import memory
from perseid.engines.local.rank_logs import RankLogs
from perseid.engines.local.slots import classify_exit
from perseid.engines.log_lines import (
    attempts_in,
    end_lines,
    standing_line,
    start_lines,
    state_in,
)
from perseid.engines.message_stream import MessageStream
from perseid.engines.owner import Owner, refuse_if_owned
from perseid.engines.run_plan import makespan
from perseid.engines.worker_messages import (
    Assignment,
    AttemptDone,
    AttemptFailed,
    MergeAssignment,
    MergeDone,
    Progressed,
    RankNote,
    Ready,
    WorkerSetup,
    from_text,
    to_text,
)
from perseid.errors import RunError
from perseid.measure.report_line import find_reports
from perseid.pipeline import layout
from perseid.pipeline.attempts import Attempt, Ending
from perseid.pipeline.events import RankEvent, RankState, StageEvent
from perseid.pipeline.items import PartitionRef, WorkItem
from perseid.pipeline.join_settings import JoinSettings
from perseid.storage import Storage


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with MessageStream(ours) as one, MessageStream(theirs) as other:
        yield one, other


def test_messages_arrive_whole_and_in_order(pair):
    one, other = pair
    big = AttemptFailed("x" * 100_000)
    one.send(Progressed(1))
    one.send(big)
    assert other.receive(1.0) == Progressed(1)
    assert other.receive(1.0) == big


def test_a_message_in_pieces_is_one_message(pair):
    one, other = pair
    text = to_text(Progressed(3)).encode() + b"\n"
    for byte in text[:-1]:
        one._socket.send(bytes([byte]))
        assert other.drain() == []
    one._socket.send(text[-1:] + text)
    assert other.drain() == [Progressed(3), Progressed(3)]
    assert not other.ended


def test_the_end_of_the_stream_is_seen_after_the_last_message(pair):
    one, other = pair
    one.send(Ready())
    one.close()
    assert other.drain() == [Ready()]
    assert other.ended
    assert other.receive(1.0) is None


ITEM = WorkItem("run", 2, 5, "/results", "/data", (PartitionRef("1.pt", 9, "e"),))


@pytest.mark.parametrize(
    "message",
    [
        WorkerSetup(ITEM, 2, 60.0, 1.5),
        Assignment(ITEM, 3),
        MergeAssignment(JoinSettings("127.0.0.1:10000", "ab" * 32, "direct"), (ITEM, ITEM)),
        Ready(),
        Progressed(512),
        AttemptDone(512, 1.25, 181.5),
        AttemptFailed("it broke", no_result=True, clean=True),
        MergeDone((RankNote(0, ""), RankNote(1, "late"))),
    ],
    ids=lambda message: type(message).__name__,
)
def test_every_message_arrives_as_it_was_sent(pair, message):
    one, other = pair
    one.send(message)
    assert other.receive(1.0) == message
    assert from_text(to_text(message)) == message


def test_silence_ends_in_a_timeout(pair):
    _, other = pair
    with pytest.raises(TimeoutError):
        other.receive(0.01)


@pytest.mark.parametrize(
    "line",
    [
        b"{oops",
        b"[1]",
        b"\xff",
        b"{}",
        b'{"Ready": {"x": 1}}',
        b'{"Stranger": {}}',
        b'{"Ready": 1}',
    ],
)
def test_what_is_no_message_is_named(pair, line):
    one, other = pair
    one._socket.send(line + b"\n")
    with pytest.raises(RunError, match="sent something that is not a message"):
        other.drain()


def attempt_of(ending, message="", **changes):
    values = {"duration_ms": 12.345, "memory_mb": 1769, "max_memory_mb": 181.4} | changes
    return Attempt(4, 1, "id-1", ending, message, 0.0, **values)


def test_a_log_has_the_lines_of_lambda():
    attempt = attempt_of(Ending.DONE, init_ms=400.2)
    log = start_lines("id-1", cold=True, output="loading\n") + end_lines(attempt, "hello\n")
    lines = log.splitlines()
    assert lines[0].startswith("INIT_START Runtime Version: python:3.")
    assert lines[1:5] == [
        "loading",
        "START RequestId: id-1 Version: $LATEST",
        "hello",
        "END RequestId: id-1",
    ]
    assert lines[5] == (
        "REPORT RequestId: id-1\tDuration: 12.35 ms\tBilled Duration: 413 ms\t"
        "Memory Size: 1769 MB\tMax Memory Used: 181 MB\tInit Duration: 400.20 ms\t"
    )
    assert attempts_in(log) == 1


@pytest.mark.parametrize(
    ("endings", "state", "attempt", "message"),
    [
        ((), None, 0, ""),
        ((None,), RankState.RUNNING, 1, ""),
        ((Ending.DONE,), RankState.RUNNING, 1, ""),  # its record is about to come
        ((Ending.RAISED,), RankState.RETRYING, 1, "it broke"),
        ((Ending.RAISED, None), RankState.RUNNING, 2, ""),
        ((Ending.RAISED, Ending.KILLED), RankState.FAILED, 2, "it broke"),
        ((Ending.TIMED_OUT,), RankState.RETRYING, 1, "Task timed out after 1.00 seconds"),
    ],
    ids=("nothing", "begun", "done", "retried", "again", "failed", "late"),
)  # fmt: skip
def test_a_log_says_where_its_rank_stands(endings, state, attempt, message):
    log = "perseid: the rank has failed\n"  # what a worker prints before its START says nothing
    for number, ending in enumerate(endings, start=1):
        log += start_lines(f"id-{number}", cold=False)
        if ending is not None:
            said = RankState.FAILED if number == 2 else RankState.RETRYING
            text = end_lines(attempt_of(ending, "it broke", duration_ms=1000.0), "hello\n")
            log += text + ("" if ending is Ending.DONE else standing_line(said))
    found = state_in(4, log)
    assert (found and (found.state, found.attempt, found.message)) == (
        state and (state, attempt, message)
    )
    if state is RankState.FAILED:  # another driver goes on with the rank
        assert state_in(4, log + standing_line(RankState.WAITING)).state is RankState.WAITING


@pytest.mark.parametrize(
    ("ending", "status", "error", "said"),
    [
        (Ending.TIMED_OUT, "timeout", None, "id-1 Task timed out after 0.01 seconds"),
        (Ending.OUT_OF_MEMORY, "error", "Runtime.OutOfMemory", "Error: it took 2000 MB"),
        (Ending.NO_RESULT, "error", "Runtime.ExitError", "Error: it took 2000 MB"),
        (Ending.KILLED, "error", "Runtime.ExitError", "Error: it took 2000 MB"),
        (Ending.RAISED, "error", "Function.Error", "Error: it took 2000 MB"),
    ],
)
def test_a_failed_attempt_says_how_in_its_log(ending, status, error, said):
    text = end_lines(attempt_of(ending, "it took 2000 MB"), "")
    [report] = find_reports(text.splitlines()[-1])
    assert (report.status, report.error_type) == (status, error)
    assert said in text
    assert not report.cold


def test_logs_grow_over_drivers_and_count_attempts(tmp_path):
    store = Storage(tmp_path)
    with RankLogs(store) as logs:
        assert logs.load({0, 1}) == {}
        logs.add(1, start_lines("a", cold=True))
        logs.add(1, end_lines(attempt_of(Ending.RAISED, "no"), "x\n"))
        logs.add(1, start_lines("b", cold=False))  # and then the driver is killed
    with RankLogs(store) as logs:
        assert logs.load({0, 1}) == {1: 2}
        logs.add(1, start_lines("c", cold=True), last=True)
    text = store.get(layout.log(1)).decode()
    assert attempts_in(text) == 3
    assert text.index("RequestId: a") < text.index("RequestId: b") < text.index("RequestId: c")


def test_a_store_that_takes_no_logs_is_said_and_not_raised(tmp_path):
    (tmp_path / "logs").write_text("a file where a folder should be")
    with RankLogs(Storage(tmp_path)) as logs:
        logs.add(0, "text")
    assert "0.log" in logs.failure


@pytest.mark.parametrize(
    ("status", "peak", "ending", "said"),
    [
        (0, 50.0, Ending.NO_RESULT, "its process exited with status 0 without a result"),
        (3, 50.0, Ending.NO_RESULT, "its process exited with status 3 without a result"),
        (None, 50.0, Ending.NO_RESULT, "its process closed its connection without a result"),
        (-9, 50.0, Ending.KILLED, "its process was killed (SIGKILL) by a user, or by a machine"),
        (-9, 950.0, Ending.OUT_OF_MEMORY, "it was killed at 950 MB of its 1000 MB"),
        (-11, 950.0, Ending.KILLED, "its process was ended by SIGSEGV"),
    ],
)
def test_how_a_process_ended_is_told_apart(status, peak, ending, said):
    found, text = classify_exit(status, peak, 1000)
    assert found is ending
    assert text.startswith(said)


def test_peak_memory_is_reset_and_grows_with_use():
    code = (
        "from perseid.engines import memory\n"
        "x = bytearray(80 * 2**20); del x\n"
        "before = memory.peak(); memory.reset_peak(); after = memory.peak()\n"
        "x = bytearray(40 * 2**20); print(before, after, memory.peak())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after, later = (float(word) for word in done.stdout.split())
    assert before > after + 60
    assert 30 < later - after < 60


def test_resident_memory_counts_children_and_is_zero_for_the_gone():
    code = "x = bytearray(50 * 2**20); print(1, flush=True); input()"
    own = memory.resident_tree(os.getpid())
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        child.stdout.readline()
        assert child.pid in memory.children(os.getpid())
        assert memory.resident(child.pid) > 50
        assert memory.resident_tree(os.getpid()) > own + 40
    finally:
        child.communicate(b"\n", timeout=10)
    assert memory.resident(child.pid) == 0.0
    assert memory.available() > 0


def test_a_run_has_one_owner_and_a_dead_owner_is_passed_over(tmp_path):
    store = Storage(tmp_path)
    code = (
        "import sys\nfrom perseid.engines.owner import Owner\n"
        "from perseid.storage import Storage\n"
        "with Owner(Storage(sys.argv[1])):\n    print(1, flush=True)\n    input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    other.stdout.readline()
    with pytest.raises(RunError, match=f"process {other.pid} has been working on"), Owner(store):
        pass
    other.kill()
    other.communicate(timeout=10)
    assert store.exists(layout.DRIVER)
    with Owner(store):
        refuse_if_owned(store)
    assert not store.exists(layout.DRIVER)


def test_a_mark_of_a_reused_process_number_is_passed_over(tmp_path):
    store = Storage(tmp_path)
    mark = {"host": socket.gethostname(), "pid": os.getppid(), "born": "another boot/1", "since": 0}
    store.put(layout.DRIVER, json.dumps(mark).encode())
    with Owner(store):
        pass


def events_of_a_run():
    yield from (RankEvent(rank, RankState.WAITING, 0) for rank in range(4))
    yield RankEvent(0, RankState.RUNNING)
    yield RankEvent(1, RankState.RUNNING)
    yield RankEvent(0, RankState.DONE, rows=100)
    yield RankEvent(1, RankState.RUNNING, rows=50)


def test_tally_counts_ranks_rows_and_time_left():
    tally = Tally()
    for second, event in enumerate(events_of_a_run()):
        tally.add(event, float(second))
    assert tally.count(RankState.DONE) == 1
    assert tally.count(RankState.WAITING) == 2
    assert tally.rows == 150
    assert tally.fraction() == pytest.approx((1 + 0.5) / 4)
    # 3 s since the first rank ran, for 37.5 %: 5 s for the rest
    assert tally.seconds_left(7.0) == pytest.approx(5.0)
    assert tally.line(7.0) == (
        "1/4 ranks done · 1 running · 2 waiting · 150 rows · 21 rows/s · about 5.0 s left"
    )


def test_rows_of_a_failed_attempt_do_not_count():
    tally = Tally()
    tally.add(RankEvent(0, RankState.RUNNING, rows=70), 0.0)
    tally.add(RankEvent(0, RankState.RETRYING, message="killed"), 1.0)
    assert tally.rows == 0
    assert tally.rate() == 0.0


def test_progress_without_a_terminal_is_plain_lines():
    stream = io.StringIO()
    with RunProgress(stream) as progress:
        progress(StageEvent("initialize"))
        progress(StageEvent("initialize", "the key 'x' is not known"))
        progress(StageEvent("map"))
        for event in events_of_a_run():
            progress(event)
        progress(RankEvent(1, RankState.RETRYING, 1, message="it was killed"))
        progress(RankEvent(1, RankState.FAILED, 2, message="it was [killed]"))
        progress(StageEvent("summarize"))
    lines = stream.getvalue().splitlines()
    assert "the key 'x' is not known" in lines
    assert "rank 1, attempt 1: it was killed; it is tried again" in lines
    assert "rank 1, attempt 2: it was [killed]; it has failed" in lines
    assert any(line.startswith("1/4 ranks done") for line in lines)
    assert "\x1b" not in stream.getvalue()


def test_quiet_progress_says_only_what_went_wrong_and_notes():
    stream = io.StringIO()
    with RunProgress(stream, quiet=True) as progress:
        progress(StageEvent("initialize", "in 1.pt the column redshift is Z"))
        progress(StageEvent("map"))
        for event in events_of_a_run():
            progress(event)
        progress(RankEvent(1, RankState.FAILED, 2, message="it broke"))
    assert stream.getvalue() == (
        "in 1.pt the column redshift is Z\nrank 1, attempt 2: it broke; it has failed\n"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (42.2, "42 s"), (200.0, "3 min 20 s"), (7500.0, "2 h 5 min")],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_makespan_gives_each_job_to_the_first_free_worker():
    assert makespan([1.0] * 5, 2, 0.5) == pytest.approx(3.5)
    assert makespan([5.0, 1.0, 1.0, 1.0], 2, 0.0) == pytest.approx(5.0)
    assert makespan([], 1, 0.5) == 0.5
