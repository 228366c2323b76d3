"""A model's inputs and outputs: the contract between its file and the worker's runtime."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from perseid.errors import BadModelError
from perseid.jsontext import parse_json
from perseid.model.inputs import MAGNITUDE, ColumnInput, ImageInput
from perseid.model.outputs import (
    LISTS,
    REDSHIFT,
    ModelOutput,
    OutputColumn,
    check_outputs,
    columns_of,
)
from perseid.plaintext import counted, html_table
from perseid.textfile import decode

METADATA_KEY = "perseid.signature"
"""Key of the signature's JSON text in the ONNX file's ``metadata_props``."""
BESIDE = ".signature.json"
"""Suffix that turns a model's file name into that of its signature."""
_MOST_VALUES = 1 << 28
"""Most values of an input of one row: a gigabyte of float32, the longest that a survey may hold."""
FEATURES = "features"
_PLAIN = ("name", "bands", "height", "width", "feature_groups", "allocated_bytes_per_row",
          "precision", "band_names")  # fmt: skip
"""Keys of a signature like an AstroMAE's."""


@dataclass(frozen=True)
class ModelSignature:
    """A model's inputs (images and columns of a survey) and outputs, each of a kind.

    The defaults describe an AstroMAE: ``image`` float32 (n, bands, height, width) and
    ``magnitude`` (n, bands) in; ``redshift`` float32 (n,) or (n, 1) out, and ``features`` float32
    (n, sum of `feature_groups`) if there are any.

    Examples
    --------
    >>> votes = ModelOutput("votes", "probabilities", classes=("disk", "round"), logits=True)
    >>> shapes = ModelSignature("shapes", 3, 64, 64, columns=(), outputs=(votes,))
    >>> [column.name for column in shapes.output_columns()]
    ['p_disk', 'p_round', 'class']
    """

    name: str
    bands: int = 5
    """Number of bands of an image; 0 if the model takes no image."""
    height: int = 32
    width: int = 32
    feature_groups: Mapping[str, int] = field(default_factory=dict)
    """Width of each feature group, in order, e.g. ``{"embedding": 64, "residual": 26}``."""
    allocated_bytes_per_row: int = 0
    """Sum of the output sizes of all operators for one object, in bytes."""
    precision: str = "float32"
    """``float32``, or ``int8`` if the encoder's products are quantized."""
    band_names: tuple[str, ...] = ("u", "g", "r", "i", "z")
    image: ImageInput = field(default_factory=ImageInput)
    columns: tuple[ColumnInput, ...] = (ColumnInput(),)
    """Column inputs; empty if the model takes images only."""
    outputs: tuple[ModelOutput, ...] = (REDSHIFT,)
    """Outputs in order, without the features."""
    features_name: str = FEATURES
    """Name of the output that holds the features."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (bands, height, width) of an image."""
        return self.bands, self.height, self.width

    @property
    def takes_magnitudes(self) -> bool:
        """Whether magnitudes are an input."""
        return any(column.column == MAGNITUDE for column in self.columns)

    @property
    def is_plain(self) -> bool:
        """Whether the signature is like an AstroMAE's, so that JSON of earlier versions can express
        it."""
        return (
            self.image == ImageInput()
            and self.columns in ((), (ColumnInput(),))
            and self.outputs == (REDSHIFT,)
            and self.features_name == FEATURES
            and self.bands > 0
        )

    def _repr_html_(self) -> str:
        images = f"{counted(self.bands, 'band')} of {self.height} x {self.width} pixels"
        rows = [("images", images if self.bands else "none")]
        rows += [("column", column.column) for column in self.columns]
        rows += [("output", f"{output.name} ({output.kind})") for output in self.outputs]
        rows += [("features", f"{self.features():,}"), ("precision", self.precision)]
        return html_table(("model", self.name), rows)

    def output_columns(self) -> tuple[OutputColumn, ...]:
        """The catalogue columns that the outputs become, in order."""
        return columns_of(self.outputs)

    def list_columns(self, lists: Sequence[str] = LISTS) -> tuple[OutputColumn, ...]:
        """The columns that hold lists; `lists` are the requested kinds, out of `LISTS`."""
        found = [output.list_column() for output in self.outputs if output.kind == "pdf"]
        if width := self.feature_groups.get("embedding", 0):
            about = "What the encoder makes of the image"
            found.append(
                OutputColumn("embedding", "embedding", self.features_name, width=width,
                             description=about)
            )  # fmt: skip
        return tuple(column for column in found if column.kind in lists)

    def features(self) -> int:
        """Number of features per object; 0 if there are none."""
        return sum(self.feature_groups.values())

    def to_plain(self) -> dict[str, object]:
        """The signature as JSON values."""
        whole = asdict(self)
        if self.is_plain:
            return {name: whole[name] for name in _PLAIN}
        inputs: dict[str, object] = {}
        if self.bands:
            image = {"kind": "image", "bands": list(self.band_names) or self.bands,
                     "size": [self.height, self.width]}  # fmt: skip
            inputs[self.image.name] = image | _changed(self.image, ImageInput())
        for column in self.columns:
            inputs[column.name] = {"kind": "column", **_changed(column, ColumnInput())}
        outputs = {o.name: {"kind": o.kind, **_changed(o, ModelOutput("", ""))}
                   for o in self.outputs}  # fmt: skip
        groups = dict(self.feature_groups)
        if groups:
            alone = list(groups) == ["embedding"]
            outputs[self.features_name] = (
                {"kind": "embedding", "width": groups["embedding"]}
                if alone
                else {"kind": "features", "groups": groups}
            )
        more = {name: whole[name] for name in ("allocated_bytes_per_row", "precision")
                if whole[name] != getattr(type(self), name)}  # fmt: skip
        return {"name": self.name, "inputs": inputs, "outputs": outputs, **more}

    def to_json(self) -> str:
        """The JSON text for ``metadata_props`` or for the file beside a model."""
        return json.dumps(self.to_plain(), sort_keys=self.is_plain)

    @classmethod
    def from_json(
        cls, text: str | bytes, where: str = f"the model's {METADATA_KEY}"
    ) -> ModelSignature:
        """Parse JSON text; raises `BadModelError` naming `where` if the text is not a signature."""
        try:
            plain = parse_json(text if isinstance(text, str) else decode(text, "it"))
            return cls.from_plain(plain, where)
        except (ValueError, TypeError, AttributeError) as error:
            raise BadModelError(f"{where} cannot be read: {error}") from error

    @classmethod
    def from_plain(cls, plain: Any, where: str = "the signature") -> ModelSignature:
        """Create a signature from JSON values of this version or an earlier one.

        Raises
        ------
        BadModelError
            A key is unknown or a value is invalid; `where` names the signature in the message.
        """
        if not isinstance(plain, dict):
            raise BadModelError(f"{where} cannot be read: it is not a JSON object")
        try:
            if not {"inputs", "outputs"} & set(plain):
                return cls(**{**plain, "band_names": tuple(plain.get("band_names", ()))})
            found = cls(**_nested(plain))
        except BadModelError as error:
            raise BadModelError(f"{where}: {error}") from error
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise BadModelError(f"{where} cannot be read: {error}") from error
        found.check(where)
        return found

    def check(self, where: str = "the signature") -> None:
        """Raise `BadModelError` if the signature is invalid."""
        self.image.check(self.bands, where)
        for column in self.columns:
            column.check(where)
        if not self.bands and not self.columns:
            raise BadModelError(f"{where} names no input: give an image, a column, or both")
        if not self.outputs and not self.feature_groups:
            raise BadModelError(f"{where} names no output")
        self.check_size(where)
        check_outputs(self.outputs, where)

    def check_size(self, where: str) -> None:
        """Raise `BadModelError` if a row of an input is larger than any that is read."""
        values = max(math.prod(self.shape), *(column.width for column in self.columns), 0)
        if values > _MOST_VALUES:
            raise BadModelError(
                f"{where} takes an input of {values:,} values for each row; at most "
                f"{_MOST_VALUES:,} are read"
            )

    def digest(self) -> str:
        """``sha256:…`` of its JSON: models with the same digest have the same inputs and
        outputs."""
        text = json.dumps(self.to_plain(), sort_keys=True)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _changed(value: Any, default: Any) -> dict[str, object]:
    """The fields of an input or an output that differ from their defaults."""
    names = [f.name for f in fields(value) if f.name not in ("name", "kind")]
    every = {"column"} if isinstance(value, ColumnInput) else set()
    found = {name: getattr(value, name) for name in names
             if name in every or getattr(value, name) != getattr(default, name)}  # fmt: skip
    return {name: list(v) if isinstance(v, tuple) else v for name, v in found.items()}


