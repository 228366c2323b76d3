"""How well a redshift PDF agrees with the known redshift: PIT and CRPS of each object.

A PDF takes about a hundred numbers per object, too many for a catalogue unless the user requests
them. The statistics of the survey need only these two values.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perseid.model.outputs import ModelOutput, OutputColumn
from perseid.model.signature import ModelSignature
from perseid.science.distributions import Distributions

PIT, CRPS = "pit", "crps"
"""Kinds of the columns, and the suffixes of their names."""
REDSHIFT = "z"
ADDED = ("z_lo", "z_hi", "z_lo95", "z_hi95", "z_pit", "z_crps")
"""Column names that a run may add to those of the model; carried columns must not use them."""


def check_columns(signature: ModelSignature) -> tuple[OutputColumn, ...]:
    """The columns added for a model with a redshift PDF; none for other models."""
    output = _pdf(signature)
    if output is None:
        return ()
    return (
        OutputColumn(f"{REDSHIFT}_{PIT}", PIT, output.name, ucd="stat.probability",
                     description="Predicted probability of redshifts below the spectroscopic one"),
        OutputColumn(f"{REDSHIFT}_{CRPS}", CRPS, output.name, ucd="stat.fit.residual",
                     description="Continuous ranked probability score of the predicted redshift "
                     "distribution"),
    )  # fmt: skip


def check_values(
    signature: ModelSignature,
    lists: Mapping[str, NDArray[np.float32]],
    redshift: ArrayLike | None,
) -> dict[str, NDArray[np.float32]]:
    """The values of `check_columns`, (n,) each; NaN where the redshift is not known.

    Parameters
    ----------
    signature
        Signature of the model.
    lists
        The model's PDFs, as in `Prediction.lists`.
    redshift
        (n,): spectroscopic redshifts; None if the partition has none.
    """
    output = _pdf(signature)
    if output is None:
        return {}
    p = lists[output.list_column().name]
    if redshift is None:
        pit = crps = np.full(len(p), np.nan)
    else:
        make = Distributions.of_bins if output.bins else Distributions.of_density
        predicted = make(np.where(np.isfinite(p), p, 0.0), output.grid)
        pit, crps = predicted.pit(redshift), predicted.crps(redshift)
    return {
        f"{REDSHIFT}_{PIT}": pit.astype(np.float32),
        f"{REDSHIFT}_{CRPS}": crps.astype(np.float32),
    }


def _pdf(signature: ModelSignature) -> ModelOutput | None:
    found = (one for one in signature.outputs if one.kind == "pdf" and one.of == REDSHIFT)
    return next(found, None)
