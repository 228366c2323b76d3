"""A model as a Python object: its inputs and outputs, and its predictions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perseid.api.argument_checks import place_of
from perseid.errors import BadInputError
from perseid.model.identity import CPU
from perseid.model.loading import load_on
from perseid.model.runtime import DEFAULT, Prediction, Predictor
from perseid.model.signature import ModelSignature
from perseid.model.signature_files import signature_beside, signature_of
from perseid.pipeline.model_inputs import other_columns
from perseid.plaintext import counted
from perseid.survey import Cutouts


class Model:
    """A loaded model, to be used by one thread at a time. Created by `load_model`.

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
        """Its inputs and outputs: bands, height, width, groups of features."""
        return self._runtime.signature

    @property
    def note(self) -> str:
        """One sentence if it does not run as requested; otherwise empty."""
        return self._runtime.note

    def predict(self, cutouts: Cutouts) -> Prediction:
        """Columns by name, (n,), and features float32 (n, m) of n objects, in their order.

        Raises
        ------
        BadInputError
            They are not `Cutouts`.
        BadModelError
            The cutouts do not have the shape that the model takes.
        """
        if not isinstance(cutouts, Cutouts):
            raise BadInputError(
                f"a model predicts for perseid.Cutouts, not for {type(cutouts).__name__}: give "
                "what a survey's read() returns, or perseid.Cutouts(images)"
            )
        others = other_columns(self.signature, cutouts)
        return self._runtime.predict(cutouts.images, cutouts.magnitudes, others)

    def _repr_html_(self) -> str:
        return self.signature._repr_html_()

    def __repr__(self) -> str:
        one = self.signature
        return (
            f"<Model {one.name}: {counted(one.bands, 'band')} of {one.height} x {one.width} "
            "pixels, "
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
        ``float32``, or ``int8`` if the processor has 8-bit multiply instructions.
    threads
        Number of threads; by default as many as this process may run at once.
    signature
        Description of the model's inputs and outputs: an object, or the path or URL of its file.
        Default: the file next to the model, or else what the model itself states.
    device
        ``cpu`` or ``cuda``.

    Raises
    ------
    BadModelError
        The file does not exist, or is not a model that can be run.

    Examples
    --------
    >>> survey = perseid.open_survey("partitions/")  # doctest: +SKIP
    >>> perseid.load_model().predict(survey.read(0)).redshift[:3]  # doctest: +SKIP
    """
    model = place_of(model, "model")
    given = signature_beside(model) if signature is None else signature_of(signature)
    return Model(load_on(device, model, threads=threads, precision=precision, signature=given))
