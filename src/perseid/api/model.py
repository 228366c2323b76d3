"""A model as a Python object: what it takes and gives, and its predictions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perseid.model.identity import CPU
from perseid.model.loading import load_on
from perseid.model.runtime import DEFAULT, Prediction, Predictor
from perseid.model.signature import ModelSignature
from perseid.model.signature_files import signature_beside, signature_of
from perseid.pipeline.model_inputs import other_columns
from perseid.survey import Cutouts


class Model:
    """A loaded model; use one from one thread at a time. Made by `load_model`.

    Examples
    --------
    >>> model = perseid.load_model()
    >>> model.signature.bands, model.signature.height
    (5, 32)
    """

    def __init__(self, runtime: Predictor) -> None:
        self._runtime = runtime

    @property
    def signature(self) -> ModelSignature:
        """What it takes and gives: bands, height, width, groups of features."""
        return self._runtime.signature

    @property
    def note(self) -> str:
        """One sentence where it runs otherwise than asked for, else empty."""
        return self._runtime.note

    def predict(self, cutouts: Cutouts) -> Prediction:
        """Columns by name, (n,), and features float32 (n, m) of n objects, in their order.

        Raises
        ------
        BadModelError
            The cutouts have not the shape that the model takes.
        """
        others = other_columns(self.signature, cutouts)
        return self._runtime.predict(cutouts.images, cutouts.magnitudes, others)

    def __repr__(self) -> str:
        one = self.signature
        return (
            f"<Model {one.name}: {one.bands} bands of {one.height} x {one.width} pixels, "
            f"{one.precision}>"
        )


def load_model(
    model: str | Path = DEFAULT,
    *,
    precision: str = "float32",
    threads: int | None = None,
    signature: ModelSignature | Mapping[str, Any] | str | Path | None = None,
    device: str = CPU,
) -> Model:
    """Load a model for use in this process.

    Parameters
    ----------
    model
        Path or URL of an exported model (ONNX) or of an AstroMAE's weights (``.npz``, which torch
        computes), or ``default`` for the one in the package.
    precision
        ``float32``, or ``int8`` where the processor multiplies 8-bit integers.
    threads
        Threads to compute with; default: as many as this process may run at once.
    signature
        What the model takes and gives: an object, or the path or URL of a file of it; default: as
        the file beside the model says, else the model itself.
    device
        ``cpu`` or ``cuda``.

    Raises
    ------
    NotFoundError
        There is no such file.
    BadModelError
        It is no model that can be run.

    Examples
    --------
    >>> survey = perseid.open_survey("partitions/")  # doctest: +SKIP
    >>> perseid.load_model().predict(survey.read(0)).redshift[:3]  # doctest: +SKIP
    """
    given = signature_beside(model) if signature is None else signature_of(signature)
    return Model(load_on(device, model, threads=threads, precision=precision, signature=given))
