"""Phrases that a reader has to puzzle over do not come back: each has a plain form."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
THING = "row|rank|object|file|run|worker|band|partition|column|class|group|request|message|step"

CLIPPED = {
    r"\b(None|empty) where (there|it|the|they|no|none|nothing|this|a|an)\b": "say 'if'",
    rf"\b(one|rows|bytes|line|lines|files|values|numbers) an? ({THING})\b(?! (may|has|holds|it))": (
        "say 'per'"
    ),
    r"\b(rows|objects|registrations) a second\b": "say 'per second'",
    r"\b(if|where) (it|a \w+|the [a-z ]+) is none\b": "say what it is not",
    r"\banew\b": "say 'again'",
    r"\bnobody asked\b": "say what is discarded, and why",
    r"\blest\b": "say 'so that … not'",
    r"\bprocess stands by\b": "say 'waits'",
    r"\bto the bit\b": "say 'bit for bit'",
    r"\b(so|as) many as wished\b": "say how many",
    r"\ba (first )?look (at|whether)\b": "say 'inspect' or 'check'",
    r"\bcame of (it|the run|a run)\b": "say 'outcome' or 'result'",
    r"\bwhat is missing of\b": "say 'what is missing from'",
}
"""Clipped phrase, and what to write instead."""


@cache
def texts() -> dict[str, list[str]]:
    """The lines of every file that people read, by its path."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    paths = [*(ROOT / "src").rglob("*.py"), *pages]
    return {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").splitlines()
        for path in sorted(paths)
    }


@pytest.mark.parametrize("phrase", CLIPPED, ids=lambda phrase: CLIPPED[phrase])
def test_no_clipped_phrase_is_left(phrase: str) -> None:
    clipped = re.compile(phrase)
    found = [
        f"{path}:{number}: {line.strip()}"
        for path, lines in texts().items()
        for number, line in enumerate(lines, start=1)
        if clipped.search(line)
    ]
    assert not found, f"{CLIPPED[phrase]}:\n" + "\n".join(found)
