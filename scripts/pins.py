"""Raise the pinned versions: `python scripts/pins.py` writes the newest that fit together.

`constraints.txt` holds every version that `make demo`, `make test` and CI install. The packages of
the AWS functions (`src/perseid/aws/deploy/data/*.txt`) hold the same versions of what they need.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
PACKAGES = sorted((ROOT / "src/perseid/aws/deploy/data").glob("*.txt"))
EXTRAS = "dev,fuzz,bench"
OURS = {"perseid", "pip", "setuptools", "wheel"}
HEADER = """# Every version that `make demo`, `make test` and CI install; `make pins` raises them.
"""


def newest() -> dict[str, str]:
    """Name and version of all that an empty environment gets with perseid and its extras."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        pip = [str(Path(folder, "bin/python")), "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", f"{ROOT}[{EXTRAS}]"], check=True)
        listed = subprocess.run(
            [*pip, "list", "--format", "freeze"], check=True, capture_output=True, text=True
        ).stdout
    versions = dict(line.split("==") for line in listed.split())
    return {name: v.partition("+")[0] for name, v in versions.items() if name not in OURS}


def canonical(name: str) -> str:
    """PEP 503's form of a name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read(path: Path) -> dict[str, str]:
    """Canonical name and version of each pinned line of a file."""
    lines = (line.strip() for line in path.read_text().splitlines())
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonical(name): version for name, version in pairs}


def follow(path: Path, versions: dict[str, str]) -> None:
    """Give each pinned line of a package's file the version of the constraints."""

    def pinned(line: str) -> str:
        name, equals, version = line.partition("==")
        return name + equals + versions.get(canonical(name), version) if equals else line

    path.write_text("".join(f"{pinned(line)}\n" for line in path.read_text().splitlines()))


def main() -> int:
    """Write all files again."""
    versions = newest()
    lines = [f"{name}=={versions[name]}\n" for name in sorted(versions, key=canonical)]
    CONSTRAINTS.write_text(HEADER + "".join(lines))
    for path in PACKAGES:
        follow(path, read(CONSTRAINTS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
