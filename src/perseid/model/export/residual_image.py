"""The reconstruction's residual as an image, from a model that was exported with its decoder.

An exported AstroMAE gives statistics of the residual (`perseid.model.export.folded_residual`); the
residual image itself is a tensor inside its graph. This module makes it an output of a copy in
memory, so that people can view it; the file is not changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadModelError
from perseid.libraries import library_error
from perseid.model.files import on_disk

UNPATCHED = [0, 3, 1, 4, 2, 5]
"""Axis order with which the exporter turns residuals of patches into those of an image."""


class ResidualImages:
    """A loaded model that returns residual images.

    Parameters
    ----------
    url
        Path or URL of an ONNX file, or ``default``.
    digest
        Digest of the model that a run used; if empty, any model is accepted.

    Raises
    ------
    BadModelError
        The model was exported without a decoder, or is not the one that the run used.
    NotInstalledError
        onnx is not installed.
    NotFoundError, StorageError
        The model cannot be read.
    """

    def __init__(self, url: str | Path, digest: str = "") -> None:
        try:
            import onnx
        except ImportError as error:
            raise library_error(
                error, "residual images need onnx: pip install 'perseid[explore]'"
            ) from error
        import onnxruntime

        with on_disk(url) as files:
            if digest and files.digest() != digest:
                raise BadModelError(f"{files.name} is no longer the model that the run used")
            model = onnx.load(str(files.path))
        name = _residual_tensor(model.graph)
        if name is None:
            raise BadModelError(
                f"the model {url} has no reconstruction whose residual can be shown"
            )
        del model.graph.output[:]
        model.graph.output.append(onnx.ValueInfoProto(name=name))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def residual(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Prediction minus true image of one object, in units of the usual spread.

        Parameters
        ----------
        image
            The image (bands, size, size) as in the survey.

        Returns
        -------
        float32 (bands, size, size); positive where the model expected more light.

        Raises
        ------
        BadModelError
            The image has another shape than the model takes.
        """
        feed = {one.name: _fed(one, image) for one in self._session.get_inputs()}
        try:
            (found,) = self._session.run(None, feed)
        except Exception as error:
            raise BadModelError(f"the model gives no residual of this image: {error}") from error
        return np.asarray(found[0], np.float32)


def _residual_tensor(graph: Any) -> str | None:
    """Name of the residual image, recognized by the transposition with which the exporter makes
    it."""
    for node in graph.node:
        orders = [list(one.ints) for one in node.attribute if one.name == "perm"]
        if node.op_type == "Transpose" and orders == [UNPATCHED]:
            shaped = [n for n in graph.node if n.op_type == "Reshape" and n.input[0] in node.output]
            if len(shaped) == 1:
                return str(shaped[0].output[0])
    return None


def _fed(port: Any, image: NDArray[np.float32]) -> NDArray[Any]:
    """One row of an input: the image, or zeros for inputs that the residual does not depend on."""
    shape = [side if isinstance(side, int) else 1 for side in port.shape]
    fed = np.zeros(shape, np.float64 if "double" in port.type else np.float32)
    if len(shape) == 4:
        fed[0] = image
    return fed
