"""A small run with its page served, and a visitor who speaks plain HTTP to it."""

from __future__ import annotations

import http.client
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from tiny import tiny_cutouts, tiny_model

import perseid
from perseid.explore import ExploredRun, ExploreServer, LiveRun
from perseid.survey import write_cutouts
from perseid.survey.cutouts import Cutouts

WATCH_SECONDS = 120.0
"""Longest silence of a stream of events."""
HOSTILE = (
    "<script>window.planted = 1</script>",
    "\"><img src=x onerror='window.planted=2'>",
    "{{ 7 * 7 }}${7*7}",
    "../../../etc/passwd\x1b[2J",
    '=HYPERLINK("http://evil.example")',
    "'); DROP TABLE objects; --",
    "javascript:window.planted=3",
    "\u202eabc",
)
"""Ids that would be markup, script, a path or a formula if they were not shown as text."""


def write_survey(
    folder: Path, rows: int = 120, per_partition: int = 30, *, hostile: bool = False
) -> None:
    """A tiny survey; with `hostile`, of ids and file names that try to be more than text."""
    folder.mkdir(parents=True)
    whole = tiny_cutouts(rows, seed=4)
    if hostile:
        names = [HOSTILE[i % len(HOSTILE)] + str(i) for i in range(rows)]
        whole = Cutouts(
            whole.images, whole.magnitudes, whole.redshift, np.array(names), whole.label
        )
    for number, part in enumerate(whole.batches(per_partition), start=1):
        name = f"<b onclick='window.planted=4'>{number}" if hostile else str(number)
        write_cutouts(part, folder / f"{name}.{'parquet' if hostile else 'pt'}")


def make_run(folder: Path, *, hostile: bool = False, rows: int = 120) -> perseid.Run:
    """Run the tiny model over a tiny survey in `folder`."""
    tiny_model(folder / "tiny.onnx")
    write_survey(folder / "survey", rows, hostile=hostile)
    return perseid.run(
        folder / "survey",
        model=str(folder / "tiny.onnx"),
        results=str(folder / "run"),
        world_size=2,
        engine=perseid.LocalEngine(workers=1),
        progress=False,
    )


@contextmanager
def served(run: perseid.Run, **options: object) -> Iterator[ExploreServer]:
    """The page of a run."""
    live = LiveRun(run)
    with ExploreServer(ExploredRun(run), live, **options) as server:
        live.begin()
        yield server


@dataclass(frozen=True)
class Answer:
    """What the server said."""

    status: int
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def text(self) -> str:
        return self.body.decode()


def watched(address: str, until: Callable[[str, str], bool]) -> str:
    """The first picture of a run that goes on which is as wanted: `until` is given the kind of the
    event, ``run`` or ``end``, and the part of the page."""
    parts, kind, lines = urlsplit(address), "", list[str]()
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=WATCH_SECONDS)
    try:
        connection.request("GET", f"{parts.path}events")
        for raw in connection.getresponse():
            line = raw.decode().rstrip("\n")
            if line.startswith("event: "):
                kind, lines = line[7:], []
            elif line.startswith("data: "):
                lines.append(line[6:])
            elif not line and until(kind, "\n".join(lines)):
                return "\n".join(lines)
    finally:
        connection.close()
    raise AssertionError(f"the run ended otherwise: {' '.join(lines)}")


def states(page: str) -> dict[int, str]:
    """Rank -> its state, of the page of a run."""
    found = re.findall(r'class="rank (\w+)" data-log="(\d+)"', page)
    return {int(rank): state for state, rank in found}


def ask(
    address: str, path: str = "", *, method: str = "GET", body: bytes | None = None,
    raw: bool = False, **headers: str,
) -> Answer:  # fmt: skip
    """One request to the page at this address; `raw`: the path without the token."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    try:
        whole = path if raw else parts.path + path
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, whole, body, given)
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, found, answer.read())
    finally:
        connection.close()
