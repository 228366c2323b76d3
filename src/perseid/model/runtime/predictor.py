"""The interface of a model that a worker uses, whatever computes the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from perseid.model.identity import ModelIdentity
from perseid.model.runtime.answers import Prediction
from perseid.model.signature import ModelSignature


class Predictor(Protocol):
    """A loaded model: `ModelRuntime`, or `PythonRuntime`."""

    signature: ModelSignature
    identity: ModelIdentity
    micro_batch: int
    threads: int
    note: str

    @property
    def precision(self) -> str:
        """The precision that is used, ``float32`` or ``int8``."""

    def check_unchanged(self) -> None:
        """Raise `BadModelError` if the model's files were changed after it was loaded."""

    def predict(
        self,
        images: NDArray[np.float32] | None,
        magnitudes: NDArray[Any] | None = None,
        columns: Mapping[str, NDArray[Any]] = ...,
    ) -> Prediction:
        """Predict rows."""

    def begin(
        self,
        images: NDArray[np.float32] | None,
        magnitudes: NDArray[Any] | None = None,
        columns: Mapping[str, NDArray[Any]] = ...,
    ) -> Callable[[], Prediction]:
        """Begin to predict rows; the returned function waits for the prediction."""

    def some_rows(
        self, rows: int
    ) -> tuple[NDArray[np.float32] | None, None, dict[str, NDArray[Any]]]:
        """Arguments of `predict` that work for this model."""
