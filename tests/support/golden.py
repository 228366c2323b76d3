"""Runs that version 0.1.0 left, put into a folder of a test's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import obstore
from obstore.store import LocalStore

SOURCE = Path(__file__).parents[1] / "data" / "golden"
PLACE = "/golden"
"""Where the runs were made; their files name it."""


def golden(folder: Path) -> Path:
    """Copy all golden runs into `folder`, as if they had been made there; return `folder`.

    Etags of partitions on a disk hold the inode and the time of change, so the manifests and items
    get those of the copies.
    """
    shutil.copytree(SOURCE, folder, dirs_exist_ok=True)
    etags = _etags(SOURCE, folder)
    for path in folder.rglob("*.json"):
        text = path.read_text().replace(PLACE, str(folder))
        for old, new in etags.items():
            text = text.replace(old, new)
        path.write_text(text)
    return folder


def _etags(source: Path, folder: Path) -> dict[str, str]:
    """Etag in the golden files -> etag of the copied partition, both as JSON has them."""
    found = {}
    for manifest in source.rglob("manifest.json"):
        written = json.loads(manifest.read_text())
        if not written["data_url"].startswith(f"file://{PLACE}/"):
            continue
        data = folder / written["data_url"].removeprefix(f"file://{PLACE}/")
        for part in written["partitions"]:
            etag = obstore.head(LocalStore(data), part["key"])["e_tag"]
            found[json.dumps(part["etag"])] = json.dumps(etag)
    return found
