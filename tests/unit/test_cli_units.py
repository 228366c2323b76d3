"""Sizes and times of options take units; a bare number keeps today's."""

from __future__ import annotations

import argparse
import re

import pytest

from perseid.cli import COMMANDS, main, make_parser, units
from perseid.cli.request_options import add_request_options, given_options
from perseid.pipeline.request import RunRequest
from perseid.pipeline.request_keys import KEYS


@pytest.mark.parametrize(
    ("text", "size"),
    [("1769", 1769), ("2GB", 2048), ("2 gb", 2048), ("0.5GB", 512), ("512MB", 512), ("1GiB", 1024)],
)
def test_memory(text, size):
    assert units.memory_mb(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("900", 900), ("10m", 600), ("2min", 120), ("1.5h", 5400), ("250ms", 0.25)],
)
def test_times(text, seconds):
    assert units.time_argument(text) == seconds


AMOUNT = re.compile(r"--.*(timeout|memory|tmp|wait|drain|deadline)$")


def _options(parser):
    for one in parser._actions:
        if isinstance(one, argparse._SubParsersAction):
            for below in one.choices.values():
                yield from _options(below)
        elif one.option_strings and one.nargs != 0 and AMOUNT.match(one.option_strings[-1]):
            yield one


def test_every_option_of_a_time_or_a_size_takes_units():
    found = {(one.option_strings[-1], one.type) for one in _options(make_parser(COMMANDS))}
    assert {"--drain", "--tmp", "--deadline", "--link-timeout"} <= {name for name, _ in found}
    for name, read in found:
        size = re.search("memory|tmp", name)
        text, value = ("2GB", 2048) if size else ("2min", 120)
        # Without a type the command itself parses it.
        assert (read or units.seconds)(text) == value, name


@pytest.mark.parametrize(
    "words",
    [
        ("--memory", "2XB"), ("--memory", "0"), ("--timeout", "soon"),
        ("--memory", "9" * 400 + "GB"), ("--timeout", "9" * 400 + "h"),
    ],
    ids=["unit", "none", "words", "digits", "hours"],
)  # fmt: skip
def test_what_is_none_names_the_option_and_an_example(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", "--data", "survey", *words])
    assert ended.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"perseid: {words[0]}: {words[1]!r} is not a ")
    assert said.endswith("see `perseid run --help`")
    assert "give one such as" in said


def test_the_options_of_a_run_are_the_keys_of_a_request():
    parser = argparse.ArgumentParser()
    for limits in (True, False):
        add_request_options(parser, limits=limits)
    with_option = {name: key.option for name, key in KEYS.items() if key.option is not None}
    assert {"data", "results", "model", "memory_mb", "tolerated_failures"} <= set(with_option)
    words = ["--memory", "2GB", "--timeout", "10m", "--precision", "int8", "--world-size", "3"]
    args = parser.parse_args([*words, "--data", "d", "--out", "r"])
    request = RunRequest.parse(given_options(args))
    assert (request.memory_mb, request.timeout, request.world_size) == (2048, 600.0, 3)
    assert (request.precision, request.data, request.results) == ("int8", "d", "r")
