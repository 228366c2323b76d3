"""``perseid model calibrate``: calibrated intervals around a model's redshifts."""

from __future__ import annotations

import argparse
import json

from perseid.api.calibrating import calibrate_model
from perseid.cli.request_options import add_request_options, given_options
from perseid.jsontext import parse_json
from perseid.model.intervals import calibration_place
from perseid.plaintext import counted

READ = ("columns", "layout", "bands", "fit", "precision", "signature", "model_path")
"""Keys of a request that determine how the survey is read and how the model computes."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``perseid model calibrate``."""
    parser.add_argument("model", metavar="MODEL", help="an ONNX file, or `default`")
    parser.add_argument(
        "data",
        metavar="SURVEY",
        help="objects with redshifts that the model was not trained on: a survey, or a finished "
        "run of this model over one",
    )
    parser.add_argument(
        "--to",
        metavar="FILE",
        help="write here instead of next to the model (MODEL.calibration.json)",
    )
    parser.add_argument("--json", action="store_true", help="print the calibration as JSON")
    add_request_options(parser, limits=False, only=READ)


def run(args: argparse.Namespace) -> int:
    """Calibrate, and print the intervals."""
    keys = {name: value for name, value in given_options(args).items() if name in READ}
    found = calibrate_model(args.model, args.data, to=args.to, progress=not args.json, **keys)
    if args.json:
        print(json.dumps(parse_json(found.to_json())))
        return 0
    print(
        f"calibration {args.to or calibration_place(args.model)}: "
        f"{counted(found.objects, 'object')}"
    )
    for level, width in found.widths.items():
        print(f"{level:.0%} of true redshifts within {width:.4g} (1 + z) of the predicted one")
    return 0
