"""Wheels of pinned versions for another platform, downloaded by pip, without Docker or a build."""

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
"""Minor versions of glibc whose wheels run on Amazon Linux 2023, which has 2.34. Each is named
because pip compares tags literally (https://peps.python.org/pep-0600/)."""
MACHINES = {"x86_64": "x86_64", "arm64": "aarch64"}
"""Names of the architectures, as Lambda's and as the wheels'."""
PYTHONS = ("3.12", "3.13", "3.14")
"""Python versions of Lambda's runtimes on Amazon Linux 2023; the first is used if this
interpreter's is not among them (https://docs.aws.amazon.com/lambda/latest/dg/lambda-runtimes.html).
Lambda's 3.11 runs on Amazon Linux 2, whose glibc 2.26 is too old for the wheels of numpy and
onnxruntime."""
PIP_SECONDS = 600.0
"""Longest time that pip may take, in seconds."""


@dataclass(frozen=True)
class Target:
    """The platform on which the functions run."""

    architecture: str = "x86_64"
    """Architecture, ``x86_64`` or ``arm64``."""
    python: str = ""
    """Python version, e.g. ``3.12``; if empty, this interpreter's version, provided that Lambda has
    it."""

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
        """Lambda's name of the runtime."""
        return f"python{self.python}"


def own_python() -> str:
    """The version of this interpreter, e.g. ``3.12``."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True)
class StandIn:
    """The interpreter that runs functions if a server on this machine stands in for AWS: this very
    Python, regardless of their runtime."""

    python: str | None = None
    """Version of the interpreter; None if the service is AWS itself."""
    machine: str | None = None

    @classmethod
    def of_environment(cls) -> StandIn:
        host = urlsplit(os.environ.get("AWS_ENDPOINT_URL", "")).hostname
        if host not in ("127.0.0.1", "localhost", "::1"):
            return cls()
        names = {wheels: ours for ours, wheels in MACHINES.items()}
        return cls(own_python(), names.get(platform.machine()))


def pins(package: str) -> list[str]:
    """All pinned requirements of a package (``worker`` or ``control``)."""
    text = resources.files("perseid.aws.deploy").joinpath(f"data/{package}.txt").read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def fetch(
    requirements: Sequence[str], architecture: str, python: str, cache: Path | None = None
) -> Path:
    """A folder with the unpacked wheels, which is kept in `cache` and reused.

    Raises
    ------
    BadInputError
        A requirement has no wheel for the target.
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
            # Renamed when complete, so that a folder with this name always holds all its wheels.
            fresh.rename(folder)
        except OSError:
            if not folder.is_dir():  # if it fails, another process was faster
                raise
    return folder


def default_cache() -> Path:
    """The folder that caches downloaded wheels: ``$XDG_CACHE_HOME/perseid``."""
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
    # pip compares tags as text, so every glibc whose wheels run on 2.34 must be listed.
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