def _nested(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a signature, from the JSON of its inputs and outputs."""
    known = {"name", "inputs", "outputs", "allocated_bytes_per_row", "precision"}
    unknown = sorted(set(plain) - known)
    if unknown:
        raise BadModelError(f"the key {unknown[0]!r} is not known: use {', '.join(sorted(known))}")
    values = {n: plain[n] for n in ("allocated_bytes_per_row", "precision") if n in plain}
    values |= {"name": str(plain.get("name", "model")), "bands": 0, "height": 0, "width": 0}
    values |= {"band_names": (), "columns": (), "outputs": ()}
    for name, about in plain.get("inputs", {}).items():
        if about.get("kind") == "image":
            if values["bands"]:
                raise BadModelError("two inputs are images, and a cutout is one")
            values |= _image(name, about)
        elif about.get("kind") == "column":
            values["columns"] += (ColumnInput(name, **_settings(about, ColumnInput)),)
        else:
            raise BadModelError(f"the input {name!r} needs a `kind`: image or column")
    for name, about in plain.get("outputs", {}).items():
        kind = str(about.get("kind", ""))
        if kind in ("embedding", "features"):
            if "feature_groups" in values:
                raise BadModelError("two outputs are embeddings or features: name one of them")
            values |= {"features_name": name, "feature_groups": _groups(name, kind, about)}
        else:
            output = ModelOutput(name, kind, **_settings(about, ModelOutput))
            values["outputs"] += (output,)
    return values


def _image(name: str, about: Mapping[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in about.items() if key not in ("bands", "size")}
    bands, size = about.get("bands"), about.get("size")
    names: Sequence[str] = [str(band) for band in bands] if isinstance(bands, list) else ()
    count = len(names) if names else bands
    side = [size, size] if isinstance(size, int) else size
    good = isinstance(count, int) and count > 0 and isinstance(side, list) and len(side) == 2
    if not good or not all(isinstance(one, int) and one > 0 for one in side or ()):
        raise BadModelError(
            f"the image {name!r} needs `bands`, a number or their names, and `size`, [height, "
            "width] in pixels"
        )
    height, width = side or (0, 0)
    image = ImageInput(name, **_settings(rest, ImageInput))
    return {"bands": count, "height": height, "width": width, "band_names": tuple(names),
            "image": image}  # fmt: skip


def _settings(about: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Keyword arguments of an input or output; each value must have the type of the field's
    default."""
    found: dict[str, Any] = {}
    defaults = {f.name: f.default for f in fields(kind)}
    for key, value in about.items():
        if key == "kind":
            continue
        if key not in defaults or key == "name":
            known = ", ".join(name for name in defaults if name not in ("name", "kind"))
            raise BadModelError(f"the key {key!r} is not known: use {known}")
        wanted: Any = defaults[key]
        if isinstance(wanted, tuple):
            value = _tuple(key, value)
        elif not isinstance(value, type(wanted)) or (isinstance(value, bool) and wanted == 0
                                                     and wanted is not False):  # fmt: skip
            raise BadModelError(f"{key} is {value!r}, which is no {type(wanted).__name__}")
        found[key] = value
    return found


def _tuple(key: str, value: Any) -> tuple[Any, ...]:
    listed = value if isinstance(value, (list, tuple)) else [value]
    if key == "classes":
        return tuple(str(one) for one in listed)
    return tuple(float(one) for one in listed)


def _groups(name: str, kind: str, about: Mapping[str, Any]) -> dict[str, int]:
    groups = {"embedding": about.get("width")} if kind == "embedding" else about.get("groups")
    good = isinstance(groups, dict) and groups
    if not good or not all(isinstance(w, int) and w > 0 for w in (groups or {}).values()):
        raise BadModelError(
            f"the output {name!r} needs its `width`" if kind == "embedding" else
            f"the output {name!r} needs `groups`, the width of each"
        )  # fmt: skip
    return dict(groups or {})
