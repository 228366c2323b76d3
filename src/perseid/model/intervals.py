"""Intervals around a model's redshifts, calibrated on objects that it was not trained on.

The method is split conformal prediction (Lei et al. 2018): the half width of an interval is a
quantile of the errors on a calibration set, in units of 1 + z, and the interval contains the
promised share of new objects from the same population, whatever the model. The widths lie beside
the model, in ``NAME.calibration.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perseid.errors import BadInputError, BadModelError, NotFoundError
from perseid.jsontext import parse_json
from perseid.model.files import BUILT_IN, DEFAULT
from perseid.model.outputs import Z_PRED, OutputColumn
from perseid.plaintext import counted, html_table, option
from perseid.science.distributions import conformal_width
from perseid.storage import Storage
from perseid.textfile import decode

LEVELS = (0.68, 0.95)
"""Probabilities of the intervals that are calibrated."""
BESIDE = ".calibration.json"
"""Suffix that turns a model's file name into that of its calibration."""
SHIPPED = f"{DEFAULT}.onnx{BESIDE}"
"""Path of the default model's calibration, in the package."""
SCHEMA = 1


@dataclass(frozen=True)
class IntervalCalibration:
    """Half widths of intervals around predicted redshifts.

    Examples
    --------
    >>> calibration = IntervalCalibration({0.68: 0.02}, objects=500, digest="sha256:0")
    >>> calibration.widths[0.68] * (1 + 0.5)
    0.03
    """

    widths: Mapping[float, float]
    """Half width divided by 1 + z_pred, by the probability of the interval."""
    objects: int
    """Number of objects in the calibration set."""
    digest: str
    """Digest of the calibrated model (`ModelIdentity.digest`)."""
    data: str = ""
    """Location of the calibration set, for information."""

    @classmethod
    def of(
        cls, z_pred: ArrayLike, z_spec: ArrayLike, digest: str, data: str = ""
    ) -> IntervalCalibration:
        """Calibrate on objects with known redshifts that the model was not trained on.

        Parameters
        ----------
        z_pred, z_spec
            (n,): predicted and true redshifts; rows in which one is not finite are skipped.

        Raises
        ------
        BadInputError
            There are too few objects for the intervals.
        """
        predicted, true = (np.asarray(z, np.float64) for z in (z_pred, z_spec))
        error = (true - predicted) / (1.0 + predicted)
        good = np.isfinite(error)
        widths = {level: conformal_width(error[good], level) for level in LEVELS}
        return cls(widths, int(good.sum()), digest, data)

    def _repr_html_(self) -> str:
        rows = [(f"{level:.0%}", f"{width:.4f} (1 + z)") for level, width in self.widths.items()]
        return html_table(("interval", f"half width, of {counted(self.objects, 'object')}"), rows)

    def to_json(self) -> str:
        """The JSON text of the calibration file."""
        plain = {
            "schema": SCHEMA,
            "model": self.digest,
            "objects": self.objects,
            "data": self.data,
            "half_width_over_1_plus_z": {f"{k:g}": width for k, width in self.widths.items()},
        }
        return json.dumps(plain, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> IntervalCalibration:
        """Parse a calibration file; raises `BadModelError` naming `where` if the text is not a
        calibration."""
        try:
            plain = parse_json(text if isinstance(text, str) else decode(text, "it"))
            given = plain["half_width_over_1_plus_z"]
            widths = {float(level): float(width) for level, width in given.items()}
            whole = all(0 < level < 1 and width > 0 for level, width in widths.items())
            if plain["schema"] != SCHEMA or not widths or not whole:
                raise ValueError("not of this version, or a width is not positive")
            return cls(widths, int(plain["objects"]), str(plain["model"]), str(plain["data"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadModelError(
                f"{where} is not a calibration ({error}): make it again by `perseid model "
                "calibrate`, "
                "or remove it"
            ) from error


def interval_columns(
    outputs: Sequence[OutputColumn], widths: Mapping[str, float] | None
) -> tuple[OutputColumn, ...]:
    """The columns of intervals around predicted redshifts.

    Empty if the model predicts no redshift, or gives intervals itself.

    Parameters
    ----------
    outputs
        The model's columns.
    widths
        Half width divided by 1 + z_pred; keys are probabilities as text.

    Examples
    --------
    >>> from perseid.model.outputs import Z_PRED
    >>> [one.name for one in interval_columns([Z_PRED], {"0.68": 0.01, "0.95": 0.02})]
    ['z_lo', 'z_hi', 'z_lo95', 'z_hi95']
    """
    predicted = next((one for one in outputs if one.name == Z_PRED.name), None)
    if predicted is None or not widths or any(one.name == "z_lo" for one in outputs):
        return ()
    return tuple(
        OutputColumn(
            name,
            "interval",
            predicted.output,
            ucd="stat.min;src.redshift" if lower else "stat.max;src.redshift",
            description=f"{'Lower' if lower else 'Upper'} end of the interval that holds the true "
            f"redshift with probability {float(level):g}",
            level=(1 - float(level)) / 2 if lower else (1 + float(level)) / 2,
        )
        for level in widths
        for name, lower in zip(_names(level), (True, False), strict=True)
    )


def interval_values(
    z_pred: NDArray[np.floating], widths: Mapping[str, float]
) -> dict[str, NDArray[np.float32]]:
    """The values of `interval_columns`, (n,) each, by name."""
    found: dict[str, NDArray[np.float32]] = {}
    for level, width in widths.items():
        half = np.float64(width) * (1.0 + z_pred.astype(np.float64))
        low, high = _names(level)
        found[low] = (z_pred - half).astype(np.float32)
        found[high] = (z_pred + half).astype(np.float32)
    return found


def _names(level: str) -> tuple[str, str]:
    """Names of an interval's columns; those of the 68 % interval have no suffix."""
    percent = "" if level == "0.68" else f"{100 * float(level):g}".replace(".", "p")
    return f"z_lo{percent}", f"z_hi{percent}"


def calibration_place(model_url: str) -> str:
    """Path or URL of the calibration file beside a model; raises `BadInputError` for models in the
    package."""
    if model_url in BUILT_IN:
        raise BadInputError(
            f"the model {model_url} lies in the package: name another place by {option('to')}"
        )
    return f"{model_url}{BESIDE}"


def read_calibration(model_url: str) -> IntervalCalibration | None:
    """The calibration that lies beside a model; None if there is none.

    Raises
    ------
    BadModelError
        The file is not a calibration.
    StorageError
        The store failed.
    """
    if model_url in BUILT_IN:
        file = resources.files("perseid.model") / "data" / SHIPPED
        if model_url != DEFAULT or not file.is_file():
            return None
        return IntervalCalibration.from_json(file.read_text(encoding="utf-8"), str(file))
    place = calibration_place(model_url)
    store, key = Storage.holding(place)
    try:
        return IntervalCalibration.from_json(store.get(key), store.where(key))
    except NotFoundError:
        return None
