"""docs/reference/cli.md and the docs' contents are what the program and the folder have."""

import argparse
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

from perseid.cli import COMMANDS, main, make_parser

ROOT = Path(__file__).parents[2]
NO_REPORT = {
    "aws destroy": "removes what a deployment made",
    "aws policy": "prints a policy, which is JSON",
    "comm certificate": "writes a certificate",
    "comm run": "runs a program; what it prints is the program's own",
    "completion": "prints a script for the shell",
    "demo": "runs other commands, which report",
    "fmi-run": "runs a program; what it prints is the program's own",
    "help": "prints the help of a command",
    "model describe": "writes a signature, which is JSON",
    "model export": "writes a file",
    "model import": "writes a file",
    "rendezvous key": "prints one key",
    "rendezvous serve": "a server",
}
"""Commands that report nothing, and what they do instead; all others have ``--json``."""


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


def _without_subcommands(
    parser: argparse.ArgumentParser, *path: str
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not below:
        yield " ".join(path), parser
    for action in below:
        for name, sub in action.choices.items():
            yield from _without_subcommands(sub, *path, name)


def test_every_command_that_reports_has_json():
    found = {
        name: any("--json" in action.option_strings for action in parser._actions)
        for name, parser in _without_subcommands(make_parser(COMMANDS))
    }
    assert len(found) > len(COMMANDS)
    assert {name for name, has in found.items() if not has} == set(NO_REPORT)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("run --wrold-size 2", "--wrold-size (did you mean --world-size?); see `perseid run -"),
        ("aws deploy --bukcet=b", "(did you mean --bucket?); see `perseid aws deploy -"),
        ("comm bench --nothing-like-it", "--nothing-like-it; see `perseid comm bench -"),
        ("rnu", "(did you mean run?); see `perseid --help`"),
        ("run --precision int9", "(did you mean int8?); see `perseid run --help`"),
        ("help tabel", "(did you mean table?); see `perseid --help`"),
    ],
)  # fmt: skip
def test_a_typing_error_gets_the_word_that_was_meant_and_the_help_of_its_command(
    words, said, capsys
):
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_the_shell_completes_the_commands_of_help():
    words = next(one for one in make_parser(["help"])._actions if one.dest == "command")
    help_of = next(one for one in words.choices["help"]._actions if one.dest == "words")
    assert "table" in list(help_of.choices)
    assert "aws deploy" not in list(help_of.choices)
