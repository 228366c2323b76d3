"""``perseid survey info``: describe a survey, and what a model would use of it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from perseid.api.model import load_model
from perseid.api.survey import open_survey
from perseid.api.survey_info import SurveyInfo
from perseid.cli.awsarguments import add_storage_arguments
from perseid.cli.surveys import (
    Joined,
    add_columns_argument,
    add_layout_argument,
    print_notes,
)
from perseid.errors import StorageError
from perseid.plaintext import counted, one_line
from perseid.survey.names import check_known, column_names, parse_columns

SHOWN = 5
"""How many unreadable partitions are listed."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``perseid survey``."""
    what = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    info = what.add_parser("info", help="rows, images, columns, what a model would use")
    info.add_argument("data", metavar="URL", help="a survey: a file, a folder, a HATS catalogue")
    info.add_argument(
        "--model",
        metavar="URL",
        help="also show which columns this model would use and which it lacks",
    )
    info.add_argument(
        "--signature", metavar="FILE", help="signature of the model, if it has none itself"
    )
    info.add_argument("--fit", choices=("crop", "pad"), help="how to fit images of another size")
    add_columns_argument(info)
    add_layout_argument(info)
    info.add_argument(
        "--bands", metavar="NAME,...", action=Joined, help="names of its bands, in their order"
    )
    info.add_argument("--picture", metavar="FILE", type=Path, help="draw nine cutouts as a PNG")
    info.add_argument("--json", action="store_true", help="print it as JSON")
    add_storage_arguments(info)


def run(args: argparse.Namespace) -> int:
    """Print a description of the survey; exit status 1 if the model cannot be run over it."""
    names = parse_columns(args.columns) if args.columns else None
    survey = open_survey(args.data, columns=names, layout=args.layout, bands=args.bands)
    model = load_model(args.model, signature=args.signature) if args.model else None
    inputs = [one.column for one in model.signature.columns] if model else []
    check_known(column_names(names or {}), inputs)
    info = survey.info(model, fit=args.fit or "")
    if args.picture is not None:
        _write(args.picture, survey.picture())
    if args.json:
        print(json.dumps(asdict(info), indent=1))
    else:
        print_notes(info.notes)
        print("\n".join(_lines(info)))
    return 1 if info.model is not None and info.model.problem else 0


def _write(path: Path, picture: bytes) -> None:
    try:
        path.write_bytes(picture)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from error


def _lines(info: SurveyInfo) -> Iterator[str]:
    yield f"{info.url}"
    formats = ", ".join(suffix.lstrip(".") for suffix in info.formats)
    yield f"partitions  {info.partitions:,} ({formats}), {info.size / 1e6:,.1f} MB"
    yield f"rows        {info.rows:,}"
    bands, height, width = info.shape
    named = f" ({', '.join(info.bands)})" if info.bands else ""
    last = ", the bands last in the file" if info.channels_last else ""
    images = (
        f"{counted(bands, 'band')}{named} of {height} x {width} pixels{last}" if height else "none"
    )
    # Lists of no rows have no length, and count as 1.
    if not info.rows and info.shape == (1, 1, 1):
        images = "not known, since there are no rows"
    yield f"images      {images}"
    for name, source in info.sources.items():
        count = f", {info.magnitudes} a row" if name == "magnitude" else ""
        yield f"{name:<11} {one_line(source)}{count}"
    yield f"missing     {', '.join(info.missing) or 'nothing'}"
    if info.columns:  # the tensors of a .pt file have no names
        yield "columns"
    for spec in info.columns:
        kind = _type(spec.stored or spec.kind, spec.shape)
        about = ", ".join(one for one in (kind, spec.unit, spec.ucd) if one)
        yield f"  {one_line(spec.source)}: {one_line(about)}"
    for key, error in list(info.unreadable.items())[:SHOWN]:
        yield f"unreadable  {one_line(key)}: {one_line(error)}"
    if len(info.unreadable) > SHOWN:
        yield f"            and {len(info.unreadable) - SHOWN} more"
    if info.model is not None:
        yield f"model       {one_line(info.model.name)}"
        for use in info.model.inputs:
            source = f"from {use.source}" if use.source else "missing"
            yield f"  {use.name}: {use.takes}, {one_line(source)}"
        yield (
            f"  {one_line(info.model.problem)}"
            if info.model.problem
            else "  it can be run over this survey"
        )


def _type(kind: str, shape: tuple[int, ...]) -> str:
    """A column's type in words; a length of 0 means that the file does not state it."""
    sizes = " x ".join(str(size) if size else "any" for size in shape)
    return f"{kind or 'not read'}{f' [{sizes}]' if sizes else ''}"
