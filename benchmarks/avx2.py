"""A benchmark's row for a processor with AVX2 and nothing newer: what Lambda promises on x86-64.

``--avx2`` of a benchmark runs its programs under `avx2only.c`, which hides the newer instructions
from them. Where the processor cannot do that, the row says why.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("avx2only.c")
NAME = "AVX2 only"


def add_argument(parser: argparse.ArgumentParser) -> None:
    """The option of every benchmark of speed."""
    parser.add_argument(
        "--avx2", action="store_true",
        help="as on a processor with AVX2 and nothing newer (Intel's with cpuid_fault; needs gcc)",
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
    if probe.returncode:
        return {}, f"this processor ({processor()}) cannot hide instructions: no cpuid_fault"
    return found, ""


def rerun(args: argparse.Namespace) -> None:
    """With ``--avx2``, do all of this program again under the library; else nothing.

    Where it cannot be had, the program ends here with the reason.
    """
    if not args.avx2 or "avx2only.so" in os.environ.get("LD_PRELOAD", ""):
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
