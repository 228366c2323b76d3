"""How long each view of the live page takes to answer, for a run of a million objects.

    python benchmarks/explore.py --rows 1000000 --width 132

The run is made as ranks leave it (features, statistics, records) and summarized; its page is served
from a process of its own and asked over HTTP as a browser does. Each view is asked once to warm it,
then `--repeat` times, with another brush, page or object each time, so that no answer is one that
was kept; before each look at the learned ranking an object is rated. Let the machine do nothing
else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urlencode

import avx2
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

ROWS = 5000
"""Of a rank."""
LIMIT = 0.3
"""Seconds that a view may take."""


def main() -> None:
    """Print one line a view; exit status 1 where one takes too long."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=132, help="features (default model: 132)")
    parser.add_argument("--repeat", type=int, default=7)
    avx2.add_argument(parser)
    args = parser.parse_args()
    avx2.rerun(args)
    with tempfile.TemporaryDirectory() as folder:
        run = make(Path(folder), args.rows, args.width)
        command = [sys.executable, "-m", "perseid", "explore", str(run), "--no-browser"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                address = server.stdout.readline().split()[1]
                sys.exit(measure(address, server.pid, args.rows, args.repeat))
            finally:
                server.kill()


def make(folder: Path, rows: int, width: int) -> Path:
    """A run of so many objects, without a survey."""
    from terabyte import generate

    from perseid.pipeline.summarize import summarize
    from perseid.storage import Storage

    generate(folder, rows // ROWS, ROWS, width)
    summarize(Storage(folder / "run"))
    return folder / "run"


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far: what a view costs, however busy the machine is."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(address: str, pid: int, rows: int, repeat: int) -> int:
    """Ask every view; how many took too long."""
    from explored import ask

    began = time.perf_counter()
    if ask(address, "teach").status != 200:
        raise SystemExit("the page is not there")
    print(f"{rows:,} objects, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; features and "
          f"map are there after {time.perf_counter() - began:.1f} s")  # fmt: skip
    late = 0
    for name, view in views(np.random.default_rng(2), rows).items():
        taken, used = [], 0.0
        for turn in range(repeat + 1):
            path, body = view(turn)
            if name == "learned ranking":
                ask(address, "rate", method="POST", body=f"index={turn * 7}&rating=4".encode())
            before = cpu_seconds(pid)
            began = time.perf_counter()
            answer = ask(address, path, method="POST" if body else "GET", body=body)
            taken.append(time.perf_counter() - began)
            used += (cpu_seconds(pid) - before) * bool(turn)
            if answer.status >= 400:
                raise SystemExit(f"{path}: {answer.text[:300]}")
        warm = np.array(taken[1:])
        late += bool(np.median(warm) > LIMIT)
        print(
            f"{name:28} first {taken[0]:.3f} s, then median {np.median(warm):.3f} s, longest "
            f"{warm.max():.3f} s; processor {used / repeat:.3f} s; {len(answer.body) / 1e3:.0f} kB"
        )
    return late


def views(
    random: np.random.Generator, rows: int
) -> dict[str, Callable[[int], tuple[str, bytes | None]]]:
    """Name of each view -> its address at each turn, and what is sent."""

    def condition(*parts: object) -> str:
        return quote(json.dumps(parts))

    def box(x: str, y: str, scale: float) -> str:
        low, high = np.sort(random.uniform(0, scale, (2, 2)), axis=0)
        return condition("box", x, low[0], high[0], y, low[1], high[1])

    def lasso() -> str:
        angle = np.sort(random.uniform(0, 2 * np.pi, 60))
        corners = np.column_stack([np.cos(angle), np.sin(angle)]) * random.uniform(1, 3)
        return condition("lasso", "map_1", "map_2", corners.ravel().round(4).tolist())

    def rating(turn: int) -> bytes:
        return urlencode({"index": int(random.integers(rows)), "rating": 1 + turn % 5}).encode()

    sorts = ("anomaly_score", "-anomaly_score", "z_pred", "-z_spec")
    return {
        "page of the table": lambda i: (f"objects/part?page={1 + i * 97}", None),
        "sorted page": lambda i: (f"objects/part?sort=-anomaly_score&page={1 + i * 31}", None),
        "sort by a column, again": lambda i: (f"objects/part?sort={sorts[i % 2]}", None),
        "filter": lambda i: (
            f"objects/part?f={condition('range', 'z_pred', random.uniform(0, 0.3), None)}", None),
        "brush redshifts": lambda i: (f"objects/part?s={box('z_spec', 'z_pred', 0.6)}", None),
        "brush scores, sorted": lambda i: (
            "objects/part?sort=-z_pred&s="
            f"{condition('range', 'anomaly_score', random.uniform(0.8, 1.1), None)}", None),
        "lasso in the map": lambda i: (f"objects/part?s={lasso()}", None),
        "map colored by a column": lambda i: (
            f"objects/part?color=z_pred&f={condition('range', 'z_spec', random.random() / 3, 1)}",
            None),
        "object, with neighbors": lambda i: (f"object/{int(random.integers(rows))}/part", None),
        "rate": lambda i: ("rate", rating(i)),
        "learned ranking": lambda i: (f"teach/part?label={1 + i % 7}", None),
        "one plot": lambda i: (f"plot/map.svg?s={lasso()}", None),
        "run": lambda i: ("", None),
    }  # fmt: skip


if __name__ == "__main__":
    main()
