"""What a model file says of itself: the contract between export and the worker's runtime."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from perseid.errors import BadModelError
from perseid.jsontext import parse_json

METADATA_KEY = "perseid.signature"
"""Key of the JSON text in the ONNX file's ``metadata_props``."""


@dataclass(frozen=True)
class ModelSignature:
    """Inputs ``image`` float32 (n, bands, height, width) and ``magnitude`` float32 (n, bands).

    Outputs ``redshift`` float32 (n,) or (n, 1) and, where the model scores anomalies, ``features``
    float32 (n, sum of `feature_groups`).
    """

    name: str
    bands: int = 5
    height: int = 32
    width: int = 32
    feature_groups: Mapping[str, int] = field(default_factory=dict)
    """Width of each group of features in order, e.g. ``{"embedding": 64, "residual": 26}``."""
    allocated_bytes_per_row: int = 0
    """Sum of the operators' output sizes for one object, bytes."""
    precision: str = "float32"
    """``float32``, or ``int8`` where the encoder's products are quantised."""
    band_names: tuple[str, ...] = ("u", "g", "r", "i", "z")

    def to_json(self) -> str:
        """The JSON text for ``metadata_props``."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelSignature:
        """Raises `BadModelError` where the text is not a signature."""
        try:
            plain: dict[str, Any] = parse_json(text)
            plain["band_names"] = tuple(plain.get("band_names", ()))
            return cls(**plain)
        except (ValueError, TypeError) as error:
            raise BadModelError(f"the model's {METADATA_KEY} cannot be read: {error}") from error

    def digest(self) -> str:
        """``sha256:…`` of `to_json`: models of one digest are fed and read in the same way."""
        return f"sha256:{hashlib.sha256(self.to_json().encode()).hexdigest()}"

    def features(self) -> int:
        """Width of the ``features`` output; 0 where there is none."""
        return sum(self.feature_groups.values())
