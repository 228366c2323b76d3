"""docs/reference/cli.md and the docs' contents are what the program and the folder have."""

import runpy
from pathlib import Path

import pytest

from perseid.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_parser_says():
    made = runpy.run_path(str(ROOT / "scripts" / "cli_reference.py"))
    assert made["PAGE"].read_text(encoding="utf-8") == made["page"](), (
        "run python scripts/cli_reference.py"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: perseid {command}" in capsys.readouterr().out


@pytest.mark.parametrize("contents", ["mkdocs.yml", "docs/index.md"])
def test_every_page_is_in_the_contents(contents):
    text = (ROOT / contents).read_text(encoding="utf-8")
    pages = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    assert sorted(page for page in pages - {"index.md"} if page not in text) == []
