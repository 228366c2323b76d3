"""Everything that only a machine with a GPU can show, in less than eight minutes.

    python scripts/gpu_checks.py [--out gpu.json] [--quick]

Each check prints its figures and what is wanted of it; the exit status is the number of checks that
failed. Timings: random pixels, files in the page cache.

- parity: redshifts of the published sizes within 1e-4 of the processor's
- model: rows/s of the published network in float32 at several batches
- run: `perseid run --device cuda` on 12.6 GB of partitions (a tenth with --quick), one worker
- training: rows/s of both phases, published sizes; mixed precision; the masked error falls
- batch: held-out NMAD of the small network at a large batch against 512
- tests: pytest of the tests that are skipped without a GPU
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

ROWS = 659_817
"""Of the published 12.6 GB."""
PARTITION = 5113
"""Rows of 100 MB."""
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Outcome:
    """What came of one check."""

    name: str
    passed: bool
    figures: dict[str, float]
    wanted: str
    seconds: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the figures here, too")
    parser.add_argument("--quick", action="store_true", help="a tenth of the data")
    parser.add_argument("--only", help="one of the checks")
    args = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("gpu_checks: torch sees no GPU here: nothing was checked", file=sys.stderr)
        return 2
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    share = 0.1 if args.quick else 1.0
    outcomes = []
    for name, check in CHECKS.items():
        if args.only in (None, name):
            outcomes.append(timed(name, check, share))
    if args.out:
        args.out.write_text(json.dumps([asdict(one) for one in outcomes], indent=1))
    return sum(not one.passed for one in outcomes)


def timed(name: str, check: Callable[[Path, float], Outcome], share: float) -> Outcome:
    """Do one check; an error in it is a failure of it alone."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="perseid-gpu-") as folder:
        try:
            found = check(Path(folder), share)
        except Exception as error:
            found = Outcome(name, False, {}, f"no error, not {type(error).__name__}: {error}")
    found = Outcome(found.name, found.passed, found.figures, found.wanted,
                    round(time.monotonic() - began, 1))  # fmt: skip
    said = ", ".join(f"{key} {value:,.6g}" for key, value in found.figures.items())
    print(f"{'ok    ' if found.passed else 'FAILED'} {found.name} ({found.seconds} s): {said}; "
          f"wanted: {found.wanted}", flush=True)  # fmt: skip
    return found


def published_weights(folder: Path) -> Path:
    import torch

    from perseid.model.config import PUBLISHED
    from perseid.model.training.astromae import AstroMAE, to_weights
    from perseid.model.weights import save_weights

    torch.manual_seed(0)
    save_weights(to_weights(AstroMAE(PUBLISHED)), folder / "weights.npz")
    return folder / "weights.npz"


