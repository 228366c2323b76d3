"""Signatures in files: beside a model, or at a path that the user gives."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from perseid.errors import BadModelError, NotFoundError, StorageError
from perseid.model.files import DEFAULT
from perseid.model.python_source import is_python
from perseid.model.signature import BESIDE, ModelSignature
from perseid.storage import Storage


def signature_beside(model: str | Path) -> ModelSignature | None:
    """The signature from the file beside a model; None if there is none.

    Parameters
    ----------
    model
        Path or URL of the model; the signature's file is ``MODEL.signature.json``.

    Raises
    ------
    BadModelError
        The file is not a signature.
    StorageError
        The store failed.
    """
    if is_python(model) or str(model) == "default.int8":
        return None
    if str(model) == DEFAULT:  # the default model of a stack
        model = Path(str(resources.files("perseid.model"))) / "data" / f"{DEFAULT}.onnx"
    place = f"{model}{BESIDE}"
    store, key = Storage.holding(place)
    try:
        return ModelSignature.from_json(store.get(key), place)
    except NotFoundError:
        return None


def signature_of(given: object) -> ModelSignature:
    """A signature given by a user: an object, or the path or URL of a file.

    Raises
    ------
    BadModelError
        The object or file is not a signature, or the file cannot be read.
    """
    if isinstance(given, ModelSignature):
        return given
    if isinstance(given, Mapping):
        return ModelSignature.from_plain(dict(given))
    if not isinstance(given, (str, Path)):
        raise BadModelError(f"the signature is {given!r}: give an object, or the path of a file")
    try:
        store, key = Storage.holding(given)
        text = store.get(key)
    except (StorageError, ValueError) as error:
        raise BadModelError(f"the signature {str(given)!r} cannot be read: {error}") from error
    return ModelSignature.from_json(text, str(given))
