"""Logs in every form in which they leave CloudWatch, in both of Lambda's formats, by every way."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from perseid.measure.measured_run import MeasuredRun
from perseid.measure.sources.load import load_runs
from perseid.storage import Storage

BEGAN = 1_790_000_000.0
STREAMS = ("2026/09/21/[$LATEST]0a1b2c3d4e5f", "2026/09/21/[$LATEST]f5e4d3c2b1a0")


@dataclass(frozen=True)
class Event:
    stream: str
    ms: int
    message: str

    @property
    def time(self) -> str:
        return f"{datetime.fromtimestamp(self.ms / 1e3, UTC):%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"


def item(rank: int) -> dict[str, object]:
    return {"RANK": str(rank), "WORLD_SIZE": "3", "SCRIPT": "x", "BATCH_SIZE": 512,
            "RESULT_PATH": "result-partition-25MB/1GB/1", "note": "a | b; c, \"d\" é"}  # fmt: skip


def as_text(request: str, rank: int, seconds: float) -> list[str]:
    init = "\tInit Duration: 500.00 ms" if rank == 0 else ""
    return [
        f"START RequestId: {request} Version: $LATEST\n",
        f"received:  {item(rank)}\n",
        "a line of\nseveral lines\n",
        f"END RequestId: {request}\n",
        f"REPORT RequestId: {request}\tDuration: {1e3 * seconds:.2f} ms\t"
        f"Billed Duration: {1e3 * seconds + 500:.0f} ms\tMemory Size: 10240 MB\t"
        f"Max Memory Used: {5000 + rank} MB{init}\t\n",
    ]


def as_json(request: str, rank: int, seconds: float) -> list[str]:
    when = "2026-09-21T14:13:20.000Z"
    metrics = {"durationMs": 1e3 * seconds, "billedDurationMs": 1e3 * seconds + 500,
               "memorySizeMB": 10240, "maxMemoryUsedMB": 5000 + rank}  # fmt: skip
    if rank == 0:
        metrics["initDurationMs"] = 500.0
    lines = [
        {"time": when, "type": "platform.start",
         "record": {"requestId": request, "version": "$LATEST"}},
        {"timestamp": when, "level": "INFO", "message": f"received:  {item(rank)}",
         "logger": "root", "requestId": request},
        {"timestamp": when, "level": "WARN", "message": "a line", "requestId": request},
        {"time": when, "type": "platform.runtimeDone",
         "record": {"requestId": request, "status": "success"}},
        {"time": when, "type": "platform.report",
         "record": {"requestId": request, "metrics": metrics, "status": "success"}},
    ]  # fmt: skip
    return [json.dumps(line, ensure_ascii=False) for line in lines]


FORMATS = {"text": as_text, "json": as_json}
SECONDS = (4.0, 6.0, 5.0)


def events(form: str) -> list[Event]:
    """Three invocations, two of them at the same time in two streams."""
    found = []
    for rank, (stream, start) in enumerate(zip((0, 1, 0), (0.0, 1.0, 8.0), strict=True)):
        messages = FORMATS[form](f"adbca9aa-{rank}", rank, SECONDS[rank])
        last = len(messages) - 1
        for number, message in enumerate(messages):
            at = start + (SECONDS[rank] if number >= last - 1 else 0.01 * number)
            found.append(Event(STREAMS[stream], round(1e3 * (BEGAN + at)), message))
    return sorted(found, key=lambda event: event.ms)


def api(event: Event, **more: object) -> dict[str, object]:
    return {"timestamp": event.ms, "message": event.message, "ingestionTime": event.ms + 9, **more}


def filtered(given: Sequence[Event]) -> dict[str, object]:
    found = [api(e, logStreamName=e.stream, eventId=f"{n:056d}") for n, e in enumerate(given)]
    return {"events": found, "searchedLogStreams": []}


def one_line(event: Event) -> str:
    return event.message.rstrip("\n").replace("\n", " ")


def insights(given: Sequence[Event]) -> list[dict[str, str]]:
    return [{"@timestamp": e.time.replace("T", " ").removesuffix("Z"), "@message": e.message,
             "@logStream": e.stream} for e in given]  # fmt: skip


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"

    bar = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join(["-" * len(bar), line(head), bar, *map(line, rows), "-" * len(bar)]) + "\n"


def untitled(given: Sequence[Event]) -> str:
    """The table that the command line draws of two values of each event, without their names."""
    rows = [f"|  {e.ms} |  {one_line(e)}  |" for e in given]
    return "\n".join(["-" * 40, "|  FilterLogEvents  |", "+-----+-----+", *rows, "+-----+-----+\n"])


def as_csv(head: Sequence[str], rows: Sequence[Sequence[object]], delimiter: str = ",") -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator="\r\n").writerows([head, *rows])
    return out.getvalue()


def indented(given: Sequence[Event]) -> str:
    """``aws logs tail --format json``: messages in JSON are printed with line breaks."""
    lines = []
    for event in given:
        try:
            message = json.dumps(json.loads(event.message), indent=4, ensure_ascii=False)
        except ValueError:
            message = event.message.rstrip("\n")
        lines.append(f"{event.time} {event.stream} {message}\n")
    return "".join(lines)


Shape = Callable[[Sequence[Event]], str]
SHAPES: dict[str, tuple[str, Shape]] = {
    "filter-log-events": (".json", lambda g: json.dumps(filtered(g), indent=4)),
    "two pages of it": (
        ".json", lambda g: json.dumps(filtered(g[:7])) + json.dumps(filtered(g[7:]))),
    "filter-log-events, yaml": (".yaml", lambda g: yaml.safe_dump(filtered(g))),
    "filter-log-events, text": (".txt", lambda g: "".join(
        f"EVENTS\t{n:056d}\t{e.ms + 9}\t{e.stream}\t{e.message}\t{e.ms}\n"
        for n, e in enumerate(g))),
    "filter-log-events, table": (".txt", lambda g: table(
        ("eventId", "ingestionTime", "logStreamName", "message", "timestamp"),
        [(f"{n:05d}", str(e.ms + 9), e.stream, e.message, str(e.ms)) for n, e in enumerate(g)])),
    "get-log-events": (".json", lambda g: json.dumps({"events": [api(e) for e in g],
                                                     "nextForwardToken": "f/1"})),
    "get-log-events, text": (".txt", lambda g: "".join(
        f"EVENTS\t{e.ms + 9}\t{e.message}\t{e.ms}\n" for e in g)),
    "--query events": (".json", lambda g: json.dumps(filtered(g)["events"])),
    "--query events[].message": (".json", lambda g: json.dumps([e.message for e in g])),
    "--query events[].[timestamp,message]": (
        ".json", lambda g: json.dumps([[e.ms, e.message] for e in g])),
    "the same as text": (".txt", lambda g: "".join(f"{e.ms}\t{e.message}\n" for e in g)),
    "the same as a table": (".txt", lambda g: untitled(g)),
    "filter-log-events, yaml-stream": (".yaml", lambda g: yaml.safe_dump([filtered(g)])),
    "events by line": (".jsonl", lambda g: "".join(
        json.dumps(api(e, logStreamName=e.stream)) + "\n" for e in g)),
    "tail": (".log", lambda g: "".join(
        f"{e.time[:-1]}000+00:00 {e.stream} {e.message.rstrip()}\n" for e in g)),
    "tail, short": (".log", lambda g: "".join(f"{e.time[:-5]} {e.message.rstrip()}\n" for e in g)),
    "tail, json": (".log", indented),
    "tail, in color": (".log", lambda g: "".join(
        f"\x1b[32m{e.time[:-1]}000+00:00\x1b[0m \x1b[36m{e.stream}\x1b[0m {e.message.rstrip()}\n"
        for e in g)),
    "tail, short, in color": (".log", lambda g: "".join(
        f"\x1b[32m{e.time[:-5]}\x1b[0m {e.message.rstrip()}\n" for e in g)),
    "get-query-results": (".json", lambda g: json.dumps({"status": "Complete", "results": [
        [{"field": k, "value": v} for k, v in row.items()] for row in insights(g)]})),
    "console: log events, CSV": (
        ".csv", lambda g: as_csv(("timestamp", "message"), [(e.ms, e.message) for e in g])),
    "console: all streams, CSV": (".csv", lambda g: as_csv(
        ("timestamp", "message", "logStreamName"), [(e.ms, e.message, e.stream) for e in g])),
    "the same out of a spreadsheet": (".csv", lambda g: "sep=;\r\n" + as_csv(
        ("timestamp", "message", "logStreamName"), [(e.ms, e.message, e.stream) for e in g], ";")),
    "console: log events, ASCII": (".txt", lambda g: table(
        ("timestamp", "message"), [(str(e.ms), one_line(e)) for e in g])),
    "console: copied": (".txt", lambda g: "".join(f"{e.time}\n{e.message}\n" for e in g)),
    "console: Insights, CSV": (".csv", lambda g: as_csv(
        tuple(insights(g)[0]), [tuple(row.values()) for row in insights(g)])),
    "console: Insights, JSON": (".json", lambda g: json.dumps(insights(g))),
    "console: Insights, Markdown": (".md", lambda g: "| @timestamp | @message | @logStream |\n"
        "| --- | --- | --- |\n" + "".join(
            f"| {r['@timestamp']} | {r['@message'].rstrip()} | {r['@logStream']} |\n"
            for r in insights(g))),
    "export task": ("", lambda g: "".join(f"{e.time} {e.message.rstrip()}\n" for e in g)),
    "subscription": (".json", lambda g: "".join(json.dumps({
        "messageType": "DATA_MESSAGE", "logGroup": "g", "logStream": stream, "logEvents": [
            {"id": str(e.ms), "timestamp": e.ms, "message": e.message}
            for e in g if e.stream == stream]}) for stream in STREAMS)),
    "a whole log, as it is": (".log", lambda g: "".join(e.message.rstrip() + "\n" for e in g)),
}  # fmt: skip


def by_file(path: Path) -> list[MeasuredRun]:
    return load_runs([str(path)])


def by_folder(path: Path) -> list[MeasuredRun]:
    return load_runs([str(path.parent)])


def by_url(path: Path) -> list[MeasuredRun]:
    store = Storage(f"memory://exports/{path.parent.name}")
    store.put(path.name, path.read_bytes())
    return load_runs([store.where(path.name)])


def compressed(path: Path) -> list[MeasuredRun]:
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return load_runs([str(packed.parent)])


WITHOUT_TIME = {"--query events[].message", "a whole log, as it is"}
READERS = {"file": by_file, "folder": by_folder, "URL": by_url, "gzip": compressed}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("reader", READERS)
def test_every_export_says_the_same(shape: str, form: str, reader: str, tmp_path: Path) -> None:
    suffix, write = SHAPES[shape]
    suffix = suffix or (".log" if reader != "gzip" else "")
    path = tmp_path / f"000000{suffix}"
    path.write_text(write(events(form)), encoding="utf-8", newline="")
    (run,) = READERS[reader](path)
    assert sorted(run.durations) == sorted(SECONDS)
    assert sorted(r.max_memory_mb for r in run.reports) == [5000, 5001, 5002]
    assert [r.init_ms for r in run.reports if r.cold] == [500.0]
    assert (run.received, run.unreported) == (3, 0)
    assert (run.expected, run.is_complete, run.batch_size) == (3, True, 512)
    assert (run.partition, run.data) == ("25MB", "1GB")
    if form == "text" and shape not in WITHOUT_TIME:
        assert round(run.map.seconds, 1) == 13.0