def pixels(rows: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    images = random.standard_normal((rows, 5, 32, 32), dtype=np.float32)
    return images, 18 + random.standard_normal((rows, 5))


def parity(folder: Path, share: float) -> Outcome:
    from perseid.model.loading import load_on

    weights = published_weights(folder)
    images, magnitudes = pixels(4096)
    here = load_on("cpu", weights).predict(images[:512], magnitudes[:512]).redshift
    there = load_on("cuda", weights).predict(images, magnitudes).redshift
    far = float(np.abs(there[:512] - here).max())
    spread = float(np.std(here))
    return Outcome("parity", far < 1e-4, {"largest |dz|": far, "spread": spread}, "below 1e-4")


def model(folder: Path, share: float) -> Outcome:
    import torch

    from perseid.model.torch_session import TorchSession

    session = TorchSession(str(published_weights(folder)), "cuda", 1)
    figures = {}
    for batch in (512, 2048, 8192):
        images, magnitudes = pixels(batch)
        feed = {"image": images, "magnitude": magnitudes.astype(np.float32)}
        session.run(["redshift"], feed)
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(10):
            session.run(["redshift"], feed)
        figures[f"rows/s at {batch}, copies included"] = 10 * batch / (time.perf_counter() - began)
    best = max(figures.values())
    return Outcome("model", best > 20_000, figures, "20,000 rows/s at one batch")


def run(folder: Path, share: float) -> Outcome:
    import perseid
    from perseid.survey import Cutouts, write_cutouts

    weights = published_weights(folder)
    files = max(1, round(share * ROWS / PARTITION))
    images, magnitudes = pixels(PARTITION)
    (folder / "survey").mkdir()
    write_cutouts(Cutouts(images, magnitudes), folder / "survey/1.pt")
    data = (folder / "survey/1.pt").read_bytes()
    for number in range(2, files + 1):
        (folder / f"survey/{number}.pt").write_bytes(data)
    began = time.perf_counter()
    done = perseid.run(
        folder / "survey", model=str(weights), device="cuda", workers=1, world_size=4,
        memory_mb=32_000, results=str(folder / "run"), progress=False,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    rows = done.summary["rows"]["received"]
    figures = {"rows": rows, "seconds": seconds, "rows/s": rows / seconds}
    limit = 30 * share + 12  # the start of a worker with torch and a GPU is the same for a tenth
    wanted = f"below {limit:g} s (published: 140.8 s for all)"
    return Outcome("run", done.incomplete is None and seconds < limit, figures, wanted)


def _training(folder: Path, rows: int, **options: object) -> tuple[dict, float]:
    """History of a training on simulated-like blobs, and its seconds."""
    from perseid.model.training.train import TrainOptions, train
    from perseid.survey import Cutouts

    random = np.random.default_rng(1)
    z = random.uniform(0.02, 0.4, rows)
    y, x = np.mgrid[:32, :32] - 15.5
    shape = np.exp(-(x**2 + y**2) / (2 * (1 + 8 * z[:, None, None]) ** 2)).astype(np.float32)
    colors = np.stack([19 + 3 * z, 18 + 2 * z, 17.5 + z, 17.2 + 0 * z, 17 - z], axis=1)
    magnitudes = colors + random.normal(0, 0.02, (rows, 5))
    flux = 10 ** (-0.4 * (magnitudes - 18))
    noise = random.normal(0, 0.05, (rows, 5, 32, 32))
    images = (flux[:, :, None, None] * shape[:, None] + noise).astype(np.float32)
    began = time.perf_counter()
    parts = [Cutouts(images, magnitudes, z, np.arange(rows))]
    result = train(parts, folder, TrainOptions(**options), device="cuda")
    return result.history, time.perf_counter() - began


def training(folder: Path, share: float) -> Outcome:
    rows = 60_000
    figures: dict[str, float] = {}
    for precision in ("tf32", "bf16"):
        history, _ = _training(
            folder / precision, rows, config="published", batch=2048, precision=precision,
            pretrain_epochs=3, epochs=3, lr=1e-3,
        )  # fmt: skip
        last = {entry["phase"]: entry for entry in history["epochs"]}
        first = next(entry for entry in history["epochs"] if entry["phase"] == "pretrain")
        learning = history["rows"]["training"]
        for phase, entry in last.items():
            figures[f"{phase} rows/s, {precision}"] = learning / entry["seconds"]
        figures[f"masked error, {precision}"] = last["pretrain"]["validation"]
        figures[f"first epoch's, {precision}"] = first["validation"]
    fast = max(v for k, v in figures.items() if k.startswith("pretrain")) > 20_000
    fast &= max(v for k, v in figures.items() if k.startswith("redshift")) > 20_000
    learns = all(figures[f"masked error, {p}"] < figures[f"first epoch's, {p}"]
                 for p in ("tf32", "bf16"))  # fmt: skip
    return Outcome("training", fast and learns, figures, "20,000 rows/s each; errors fall")


def batch(folder: Path, share: float) -> Outcome:
    figures = {}
    for size in (512, 2048):
        history, _ = _training(folder / str(size), 40_000, batch=size, precision="tf32",
                               pretrain_epochs=4, epochs=12)  # fmt: skip
        figures[f"held-out NMAD at {size}"] = history["test"]["nmad"]
    one, other = figures.values()
    return Outcome("batch", other <= 1.02 * one, figures, "2 % at most above that at 512")


def tests(folder: Path, share: float) -> Outcome:
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "tests/unit/test_model_loading.py",
               "tests/unit/test_model_train_gpu.py"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    print(done.stdout[-2000:], flush=True)
    return Outcome("tests", done.returncode == 0, {"status": done.returncode}, "all pass")


CHECKS = {"parity": parity, "model": model, "run": run, "training": training, "batch": batch,
          "tests": tests}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
