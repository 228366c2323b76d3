"""One set of pinned versions: for the tests, the demo, CI and the packages of AWS's functions."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("pins", ROOT / "scripts" / "pins.py")
pins = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pins)


@pytest.mark.parametrize("path", pins.PACKAGES, ids=lambda path: path.stem)
def test_the_functions_packages_hold_the_same_versions(path):
    constraints = pins.read(pins.CONSTRAINTS)
    found = pins.read(path)
    assert found
    assert {name: constraints.get(name) for name in found} == found


def test_what_is_installed_here_is_what_is_pinned():
    constraints = pins.read(pins.CONSTRAINTS)
    different = {}
    for name, wanted in constraints.items():
        try:
            version = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue  # of an extra that these tests do not need
        if version != wanted:
            different[name] = (version, wanted)
    assert different == {}, "rm -r .venv, then make test; `make pins` raises the versions"


def test_every_direct_dependency_is_pinned():
    constraints = pins.read(pins.CONSTRAINTS)
    required = importlib.metadata.requires("perseid") or []
    names = {pins.canonical(re.match(r"[\w.-]+", line).group()) for line in required}
    assert len(names) > 10
    assert names - {"perseid"} <= set(constraints)
