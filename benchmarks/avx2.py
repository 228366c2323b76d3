"""A benchmark's row for a processor with AVX2 and nothing newer: what Lambda promises on x86-64.

``--avx2`` of a benchmark runs its programs under `avx2only.c`, which hides the newer instructions
from them. CPUID faults where the processor can do that; elsewhere the instructions with which
onnxruntime, numpy and its OpenBLAS ask the processor are replaced, and torch and its libraries have
variables for it. Where neither is possible, the row says why.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).with_name("avx2only.c")
NAME = "AVX2 only"
LIBRARIES = {
    "numpy": ("_core/_multiarray_umath.*.so", "../numpy.libs/*openblas*.so"),
    "onnxruntime": ("capi/onnxruntime_pybind11_state.*.so",),
}
"""Packages, and which of their libraries ask what the processor can do."""
OF_TORCH = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
SEEN = """
from numpy._core._multiarray_umath import __cpu_features__ as seen
from perseid.model.runtime.processor import has_int8_products
print("AVX2", seen["AVX2"], "AVX512F", seen["AVX512F"], "VNNI", has_int8_products())
"""
"""Print what numpy sees, and onnxruntime, whose products of 8-bit integers are exact with VNNI."""


def add_argument(parser: argparse.ArgumentParser) -> None:
    """The option of every benchmark of speed."""
    parser.add_argument(
        "--avx2", action="store_true",
        help="as on a processor with AVX2 and nothing newer (needs gcc and objdump)",
    )  # fmt: skip


def variables(folder: Path) -> tuple[dict[str, str], str]:
    """Variables for a program that shall see AVX2 alone, or no variables and why not."""
    if platform.machine() != "x86_64" or not sys.platform.startswith("linux"):
        return {}, f"needs Linux on x86-64, not {platform.system()} on {platform.machine()}"
    if shutil.which("gcc") is None:
        return {}, "needs gcc to build avx2only.c"
    library = folder / "avx2only.so"
    command = ["gcc", "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {}, f"avx2only.c cannot be built here: {done.stderr.strip().splitlines()[-1]}"
    found = {"LD_PRELOAD": str(library)}
    probe = subprocess.run(["/bin/true"], env={**os.environ, **found, "PERSEID_AVX2_PROBE": "1"})
    return (found, "") if probe.returncode == 0 else replaced(folder, library)


def replaced(folder: Path, library: Path) -> tuple[dict[str, str], str]:
    """The same for a processor without faults of CPUID."""
    why = f"this processor ({processor()}) has no cpuid_fault"
    if shutil.which("objdump") is None:
        return {}, f"{why}, and it needs objdump to find the instructions to replace"
    places = folder / "cpuid.tsv"
    places.write_text("".join(f"{path}\t{at}\n" for path in libraries() for at in cpuids(path)))
    found = {"LD_AUDIT": str(library), "PERSEID_AVX2_AT": str(places), **OF_TORCH}
    command = [sys.executable, "-c", SEEN]
    done = subprocess.run(command, env={**os.environ, **found}, capture_output=True, text=True)
    if done.stdout.strip() != "AVX2 True AVX512F False VNNI False":
        return {}, f"{why}, and replacing its instructions failed: {done.stdout}{done.stderr}"
    return found, ""


def libraries() -> Iterator[Path]:
    """Files of `LIBRARIES`."""
    for package, patterns in LIBRARIES.items():
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            for pattern in patterns:
                yield from (path.resolve() for path in Path(spec.origin).parent.glob(pattern))


def cpuids(library: Path) -> Iterator[str]:
    """Address of each CPUID instruction, hexadecimal; bytes alone would find other things too."""
    command = ["objdump", "--disassemble", "--no-show-raw-insn", str(library)]
    # Line by line: the whole text takes a gigabyte, which would count as ours in a child's peak.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            address, _, instruction = line.partition(":")
            if instruction.strip() == "cpuid":
                yield address.strip()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def rerun(args: argparse.Namespace) -> None:
    """With ``--avx2``, do all of this program again under the library; else nothing.

    Where it cannot be had, the program ends here with the reason.
    """
    loaded = os.environ.get("LD_PRELOAD", "") + os.environ.get("LD_AUDIT", "")
    if not args.avx2 or "avx2only.so" in loaded:
        return
    with tempfile.TemporaryDirectory() as folder:
        found, reason = variables(Path(folder))
        if reason:
            sys.exit(f"{NAME}: {reason}")
        print(f"{NAME}: {processor()} with its newer instructions hidden")
        again = [sys.executable, *sys.argv]
        sys.exit(subprocess.run(again, env={**os.environ, **found}).returncode)


def processor() -> str:
    """The processor's name as it calls itself."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "?")
