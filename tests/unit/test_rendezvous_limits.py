"""Limits, deadlines, logs and the HTTP answers of the rendezvous; no socket, a clock by hand."""

from __future__ import annotations

import json
import logging
import queue

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseid.rendezvous.server.http import MAX_REQUEST, request_path, response
from perseid.rendezvous.server.limits import Deadlines, RateLimit
from perseid.rendezvous.server.log_output import DroppingQueueHandler, JsonFormatter, TextFormatter
from perseid.rendezvous.server.prometheus import HELP, Counters, render
from perseid.rendezvous.server.relay import BURST_SECONDS, CHUNK, Throttle


def test_the_rate_of_one_address_is_limited_and_others_are_not():
    limit = RateLimit(rate=10, burst=5)
    assert [limit.admits("192.0.2.1", 0.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert limit.admits("192.0.2.2", 0.0)
    assert limit.admits("192.0.2.1", 0.2)
    assert [limit.admits("127.0.0.1", 0.0) for _ in range(50)] == [True] * 50


def test_idle_addresses_are_forgotten():
    limit = RateLimit(rate=10, burst=5)
    limit.admits("192.0.2.1", 0.0)
    limit.forget_idle(0.4)
    assert len(limit._buckets) == 1
    limit.forget_idle(0.6)
    assert limit._buckets == {}


def test_a_rate_of_zero_never_limits():
    limit = RateLimit(rate=0, burst=1)
    assert all(limit.admits("192.0.2.1", 0.0) for _ in range(10))


def test_deadlines_come_in_order_and_can_be_dropped_or_renewed():
    deadlines = Deadlines(5.0)
    one, two, three = object(), object(), object()
    for at, who in enumerate((one, two, three)):
        deadlines.add(who, float(at))
    deadlines.drop(two)
    deadlines.add(one, 3.0)
    assert deadlines.pop_due(6.9) == []
    assert deadlines.pop_due(7.0) == [three]
    assert deadlines.pop_due(8.0) == [one]
    assert deadlines.pop_due(99.0) == []


@given(st.lists(st.tuples(st.floats(0.001, 0.1), st.integers(1, CHUNK)), max_size=60))
def test_a_throttle_lets_no_more_than_its_rate_and_burst_pass(steps):
    rate = 1e6
    throttle, now, passed = Throttle(rate), 0.0, 0
    throttle.allowance(now)
    for wait, wish in steps:
        now += wait
        count = min(wish, throttle.allowance(now))
        throttle.spend(count)
        passed += count
    assert passed <= rate * (now + BURST_SECONDS) + 1


def test_without_a_rate_whole_chunks_pass():
    throttle = Throttle(0)
    throttle.spend(10**9)
    assert throttle.allowance(0.0) == CHUNK


def record(**data):
    made = logging.LogRecord("x", logging.INFO, "", 0, "rank lost", None, None)
    made.data = data
    return made


def test_log_lines_as_json_and_for_people():
    line = json.loads(JsonFormatter().format(record(job="a\nb", rank=3)))
    assert (line["event"], line["job"], line["rank"], line["level"]) == (
        "rank lost", "a\nb", 3, "info",
    )  # fmt: skip
    assert "rank lost" in (text := TextFormatter().format(record(rank=3)))
    assert "rank=3" in text


def test_a_name_cannot_forge_a_line_of_the_log_or_control_a_terminal():
    text = TextFormatter().format(record(job="a\n12:00 info forged\x1b[2J\u202e\x85b"))
    assert text.isprintable()
    assert text.splitlines() == [text]


def test_a_log_that_nobody_reads_drops_lines_and_never_waits():
    lines: queue.Queue = queue.Queue(2)
    handler = DroppingQueueHandler(lines)
    for rank in range(5):
        handler.emit(record(rank=rank))
    assert lines.qsize() == 2


def test_each_counter_has_its_help_line():
    text = render(Counters(registrations=7), {"ranks": (3.0, "Registered ranks.")})
    assert "perseid_rendezvous_registrations_total 7\n" in text
    assert "perseid_rendezvous_ranks 3\n" in text
    assert set(HELP) == set(Counters.__dataclass_fields__)


def test_requests_of_the_http_port():
    assert request_path(b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n") == "/metrics"
    assert request_path(b"HEAD / HTTP/1.0\r\n\r\n") == "/"
    assert request_path(b"GET / HTTP/1.1\r\nHost") is None
    for wrong in (b"PUT / HTTP/1.1\r\n\r\n", b"GET /\r\n\r\n", b"x" * (MAX_REQUEST + 1)):
        with pytest.raises(ValueError, match=r"request|GET"):
            request_path(wrong)
    assert response(200, "é\n").endswith(
        b"Content-Length: 3\r\nConnection: close\r\n\r\n\xc3\xa9\n"
    )
