"""Write docs/reference/cli.md from the command line's own parser; a test compares the two."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from perseid.cli import COMMANDS, make_parser

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "cli.md"
HEAD = """# The command line

`perseid COMMAND --help` says the same; `python -m perseid` is the same program. This page is made
by `scripts/cli_reference.py`.

| exit status | meaning |
| --- | --- |
| 0 | done; a run is complete |
| 1 | `perseid ping` and `perseid aws doctor`: something does not work, and the sentence says what |
| 2 | bad input, or something in the way: one sentence on stderr says what and what to do |
| 3 | a run is incomplete: its missing ranks and partitions are named |
| 130 | stopped by Ctrl-C |

Places are paths, `file://` or `s3://bucket/prefix` URLs. Where credentials, region and server come
from, and what a refusal means: [Storage](storage.md).
"""


def page() -> str:
    """The whole page."""
    commands = _subcommands(make_parser(COMMANDS))
    assert commands is not None
    parts = [HEAD]
    for name, parser in commands.choices.items():
        parts += _section(f"perseid {name}", COMMANDS[name], parser, level=2)
    return "\n".join(parts)


def _section(title: str, text: str, parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    yield f"{'#' * level} {title}\n\n{text[:1].upper()}{text[1:]}.\n"
    rows = [f"| {_name(action)} | {_meaning(action)} |" for action in _shown(parser)]
    if rows:
        yield "\n".join(("| argument | meaning |", "| --- | --- |", *rows)) + "\n"
    below = _subcommands(parser)
    if below is None:
        return
    lines = {action.dest: action.help or "" for action in below._choices_actions}
    for name, inner in below.choices.items():
        yield from _section(f"{title} {name}", lines.get(name, ""), inner, level + 1)


def _subcommands(parser: argparse.ArgumentParser) -> argparse._SubParsersAction | None:
    actions = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return next(actions, None)


def _shown(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    hidden = (argparse._HelpAction, argparse._SubParsersAction)
    return (a for a in parser._actions if not isinstance(a, hidden))


def _name(action: argparse.Action) -> str:
    value = _value(action).replace("|", "\\|")
    if not action.option_strings:
        optional = action.nargs in ("?", "*")
        return f"`[{value}]`" if optional else f"`{value}`"
    return f"`{', '.join(action.option_strings)}{' ' * bool(value)}{value}`"


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.nargs == argparse.REMAINDER:
        return "..."
    if action.metavar is None and action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    default = action.dest.upper() if action.option_strings else action.dest
    value = action.metavar if isinstance(action.metavar, str) else default
    return value + " ..." * (action.nargs in ("+", "*"))


def _meaning(action: argparse.Action) -> str:
    words = (action.help or "") % vars(action)
    if action.option_strings and action.required:
        words += " (required)"
    elif not words and isinstance(action.default, str | float | int):
        words = f"default {action.default}"
    return words.strip().replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
