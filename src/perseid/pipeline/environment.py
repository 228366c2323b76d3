"""The processor and the libraries that a rank's numbers were computed with.

Identical bits are promised only for one set of library versions on one kind of processor (see "What
same means" in docs/architecture.md). So each rank's record names both, and a run whose ranks differ
reports it.
"""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from perseid import __version__

LIBRARIES = ("numpy", "onnxruntime", "torch")
"""Libraries that compute. A rank's record names those that its process has imported."""
INSTRUCTIONS = (
    "AVX2", "AVX512F", "AVX512BW", "AVX512VNNI", "AVX512BF16", "AVX512FP16", "AVXVNNI", "AMX_INT8",
    "AMX_BF16", "ASIMD", "ASIMDDP", "ASIMDHP", "SVE",
)  # fmt: skip
"""Processor extensions by which the libraries choose their kernels, in NumPy's spelling."""


@dataclass(frozen=True)
class RankEnvironment:
    """The environment in which one rank computed."""

    processor: str
    """Name of the processor, as the kernel gives it."""
    instructions: tuple[str, ...]
    """Those of `INSTRUCTIONS` that the processor offers to this process."""
    versions: Mapping[str, str]
    """Versions of Python, perseid and the imported libraries, by name."""

    @classmethod
    def here(cls) -> RankEnvironment:
        """The environment of this process. Call it after loading the model, so that its libraries
        are imported."""
        versions = {"python": platform.python_version(), "perseid": __version__}
        modules = {name: sys.modules[name] for name in LIBRARIES if name in sys.modules}
        versions |= {name: str(module.__version__) for name, module in modules.items()}
        return cls(_processor(), _instructions(), versions)

    def to_json(self) -> dict[str, object]:
        """The environment as plain JSON values, as in a rank's record."""
        return asdict(self)


def differences(environments: Mapping[int, Mapping[str, object]]) -> list[str]:
    """One sentence for each way in which the ranks' environments differ; empty if they agree.

    Parameters
    ----------
    environments
        `RankEnvironment.to_json` of each rank; records of older versions have none and are skipped.
    """
    values: dict[str, dict[str, list[int]]] = {}
    for rank, environment in sorted(environments.items()):
        for name, value in _flat(environment):
            values.setdefault(name, {}).setdefault(value, []).append(rank)
    return [
        f"the ranks used different {name}, so equal bits are not promised: {_by_rank(found)}"
        for name, found in values.items()
        if len(found) > 1
    ]


def _flat(environment: Mapping[str, object]) -> Iterable[tuple[str, str]]:
    versions = environment.get("versions")
    yield "processors", str(environment.get("processor", "unknown"))
    instructions = environment.get("instructions")
    if isinstance(instructions, Sequence):
        yield "instruction sets", " ".join(map(str, instructions)) or "none"
    if isinstance(versions, Mapping):
        for name, version in versions.items():
            yield f"versions of {name}", str(version)


def _by_rank(found: Mapping[str, list[int]]) -> str:
    named = [
        f"{value} ({'rank' if len(ranks) == 1 else f'{len(ranks)} ranks, first'} {ranks[0]})"
        for value, ranks in found.items()
    ]
    return ", ".join(named)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _instructions() -> tuple[str, ...]:
    """Ask NumPy, which queries the processor itself: /proc/cpuinfo also lists instructions that are
    masked for this process."""
    try:
        features = importlib.import_module("numpy._core._multiarray_umath").__cpu_features__
    except (ImportError, AttributeError):  # NumPy 1, or a version that keeps the list elsewhere
        return ()
    return tuple(name for name in INSTRUCTIONS if features.get(name))
