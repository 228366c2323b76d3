"""As many attempts as the request asks for; throttled calls are none; each has its own number."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import faulty_stack
import pytest
from faulty_stack import endings, run

from perseid.pipeline import layout
from perseid.storage import Storage


def test_as_many_attempts_as_asked(stack, faulty, faulty_data):
    plan = {"0": ["raise"] * 3, "1": ["exit"] * 9}
    _, started, result, seen = run(stack, faulty, faulty_data, "retries-3", plan, retries=3)
    assert endings(result, 0) == [(n, "raised") for n in (1, 2, 3)] + [(4, "done")]
    assert endings(result, 1) == [(n, "no result") for n in (1, 2, 3, 4)]
    assert [entry["rank"] for entry in result.summary["ranks"]["missing"]] == [1]
    assert "ranks 1 of 4" in result.incomplete
    assert json.loads(Storage(started.results_url).get(layout.record(0)))["attempt"] == 4
    assert (seen[-1].failed, seen[-1].retried) == (1, 1)
    engine = json.loads(Storage(started.results_url).get(layout.ENGINE))
    # The run's 6 states, 10 attempts, and after each of the 7 failed ones 3 states more.
    assert engine["transitions"] == 6 + 10 + 3 * 7


def test_no_second_attempt_where_none_is_asked_for(stack, faulty, faulty_data):
    plan = {"0": ["raise"], "2": ["exit"]}
    engine, started, result, _ = run(stack, faulty, faulty_data, "retries-0", plan, retries=0)
    assert [endings(result, rank) for rank in range(4)] == [
        [(1, "raised")], [(1, "done")], [(1, "no result")], [(1, "done")],
    ]  # fmt: skip
    assert [entry["rank"] for entry in result.summary["ranks"]["missing"]] == [0, 2]
    again = engine.resume(started.results_url)  # as many attempts again, counted on
    engine.watch(again, lambda now: None, first=0.2, longest=0.5)
    result = engine.finish(again)
    assert result.incomplete is None
    assert endings(result, 0) == [(1, "raised"), (2, "done")]
    assert endings(result, 2)[1] == (2, "done")


def test_what_would_fail_again_is_tried_once(stack, faulty, faulty_data):
    _, _, result, _ = run(stack, faulty, faulty_data, "final", {"0": ["bad model"] * 9}, retries=7)
    assert endings(result, 0) == [(1, "bad input")]
    assert "BadModelError" in result.incomplete


def test_throttled_calls_wait_and_count_as_no_attempt(stack, faulty_data):
    """One worker may run at once: the other ranks' calls are refused until it is their turn."""
    narrow = faulty_stack.make(stack, name="narrow", at_once=1)
    plan = {"2": ["raise"]}
    _, _, result, seen = run(stack, narrow, faulty_data, "throttled", plan, retries=1)
    assert result.incomplete is None
    assert result.mapped.concurrency == 1
    for rank in (0, 1, 3):
        assert endings(result, rank) == [(1, "done")]
    assert endings(result, 2) == [(1, "raised"), (2, "done")]
    assert seen[-1].failed == 0
    assert throttles(stack, narrow.function) > 0


def throttles(stack, function) -> float:
    """How many calls were refused, by Lambda's own metric."""
    now = datetime.now(UTC)
    points = stack.aws.client("cloudwatch").get_metric_statistics(
        Namespace="AWS/Lambda", MetricName="Throttles", Period=3600, Statistics=["Sum"],
        Dimensions=[{"Name": "FunctionName", "Value": function}],
        StartTime=now - timedelta(hours=1), EndTime=now + timedelta(minutes=1),
    )["Datapoints"]  # fmt: skip
    return sum(point["Sum"] for point in points)


@pytest.mark.parametrize(("timeout", "retries", "kind"), [(60, 2, "EXPRESS"), (60, 4, "STANDARD")])
def test_the_children_fit_all_attempts(stack, faulty, faulty_data, timeout, retries, kind):
    keys = {"timeout": timeout, "retries": retries}
    name = f"kind-{retries}"
    _, started, result, _ = run(stack, faulty, faulty_data, name, {"1": ["raise"]}, **keys)
    assert result.incomplete is None
    assert endings(result, 1) == [(1, "raised"), (2, "done")]
    engine = json.loads(Storage(started.results_url).get(layout.ENGINE))
    assert engine["executions"][0]["map"]["children"] == kind
