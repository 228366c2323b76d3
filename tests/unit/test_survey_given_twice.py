"""What is given twice is refused or counts twice; the later never replaces the earlier unseen."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from perseid.aws.deploy.tags import check_tags
from perseid.cli.request_options import add_request_options, given_options
from perseid.cli.run import plain_of
from perseid.cli.surveys import add_columns_argument, add_missing_argument
from perseid.errors import BadInputError
from perseid.survey.missing import MissingValues, parse_options
from perseid.survey.names import column_names, parse_columns

TWICE: dict[str, tuple[Callable[[], object], str]] = {
    "missing options": (lambda: parse_options(["redshift=-1", "redshift=-9"]), "redshift"),
    "missing, spelled otherwise": (lambda: parse_options(["redshift=-1", "Redshifts=none"]),
                                   "redshift"),
    "missing of a request": (lambda: MissingValues.of({"magnitude": 99, "magnitudes": "none"}),
                             "magnitude"),
    "columns option": (lambda: parse_columns("image=a,image=b"), "image"),
    "columns of a request": (lambda: column_names({"image": "a", "images": "b"}), "image"),
    "tags": (lambda: check_tags(["Owner=me", "Project=x", "Owner=you"]), "Owner"),
}  # fmt: skip


@pytest.mark.parametrize("what", TWICE)
def test_one_thing_with_two_values_is_refused(what: str) -> None:
    parse, name = TWICE[what]
    with pytest.raises(BadInputError, match=rf"{name}.*(twice|more than one|more than once)"):
        parse()


def test_lists_of_a_repeated_option_are_joined() -> None:
    parser = argparse.ArgumentParser()
    add_request_options(parser, limits=False)
    add_columns_argument(parser)
    words = ["--keep", "a,b", "--keep", "c", "--bands", "u", "--bands", "g,r"]
    args = parser.parse_args([*words, "--columns", "image=a", "--columns", "label=b,redshift=z"])
    given = given_options(args)
    assert (given["keep"], given["bands"]) == ("a,b,c", "u,g,r")
    assert parse_columns(args.columns) == {"image": "a", "label": "b", "redshift": "z"}


def test_an_option_replaces_what_the_request_says_of_the_same_column(tmp_path: Path) -> None:
    """However either spells it; what the request says of other columns stays."""
    said = {
        "data": "d",
        "columns": {"images": "a", "label": "l"},
        "missing": {"Magnitudes": "none", "redshift": [-1]},
    }
    request = tmp_path / "request.json"
    request.write_text(json.dumps(said))
    parser = argparse.ArgumentParser()
    parser.add_argument("request", type=Path)
    add_request_options(parser, limits=False)
    add_columns_argument(parser)
    add_missing_argument(parser)
    options = ["--columns", "image=b", "--missing", "magnitude=99"]
    got = plain_of(parser.parse_args([str(request), *options]))
    assert got["columns"] == {"label": "l", "image": "b"}
    assert got["missing"] == {"redshift": [-1], "magnitude": "99"}
