"""Measurements of a stack's functions: processors, starts, and communication between them."""

from __future__ import annotations

import base64
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from perseid.aws.handlers.probe import PROBE
from perseid.aws.observe.calls import Calls
from perseid.aws.prove.budget import FunctionPrice
from perseid.aws.prove.proof import Value
from perseid.aws.session import aws_errors
from perseid.errors import RunError
from perseid.jsontext import parse_json
from perseid.measure.fields import Fields
from perseid.measure.report_line import Report, find_reports

COLD, WARM = 4, 4
"""Number of simultaneous calls, to see cold starts, and of consecutive calls, to see warm ones."""


@dataclass(frozen=True)
class Found:
    """The result of a step."""

    sentence: str
    values: Mapping[str, Value]
    usd: float | None = None
    """Cost of the step in USD; None if not known."""


@dataclass(frozen=True)
class ProbeAnswer:
    """The answer to one call of a function's probe."""

    said: Fields
    seconds: float
    """Seconds until the answer arrived."""
    report: Report | None
    """REPORT line of the call; None if the answer did not contain it."""

    def usd(self, price: FunctionPrice) -> float:
        """Billed cost in USD; without a REPORT line, computed from the time until the answer
        arrived."""
        billed = self.seconds if self.report is None else self.report.billed_ms / 1e3
        return price.calls(1, billed)


def ask(calls: Calls, function: str, task: Mapping[str, str | int]) -> ProbeAnswer:
    """Call a function's probe; raises `RunError` with the function's own message if it fails."""
    began = time.monotonic()
    with aws_errors():
        answer = calls.aws.client_that_asks_once("lambda").invoke(
            FunctionName=function, Payload=json.dumps({PROBE: task}).encode(), LogType="Tail"
        )
    said = Fields(parse_json(answer["Payload"].read() or b"null"))
    seconds = time.monotonic() - began
    if answer.get("FunctionError"):
        raise RunError(f"the function failed: {said.text('errorMessage') or 'it does not say why'}")
    tail = base64.b64decode(answer.get("LogResult") or b"").decode("utf-8", "replace")
    return ProbeAnswer(said, seconds, next(find_reports(tail), None))


def processor(calls: Calls, function: str, price: FunctionPrice) -> Found:
    """Measure the function's processor and the speed of the default model on it."""
    answer = ask(calls, function, {"what": "processor"})
    said = answer.said
    words = ("machine", "model", "possible_processors", "python", "libc", "numpy", "onnxruntime")
    numbers = ("processors", "usable", "memory_mb", "threads", "rows_per_second")
    values: dict[str, Value] = {name: said.text(name) for name in words}
    values |= {name: said.number(name) for name in numbers}
    values["instructions"] = said.texts("instructions")
    sentence = (
        f"{said.text('machine')} ({said.text('model')}) with {said.number('processors'):g} "
        f"processors of {said.number('memory_mb'):g} MB: {said.number('rows_per_second'):,.0f} "
        f"rows/s on {said.number('threads'):g} threads, onnxruntime {said.text('onnxruntime')}"
    )
    return Found(sentence, values, answer.usd(price))


def starts(calls: Calls, function: str, price: FunctionPrice) -> Found:
    """Make several calls at once, some of which start new environments, then several calls one
    after the other."""
    task = {"what": "processor"}
    with ThreadPoolExecutor(COLD) as pool:
        first = list(pool.map(lambda _: ask(calls, function, task), range(COLD)))
    answers = [*first, *(ask(calls, function, task) for _ in range(WARM))]
    cold = [one for one in answers if one.said.flag("cold")]
    warm = [one for one in answers if not one.said.flag("cold")]
    inits = [one.report.init_ms for one in answers if one.report and one.report.init_ms]
    values: dict[str, Value] = {
        "cold_calls": len(cold),
        "cold_seconds": _rounded(one.seconds for one in cold),
        "init_ms": _rounded(inits),
        "warm_seconds": _rounded(one.seconds for one in warm),
        "reports": _reports(answers),
    }
    init = f"{statistics.median(inits):.0f} ms" if inits else "not told"
    sentence = (
        f"cold: {_median(one.seconds for one in cold)} until the answer, init {init}; warm: "
        f"{_median(one.seconds for one in warm)}"
    )
    return Found(sentence, values, sum(one.usd(price) for one in answers))


def gang(
    calls: Calls, function: str, world: int, job: str, endpoint: str, price: FunctionPrice
) -> Found:
    """Let this many functions run at once, connect in pairs and compute sums."""

    def one(rank: int) -> ProbeAnswer:
        ours: dict[str, str | int] = {"rank": rank, "world": world, "endpoint": endpoint}
        return ask(calls, function, {"what": "gang", "job": job, **ours})

    with ThreadPoolExecutor(world) as pool:
        answers = list(pool.map(one, range(world)))
    said = [answer.said for answer in answers]
    nats = Counter(fields.text("nat") or "not told" for fields in said)
    paths: Counter[str] = Counter()
    for fields in said:
        found = fields.inner("paths")
        paths.update({name: found.count(name) or 0 for name in found.names()})
    ends = world * (world - 1)
    direct = paths["direct"] / ends if ends else 0.0
    sums = [fields.rows("allreduce") for fields in said]
    if not all(entry.flag("right") for rank in sums for entry in rank):
        raise RunError(f"a sum over {world} functions is wrong")
    times = {f"{round(entry.number('bytes') or 0)} bytes": _slowest(sums, place)
             for place, entry in enumerate(sums[0])}  # fmt: skip
    values: dict[str, Value] = {
        "nat": dict(nats),
        "paths": dict(sorted(paths.items())),
        "direct_share": round(direct, 4),
        "join_seconds": _rounded(fields.number("join_seconds") for fields in said),
        "allreduce_seconds": times,
        "reports": _reports(answers),
    }
    shown = ", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in times.items())
    sentence = (
        f"{world} functions behind NATs of the kind {', '.join(nats)}: {direct:.0%} of the paths "
        f"are direct; allreduce {shown}"
    )
    return Found(sentence, values, sum(answer.usd(price) for answer in answers))


def _slowest(sums: Sequence[Sequence[Fields]], place: int) -> float:
    """Median over repetitions of the slowest rank's time, without the first, which makes the
    connections."""
    each = [[_number(value) for value in rank[place].items("seconds")] for rank in sums]
    slowest = [max(times) for times in zip(*each, strict=True)][1:]
    return float(round(statistics.median(slowest), 6))


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _reports(answers: Sequence[ProbeAnswer]) -> Value:
    reports = [one.report for one in answers if one.report is not None]
    return {
        "calls": len(answers),
        "reports": len(reports),
        "billed_ms": sum(report.billed_ms for report in reports),
        "max_memory_mb": max((report.max_memory_mb for report in reports), default=0.0),
    }


def _rounded(values: Iterator[float | None] | Sequence[float | None]) -> tuple[Value, ...]:
    return tuple(round(value, 3) for value in values if value is not None)


def _median(values: Iterator[float]) -> str:
    known = list(values)
    return f"{statistics.median(known) * 1e3:.0f} ms" if known else "none seen"
