"""Everything that any extra installs may be used beside Apache-2.0 code."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PERMISSIVE = re.compile(
    r"""\b(apache|bsd|0bsd|mit|mit-0|mit-cmu|psf|python\ software\ foundation|isc|zlib|cc0|bsl|afl
    |cnri|mpl|mozilla\ public\ license|openmpi|public\ domain|dfsg\ approved|osi\ approved)\b""",
    re.IGNORECASE | re.VERBOSE,
)
"""Words of licenses that set no conditions on what is used beside them."""
STATED_ELSEWHERE = {
    "resvg_py": "MIT, in its license file",
    "yattag": "LGPL-2.1; part of the tool that makes mutants, never shipped",
    "atheris": "Apache-2.0, in its repository; a fuzzer that is never shipped",
    "resvg-py": "MIT, in its LICENSE file; draws SVG in the tests",
    "axe-playwright-python": "MIT, in its LICENSE file; carries axe-core (MPL-2.0) into the tests",
}
"""Packages whose metadata name no license, and where it is found."""


def pinned() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line.partition("==")[0] for line in lines if "==" in line]


def stated(name: str) -> str:
    """What a package's metadata say of its license."""
    metadata = importlib.metadata.metadata(name)
    classifiers = metadata.get_all("Classifier") or []
    listed = [line.split(" :: ")[-1] for line in classifiers if line.startswith("License ::")]
    text = metadata.get("License-Expression") or "; ".join(listed) or metadata.get("License") or ""
    return text.splitlines()[0] if text else ""


def test_licenses_of_all_extras():
    unknown, seen = {}, 0
    for name in pinned():
        try:
            text = stated(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of an extra that is not installed here
        seen += 1
        if not PERMISSIVE.search(text) and name not in STATED_ELSEWHERE:
            unknown[name] = text
    assert seen > 80
    assert unknown == {}


def test_a_copyleft_license_would_be_seen():
    assert not PERMISSIVE.search("GPL-3.0-or-later")
    assert not PERMISSIVE.search("GNU Affero General Public License v3")


def test_shipped_data_have_a_notice():
    notice = (ROOT / "NOTICE").read_text()
    for name in ("mlz", "kcorrect", "SDSS", "AstroMAE"):
        assert name in notice
    shipped = [p for p in (ROOT / "src").rglob("data/*") if p.suffix in {".npz", ".onnx"}]
    assert len(shipped) == 3
    assert [path.name for path in shipped if path.name not in notice] == []
