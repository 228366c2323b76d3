"""Which model a run uses, identified by content; neither a rank nor a resumption may change it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from perseid import __version__
from perseid.errors import BadInputError, BadModelError
from perseid.jsontext import parse_json
from perseid.model.files import BUILT_IN, DEFAULT, on_disk
from perseid.model.python_source import find_source, is_python
from perseid.storage import Location, Storage

DEFAULT_IDENTITY = "identity.json"
"""File beside the default model's place with the model's identity, for packages that do not contain
the model."""
CPU, CUDA = "cpu", "cuda"


@dataclass(frozen=True)
class ModelIdentity:
    """Identifies a model by its content; two models with the same identity give the same answers.

    Examples
    --------
    >>> ModelIdentity("onnx", "s3://b/z.onnx", "sha256:12").difference(
    ...     ModelIdentity("onnx", "s3://other/z.onnx", "sha256:12"))
    ''
    """

    kind: str
    """Kind of model: ``default`` (shipped with perseid), ``onnx`` (a file) or ``astromae``
    (weights)."""
    uri: str
    """Where the model came from: a URL, or ``default``. Not compared, since a model that was moved
    is still the same."""
    digest: str
    """``sha256:…`` of the file, or of all files and their names if it has external data."""
    int8_digest: str = ""
    """Digest of the file that ranks load for ``int8``; empty if float32 was requested."""
    signature: str = ""
    """``sha256:…`` of the signature; empty if the model was not loaded yet."""
    precision: str = "float32"
    """Requested precision, ``float32`` or ``int8``. A record's `precision` says which was used."""
    device: str = CPU
    """Device that computes the model."""
    version: str = ""
    """Version of the perseid that contains the default model; empty for other models."""

    def difference(self, other: ModelIdentity) -> str:
        """Describe how the other model differs from this one; empty if they are the same.

        The other may be the model that a rank loaded, which for ``int8`` is either of the two
        files.
        """
        mine = {self.digest, self.int8_digest} - {""}
        theirs = {other.digest, other.int8_digest} - {""}
        if not mine & theirs:
            return f"{_short(other.digest)} instead of {_short(self.digest)}"
        for name in ("precision", "device"):
            one, two = getattr(self, name), getattr(other, name)
            if one != two:
                return f"{name} {two} instead of {one}"
        if self.digest == other.digest and self.signature and other.signature:
            return "" if self.signature == other.signature else "it takes or gives other values"
        return ""

    def to_json(self) -> dict[str, str]:
        """The identity as JSON values, as manifests and records hold it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> ModelIdentity:
        """The inverse of `to_json`; raises `BadInputError` if the JSON does not have this form."""
        known = {field.name for field in fields(cls)}
        if not isinstance(value, dict) or not {"kind", "uri", "digest"} <= set(value):
            raise BadInputError(f"this is not the identity of a model: {str(value)[:80]}")
        return cls(**{name: str(text) for name, text in value.items() if name in known})


def is_weights(url: str | Path) -> bool:
    """Whether the model is a weight file, as written by `perseid.train`, which torch computes."""
    return str(url).endswith(".npz")


def identify(
    url: str, precision: str = "float32", device: str = CPU, *, folder: str = ""
) -> ModelIdentity:
    """The identity of the model that is at a place now, without loading it.

    `folder` is searched for the module of a Python model, after the installed modules.

    Raises
    ------
    BadModelError
        The model does not exist, or int8 is requested and there is no ``NAME.int8.onnx``.
    NotFoundError, StorageError
        The store has no such model, or failed.
    """
    if is_python(url):
        if precision != "float32":
            raise BadModelError(f"the model {url} has no {precision} form: leave precision out")
        return ModelIdentity("python", url, find_source(url, folder).digest(), device=device)
    if url == DEFAULT and not _has_default():
        return replace(_shipped(precision), device=device)
    found = replace(identity_of(url, precision, _digest(url)), device=device)
    if precision == "int8":
        found = replace(found, int8_digest=_digest(int8_url(url)))
    return found


def identity_of(url: str | Path, precision: str, digest: str) -> ModelIdentity:
    """The identity of the model at a place, given its digest."""
    if str(url) in BUILT_IN:
        url = str(url)
        return ModelIdentity(DEFAULT, url, digest, precision=precision, version=__version__)
    kind = "astromae" if is_weights(url) else "onnx"
    return ModelIdentity(kind, Location.parse(url).url, digest, precision=precision)


def _digest(url: str) -> str:
    if is_weights(url):
        store, name = Storage.holding(url)
        return f"sha256:{hashlib.sha256(store.get(name)).hexdigest()}"
    with on_disk(url) as files:
        return files.digest()


def _data() -> Path:
    return Path(__file__).parent / "data"


def _has_default() -> bool:
    return (_data() / f"{DEFAULT}.onnx").is_file()


def _shipped(precision: str) -> ModelIdentity:
    """The identity of the workers' default model, if this package has only its identity."""
    try:
        text = (_data() / DEFAULT_IDENTITY).read_text(encoding="utf-8")
    except OSError as error:
        raise BadModelError(
            "this installation has no default model: give the path of a model"
        ) from error
    found = ModelIdentity.from_json(parse_json(text))
    if precision == "int8" and not found.int8_digest:
        raise BadModelError(
            "the default model of these workers has no int8 form: leave precision out"
        )
    return replace(
        found, precision=precision, int8_digest=found.int8_digest if precision == "int8" else ""
    )


def shipped_identity(model: Path, int8: Path | None) -> ModelIdentity:
    """The content of `DEFAULT_IDENTITY`: the default model's identity, for packages that do not
    contain the model."""
    found = ModelIdentity(DEFAULT, DEFAULT, _digest(str(model)), version=__version__)
    return replace(found, int8_digest=_digest(str(int8))) if int8 else found


def int8_url(url: str | Path) -> str:
    """Path or URL of a model's int8 form: ``NAME.int8.onnx`` beside ``NAME.onnx``."""
    text = str(url)
    if text == DEFAULT or text.endswith(".int8.onnx"):
        return "default.int8" if text == DEFAULT else text
    return text.removesuffix(".onnx") + ".int8.onnx"


def _short(digest: str) -> str:
    return digest[: len("sha256:") + 12]
