"""``perseid model``: import, export, check and describe model files."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from perseid.cli import calibrate_intervals
from perseid.cli.awsarguments import add_storage_arguments
from perseid.jsontext import parse_json
from perseid.plaintext import counted

if TYPE_CHECKING:
    from perseid.model.runtime import ModelRuntime
    from perseid.survey.cutouts import Cutouts

CHECK_ROWS = 20_000
"""Most rows of a survey that a check uses."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of ``perseid model``."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    taken = commands.add_parser("import", help="take the weights out of a published checkpoint")
    taken.add_argument("file", metavar="FILE", help="a pickled module or a state_dict (.pt, .pth)")
    taken.add_argument("out", metavar="OUT", help="the weight file to write (.npz)")
    export = commands.add_parser("export", help="write the ONNX file that workers load")
    export.add_argument("weights", metavar="WEIGHTS", help="a weight file (.npz)")
    export.add_argument("out", metavar="OUT", help="the model to write (.onnx)")
    export.add_argument(
        "--int8", action="store_true", help="also write OUT's int8 form, NAME.int8.onnx"
    )
    export.add_argument(
        "--calibrate", metavar="SURVEY", help="cutouts whose first rows set the int8 ranges"
    )
    export.add_argument(
        "--check",
        metavar="SURVEY",
        help="print what int8 changes on these cutouts: MAE, NMAD, anomaly ranks",
    )
    info = commands.add_parser("info", help="print what a model takes and gives")
    info.add_argument("model", metavar="MODEL", help="an ONNX file, or `default`")
    info.add_argument("--json", action="store_true", help="print it as JSON")
    describe = commands.add_parser(
        "describe", help="write a model's signature beside it: what it takes and gives"
    )
    describe.add_argument("model", metavar="FILE", help="an ONNX file; it is not changed")
    describe.add_argument(
        "--yes", action="store_true", help="take the proposal as it is, without questions"
    )
    calibrate = commands.add_parser(
        "calibrate", help="intervals around redshifts, from objects that were not trained on"
    )
    calibrate_intervals.configure(calibrate)
    for sub in (taken, export, info, describe, calibrate):
        add_storage_arguments(sub)


def run(args: argparse.Namespace) -> int:
    """Run one subcommand."""
    if args.action == "import":
        return _import(args)
    if args.action == "export":
        return _export(args)
    if args.action == "describe":
        from perseid.cli.describe import describe

        return describe(args)
    if args.action == "calibrate":
        return calibrate_intervals.run(args)
    return _info(args)


def _import(args: argparse.Namespace) -> int:
    from perseid.model.export.importer import import_checkpoint
    from perseid.model.weights import save_weights

    found = import_checkpoint(args.file)
    save_weights(found.weights, args.out)
    count = found.weights.parameters()
    print(f"{args.out}: {count:,} parameters of {found.weights.config.name} from a {found.kind}")
    if found.classes:
        print(f"classes named in the file (none of their code was run): {', '.join(found.classes)}")
    return 0


def _export(args: argparse.Namespace) -> int:
    from perseid.errors import BadInputError
    from perseid.model.export.exporter import export_int8, export_model

    if args.int8 and not (args.calibrate or args.check):
        raise BadInputError(
            "--int8 needs --calibrate SURVEY: its rows set the ranges of the integers"
        )
    signature = export_model(args.weights, args.out)
    groups = ", ".join(f"{n} ({w})" for n, w in signature.feature_groups.items()) or "no features"
    print(f"{args.out}: {signature.name}, redshift and {groups}")
    if args.int8:
        survey = _cutouts(args.calibrate or args.check)
        print(f"{export_int8(args.weights, args.out, survey)}: int8 encoder")
    if args.check:
        _check(args.out, _cutouts(args.check))
    return 0


def _check(model: str, survey: Cutouts) -> None:
    from perseid.model.export.compare import compare
    from perseid.model.runtime import ModelRuntime

    before = ModelRuntime.load(model)
    after = ModelRuntime.load(model, precision="int8")
    if after.note:
        print(f"no int8 check: {after.note}")
        return
    change = compare(before, after, survey)
    print(
        f"int8 against float32 on {counted(change.rows, 'row')}: largest |dz| {change.largest:.2e}"
    )
    for name, pair in (("MAE", change.mae), ("NMAD", change.nmad)):
        if pair is not None:
            print(f"  {name:5} {pair[0]:.5f} -> {pair[1]:.5f} ({pair[1] - pair[0]:+.5f})")
    if change.spearman is not None and change.top is not None:
        print(f"  anomaly ranks: Spearman {change.spearman:.5f}, {change.top:.0%} of the top stay")


def _info(args: argparse.Namespace) -> int:
    from perseid.model.inputs import MAGNITUDE
    from perseid.model.runtime import ModelRuntime
    from perseid.model.signature_files import signature_beside

    given = signature_beside(args.model)
    runtime: ModelRuntime = ModelRuntime.load(args.model, signature=given)
    s = runtime.signature
    if args.json:
        more = {"micro_batch": runtime.micro_batch, "threads": runtime.threads}
        print(json.dumps(parse_json(s.to_json()) | more))
        return 0
    groups = ", ".join(f"{n} ({w})" for n, w in s.feature_groups.items()) or "none"
    taken = (
        [f"images of {counted(s.bands, 'band')}, {s.height} x {s.width} pixels"] if s.bands else []
    )
    taken += [f"the column {column.column}" for column in s.columns if column.column != MAGNITUDE]
    taken += ["magnitudes"] if s.takes_magnitudes else []
    print(f"{s.name}: {s.precision}, {', '.join(taken)}")
    print(f"bands: {' '.join(s.band_names) or 'not named'}; features: {groups}")
    print(f"columns: {', '.join(column.name for column in s.output_columns()) or 'none'}")
    print(
        f"micro-batch {counted(runtime.micro_batch, 'row')}, {counted(runtime.threads, 'thread')}"
    )
    return 0


def _cutouts(url: str) -> Cutouts:
    """Read the first rows of a file of cutouts, or of a folder's files in natural order."""
    from perseid.cli.surveys import found
    from perseid.storage import Storage
    from perseid.survey import MissingValues, open_partition

    listing = found(url)
    store = Storage(listing.location)
    parts: list[Cutouts] = []
    for partition in listing.partitions:
        with open_partition(store, partition.key, MissingValues()) as reader:
            parts.append(reader.read()[: CHECK_ROWS - sum(map(len, parts))])
        if sum(map(len, parts)) >= CHECK_ROWS:
            break
    return _joined(parts)


def _joined(parts: list[Cutouts]) -> Cutouts:
    """Join cutouts; the result has redshifts only if every part has them."""
    import numpy as np

    from perseid.survey.cutouts import Cutouts

    known = [part.redshift for part in parts if part.redshift is not None]
    return Cutouts(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.needed_magnitudes() for part in parts]),
        np.concatenate(known) if len(known) == len(parts) else None,
    )
