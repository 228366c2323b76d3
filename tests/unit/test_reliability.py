"""The page of faults names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text()
FIRST_CONTACT = (ROOT / "docs" / "reference" / "aws-first-contact.md").read_text()


def test_every_test_that_the_page_names_exists():
    files = list((ROOT / "tests").rglob("*.py"))
    functions = set(re.findall(r"^ *def (test_\w+)", "\n".join(f.read_text() for f in files), re.M))
    named = set(re.findall(r"`(test_\w+)(?:\[\w+\])?`", PAGE + FIRST_CONTACT))
    assert len(named) > 60
    assert named - functions == set()


def test_every_file_that_the_page_names_exists():
    paths = set(re.findall(r"`(tests/[\w./]+|test_\w+\.py)`", PAGE))
    files = {path.name for path in (ROOT / "tests").rglob("*.py")}
    assert len(paths) > 5
    assert [p for p in paths if not (ROOT / p).exists() and p not in files] == []


def test_every_row_names_a_test():
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and "---" not in line]
    faults = [line for line in rows if not line.startswith("| fault |")]
    assert len(faults) > 40
    assert [line for line in faults if "test" not in line.split("|")[2]] == []


def test_every_row_of_a_first_use_of_aws_is_tested_or_open():
    rows = re.findall(r"^\| (\d+) \|.*\|.*\| (.+) \|$", FIRST_CONTACT, re.M)
    assert [int(number) for number, _ in rows] == list(range(1, 30))
    assert [n for n, tests in rows if tests != "open" and "`test_" not in tests] == []
