"""The schedule of ranks, retries and stragglers: pure functions and bookkeeping."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseid.engines.local.schedule import Schedule
from perseid.engines.retry import RetryPolicy, is_straggler
from perseid.errors import BadInputError
from perseid.pipeline.attempts import Attempt, Ending, EngineReport
from perseid.pipeline.events import RankState


def ended(rank, attempt, ending, message="", **changes):
    values = {"duration_ms": 1.0, "memory_mb": 128, "max_memory_mb": 50.0}
    return Attempt(rank, attempt, "id", ending, message, 0.0, **{**values, **changes})


def test_ranks_start_in_order_and_finish():
    schedule = Schedule([2, 0, 1], RetryPolicy())
    assert [schedule.start(0.0) for _ in range(3)] == [(0, 1), (1, 1), (2, 1)]
    assert not schedule.ready(0.0)
    assert not schedule.finished
    for rank in range(3):
        assert schedule.end(ended(rank, 1, Ending.DONE), 1.0).state is RankState.DONE
    assert schedule.finished
    assert schedule.done == {0, 1, 2}
    assert schedule.failed == {}


def test_a_failed_rank_waits_longer_each_time_and_then_fails():
    schedule = Schedule([7], RetryPolicy(retries=2, first_wait=1.0, factor=3.0))
    now = 0.0
    for attempt, wait in ((1, 1.0), (2, 3.0)):
        assert schedule.start(now) == (7, attempt)
        event = schedule.end(ended(7, attempt, Ending.TIMED_OUT, "late"), now)
        assert event.state is RankState.RETRYING
        assert not schedule.ready(now + wait - 0.01)
        now += wait
        assert schedule.ready(now)
    assert schedule.start(now) == (7, 3)
    event = schedule.end(ended(7, 3, Ending.KILLED, "killed"), now)
    assert (event.state, event.message) == (RankState.FAILED, "killed")
    assert schedule.failed == {7: "killed"}
    assert schedule.finished


@pytest.mark.parametrize("ending", [Ending.BAD_INPUT])
def test_what_comes_again_is_not_tried_again(ending):
    schedule = Schedule([0], RetryPolicy(retries=5))
    schedule.start(0.0)
    assert schedule.end(ended(0, 1, ending, "corrupt"), 0.0).state is RankState.FAILED


def test_attempt_numbers_go_on_from_former_drivers():
    schedule = Schedule([0, 1], RetryPolicy(), {1: 4})
    assert schedule.start(0.0) == (0, 1)
    assert schedule.start(0.0) == (1, 5)


def test_a_fresh_rank_goes_before_a_waiting_retry():
    schedule = Schedule([0, 1], RetryPolicy(first_wait=10.0))
    schedule.start(0.0)
    schedule.end(ended(0, 1, Ending.RAISED), 0.0)
    assert schedule.start(0.0) == (1, 1)
    assert not schedule.ready(9.0)
    assert schedule.ready(10.0)


def straggling(ranks=4):
    schedule = Schedule(range(ranks), RetryPolicy(retries=0))
    for _ in range(ranks):
        schedule.start(0.0)
    for rank in range(1, ranks):
        schedule.end(ended(rank, 1, Ending.DONE), 10.0)
    return schedule


def test_a_straggler_gets_one_second_attempt_and_the_first_result_counts():
    schedule = straggling()
    assert schedule.start_straggler(29.0) is None
    assert schedule.start_straggler(31.0) == (0, 2)
    assert schedule.start_straggler(60.0) is None
    assert schedule.rivals(0) == [1, 2]
    assert schedule.end(ended(0, 2, Ending.DONE), 62.0).state is RankState.DONE
    assert schedule.end(ended(0, 1, Ending.STOPPED), 62.0) is None
    assert schedule.finished
    assert schedule.failed == {}


def test_a_failing_second_attempt_leaves_the_decision_to_the_first():
    schedule = straggling()
    schedule.start_straggler(31.0)
    assert schedule.end(ended(0, 2, Ending.RAISED, "broke"), 32.0) is None
    assert schedule.end(ended(0, 1, Ending.DONE), 40.0).state is RankState.DONE
    assert schedule.failed == {}


def test_giving_up_fails_everything_that_waits():
    schedule = Schedule(range(3), RetryPolicy())
    schedule.start(0.0)
    schedule.end(ended(0, 1, Ending.BAD_INPUT, "no model"), 0.0)
    events = schedule.give_up("no model")
    assert [event.rank for event in events] == [1, 2]
    assert schedule.finished
    assert schedule.failed == dict.fromkeys(range(3), "no model")


@given(st.data())
def test_every_rank_ends_done_or_failed_exactly_once(data):
    """Whatever happens to the attempts, each rank is decided, within its number of attempts."""
    ranks = data.draw(st.integers(1, 6))
    retries = data.draw(st.integers(0, 2))
    schedule = Schedule(range(ranks), RetryPolicy(retries=retries, first_wait=1.0))
    now, running, decided = 0.0, [], []
    while not schedule.finished:
        now += 1.0
        while schedule.ready(now) and len(running) < 3:
            running.append(schedule.start(now))
        if len(running) < 3 and (second := schedule.start_straggler(now)):
            running.append(second)
        if not running:
            continue
        rank, attempt = running.pop(data.draw(st.integers(0, len(running) - 1)))
        outcomes = [Ending.DONE, Ending.RAISED, Ending.KILLED, Ending.BAD_INPUT]
        event = schedule.end(ended(rank, attempt, data.draw(st.sampled_from(outcomes)), "x"), now)
        if event is not None and event.state in (RankState.DONE, RankState.FAILED):
            decided.append(rank)
        if rank in schedule.done:  # as the engine does: others of the rank are ended
            for other in [pair for pair in running if pair[0] == rank]:
                running.remove(other)
                schedule.end(ended(*other, Ending.STOPPED), now)
    assert sorted(decided) == list(range(ranks))
    assert schedule.done | set(schedule.failed) == set(range(ranks))
    assert not schedule.done & set(schedule.failed)
    numbers = [(a.rank, a.attempt) for a in schedule.attempts]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(
    ("elapsed", "finished", "ranks", "expected"),
    [
        (31.0, [10.0, 10.0, 10.0], 4, True),
        (29.0, [10.0, 10.0, 10.0], 4, False),  # not three times the median
        (1e9, [10.0], 4, False),  # too few are finished
        (1e9, [], 1, False),
        (4.0, [0.1] * 9, 10, False),  # below the floor
        (6.0, [0.1] * 9, 10, True),
        (31.0, [10.0, 10.0, 1000.0], 4, True),  # the median, not the mean
    ],
)
def test_straggler_rule(elapsed, finished, ranks, expected):
    assert is_straggler(elapsed, finished, ranks) is expected


def test_the_longest_wait_is_bounded_and_negative_retries_are_refused():
    assert RetryPolicy(retries=50).wait(40) == 30.0
    with pytest.raises(BadInputError, match="retries must be 0 or more, not -1"):
        RetryPolicy(retries=-1)


@pytest.mark.parametrize(
    ("duration", "init", "billed"),
    [(40243.33, 663.81, 40908), (1.0, None, 1), (1.01, None, 2), (0.0, None, 1), (0.2, 0.8, 1)],
)
def test_billed_duration_is_whole_milliseconds_with_init(duration, init, billed):
    attempt = ended(0, 1, Ending.DONE, duration_ms=duration, init_ms=init)
    assert attempt.billed_ms == billed
    assert attempt.cold is (init is not None)


def test_overhead_counts_only_workers_that_had_something_to_do():
    attempts = tuple(ended(rank, 1, Ending.DONE, work_seconds=2.0) for rank in range(3))
    result = EngineReport(attempts, wall_seconds=3.0, concurrency=8)
    assert result.overhead_seconds == pytest.approx(3.0 * 3 - 6.0)
    assert result.overhead_per_rank == pytest.approx(1.0)
    assert EngineReport().overhead_per_rank == 0.0
