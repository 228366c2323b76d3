"""Build the worker's package set, prove that it works alone, and print what it weighs.

    python scripts/worker_size.py [--keep FOLDER]

Copies what a worker needs (numpy, onnxruntime, obstore, perseid) from the installed packages into
a folder, leaves out what it does not, and runs a worker's work from that folder alone in a fresh
interpreter. Sizes are unzipped, in MiB: AWS Lambda's "MB" are MiB (limit 250 with all layers).
Fails where the packages and a model of the published size (float32) weigh more than 130 MiB.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from perseid.aws.deploy.trim import COMPANIONS, LEFT_OUT, drop_symbols, left_out

LIMIT_MIB = 130
MIB = 1 << 20
WORK = """
import json, sys
folder, model, data = sys.argv[1:]
sys.path.insert(0, folder)
import perseid.pipeline.work
from perseid.model.runtime import ModelRuntime
from perseid.storage import Storage
from perseid.survey.reader import open_partition
runtime = ModelRuntime.load(model)
rows, total = 0, 0.0
with open_partition(Storage(data), "1.pt") as reader:
    for block in reader.blocks():
        prediction = runtime.predict(block.images, block.magnitudes)
        rows, total = rows + len(block), total + float(prediction.redshift.sum())
outside = [m.__file__ for m in sys.modules.values()
           if "site-packages" in (getattr(m, "__file__", None) or "")
           and not m.__file__.startswith(folder)]
banned = sorted({"pydantic", "rich", "pyarrow", "torch", "onnx", "boto3"} & set(sys.modules))
print(json.dumps({"rows": rows, "sum": total, "outside": outside, "banned": banned}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="leave the package set in this new folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="perseid-worker-") as temporary:
        folder = args.keep or Path(temporary) / "package"
        for name in LEFT_OUT:
            copy_package(name, folder)
        for library in folder.rglob("*.so*"):
            library.write_bytes(drop_symbols(library.read_bytes()))
        models = make_models(Path(temporary))
        survey = make_survey(Path(temporary) / "survey")
        for model in models.values():
            prove(folder, model, survey)
        return report(folder, models, Path(temporary))


def copy_package(name: str, folder: Path) -> None:
    """Copy one installed package without what `LEFT_OUT` says."""
    spec = importlib.util.find_spec(name)
    assert spec is not None, f"{name} is not installed"
    assert spec.origin is not None
    source = Path(spec.origin).parent
    for part in (name, *COMPANIONS.get(name, ())):
        root = source.parent / part
        shutil.copytree(root, folder / part, ignore=ignoring(root, LEFT_OUT[name]))


def ignoring(root: Path, patterns: Sequence[str]) -> Callable[[str, list[str]], set[str]]:
    def ignore(folder: str, names: list[str]) -> set[str]:
        inside = Path(folder).relative_to(root)
        return {name for name in names if left_out(str(inside / name), patterns)}

    return ignore


def make_models(folder: Path) -> dict[str, Path]:
    """The shipped model, and one of the published size with random weights."""
    from perseid.model.config import PUBLISHED
    from perseid.model.export.exporter import export_model
    from perseid.model.weights import Weights, expected_shapes

    rng = np.random.default_rng(0)
    arrays = {
        name: (rng.random(shape) * 0.02 + (0.5 if name.endswith("running_var") else -0.01)).astype(
            np.float32
        )
        for name, shape in expected_shapes(PUBLISHED).items()
    }
    models = {"published size, float32": folder / "published.onnx"}
    export_model(Weights(PUBLISHED, arrays), models["published size, float32"])
    spec = importlib.util.find_spec("perseid.model")
    assert spec is not None
    assert spec.origin is not None
    shipped = Path(spec.origin).parent / "data" / "default.onnx"
    if shipped.exists():
        models["default"] = folder / "default.onnx"
        shutil.copy(shipped, models["default"])
    return models


def make_survey(folder: Path) -> Path:
    from perseid.survey.cutouts import Cutouts
    from perseid.survey.reader import write_cutouts

    rng = np.random.default_rng(1)
    images = rng.standard_normal((100, 5, 32, 32)).astype(np.float32)
    write_cutouts(Cutouts(images, 18 + rng.standard_normal((100, 5))), folder / "1.pt")
    return folder


def prove(folder: Path, model: Path, survey: Path) -> None:
    """Run a worker's work in an interpreter that sees the folder and the standard library only."""
    done = subprocess.run(
        [sys.executable, "-S", "-I", "-c", WORK, str(folder), str(model), str(survey)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        sys.exit(f"the package set does not work alone:\n{done.stderr}")
    said = json.loads(done.stdout)
    if said["rows"] != 100 or said["outside"] or said["banned"] or not np.isfinite(said["sum"]):
        sys.exit(f"the package set does not work alone: {said}")


def report(folder: Path, models: dict[str, Path], temporary: Path) -> int:
    for pyc in folder.rglob("__pycache__"):
        shutil.rmtree(pyc)  # the proof wrote them
    sizes = {part.name: size_of(part) for part in sorted(folder.iterdir())}
    packages = sum(sizes.values())
    print("the worker's packages, unzipped (imported and run alone: yes)")
    for name, size in sizes.items():
        print(f"  {name:28} {size / MIB:7.1f} MiB")
    print(f"  {'packages together':28} {packages / MIB:7.1f} MiB")
    archive = temporary / "package.zip"
    zip_folder(folder, archive)
    print(f"  {'the same zipped':28} {archive.stat().st_size / MIB:7.1f} MiB")
    for name, path in models.items():
        size = path.stat().st_size
        print(f"  {f'model: {name}':28} {size / MIB:7.1f} MiB")
        print(f"  {'  with the packages':28} {(packages + size) / MIB:7.1f} MiB")
    largest = (packages + models["published size, float32"].stat().st_size) / MIB
    verdict = "ok" if largest <= LIMIT_MIB else "TOO MUCH"
    print(f"{verdict}: {largest:.1f} MiB with the model of the published size, limit {LIMIT_MIB}")
    return 0 if largest <= LIMIT_MIB else 1


def size_of(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def zip_folder(folder: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                target.write(file, file.relative_to(folder))


if __name__ == "__main__":
    sys.exit(main())
