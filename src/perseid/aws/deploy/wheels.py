"""Wheels of pinned versions for another platform, fetched by pip: no Docker, no build."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

from perseid.errors import BadInputError, NotInstalledError, StorageError

GLIBC_OLDEST, GLIBC_NEWEST = 17, 34
"""Minor versions of glibc whose wheels run on Amazon Linux 2023, which has 2.34; pip takes tags
literally, so each is named (https://peps.python.org/pep-0600/)."""
MACHINES = {"x86_64": "x86_64", "arm64": "aarch64"}
"""Lambda's names of the architectures, and the wheels'."""
PYTHONS = ("3.12", "3.13", "3.14")
"""Lambda's runtimes on Amazon Linux 2023; the first is taken unless this one is among them
(https://docs.aws.amazon.com/lambda/latest/dg/lambda-runtimes.html). Lambda's 3.11 runs on Amazon
Linux 2, whose glibc 2.26 is older than the wheels of numpy and onnxruntime need."""
PIP_SECONDS = 600.0
"""Longest wait for pip."""


@dataclass(frozen=True)
class Target:
    """The platform on which the functions run."""

    architecture: str = "x86_64"
    """``x86_64`` or ``arm64``."""
    python: str = ""
    """E.g. ``3.12``; empty: this interpreter's version, where Lambda has it."""

    def __post_init__(self) -> None:
        if self.architecture not in MACHINES:
            raise BadInputError(f"architecture must be x86_64 or arm64, not {self.architecture!r}")
        if not self.python:
            own = own_python()
            object.__setattr__(self, "python", own if own in PYTHONS else PYTHONS[0])
        if self.python not in PYTHONS:
            raise BadInputError(
                f"functions cannot run Python {self.python!r}: numpy and onnxruntime need Lambda's "
                f"runtimes on Amazon Linux 2023; choose {', '.join(PYTHONS[:-1])} or {PYTHONS[-1]}"
            )

    @property
    def runtime(self) -> str:
        """Lambda's name of it."""
        return f"python{self.python}"


def own_python() -> str:
    """This interpreter's version, e.g. ``3.12``."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True)
class StandIn:
    """What runs functions where a server on this machine stands in for AWS: this very Python,
    whatever their runtime says."""

    python: str | None = None
    """None: it is AWS."""
    machine: str | None = None

    @classmethod
    def of_environment(cls) -> StandIn:
        host = urlsplit(os.environ.get("AWS_ENDPOINT_URL", "")).hostname
        if host not in ("127.0.0.1", "localhost", "::1"):
            return cls()
        names = {wheels: ours for ours, wheels in MACHINES.items()}
        return cls(own_python(), names.get(platform.machine()))


def pins(package: str) -> list[str]:
    """The pinned requirements of a package (``worker``, ``control``), all of them."""
    text = resources.files("perseid.aws.deploy").joinpath(f"data/{package}.txt").read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def fetch(
    requirements: Sequence[str], architecture: str, python: str, cache: Path | None = None
) -> Path:
    """A folder with these wheels unpacked; kept in `cache`, so the second time costs nothing.

    Raises
    ------
    BadInputError
        There is no wheel of a requirement for the target.
    NotInstalledError
        This Python has no pip.
    """
    cache = cache or default_cache() / "wheels"
    said = "\n".join([python, architecture, *requirements])
    folder = cache / hashlib.sha256(said.encode()).hexdigest()[:24]
    if folder.is_dir():
        return folder
    if not requirements:
        return _empty(folder)
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{cache} cannot be made: {error.strerror}; set XDG_CACHE_HOME"
        ) from None
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        fresh = Path(temporary) / "wheels"
        _pip(requirements, architecture, python, fresh)
        try:
            # Renamed when complete: a folder of this name always holds all its wheels.
            fresh.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    return folder


def default_cache() -> Path:
    """Folder that caches downloaded wheels: ``$XDG_CACHE_HOME/perseid``."""
    chosen = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    if chosen.startswith("~"):
        raise BadInputError(
            "there is no home folder to keep packages in: set HOME, or XDG_CACHE_HOME"
        )
    return Path(chosen) / "perseid"


def _empty(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _pip(requirements: Sequence[str], architecture: str, python: str, folder: Path) -> None:
    machine = MACHINES[architecture]
    # pip compares tags as text: that glibc 2.34 runs what was built for 2.28 has to be spelled out.
    tags = [f"manylinux2014_{machine}"]
    tags += [f"manylinux_2_{minor}_{machine}" for minor in range(GLIBC_OLDEST, GLIBC_NEWEST + 1)]
    command = [
        sys.executable,
        "-P",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    command += ["--no-input", "--no-deps", "--no-compile", "--only-binary=:all:"]
    command += ["--target", str(folder), "--implementation", "cp"]
    command += ["--python-version", python]
    command += [word for tag in tags for word in ("--platform", tag)]
    try:
        done = subprocess.run(
            [*command, *requirements], capture_output=True, text=True, timeout=PIP_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise BadInputError(
            f"pip took more than {PIP_SECONDS:g} s: is the package index slow?"
        ) from None
    if done.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        if "No module named pip" in done.stderr:
            raise NotInstalledError(
                "packaging needs pip, which this Python has not: python -m ensurepip, or "
                "`uv pip install pip`"
            )
        last = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise BadInputError(
            f"pip found no wheels for Python {python} on {architecture}: "
            f"{'; '.join(last) or done.stderr.strip()[-500:]}"
        )
