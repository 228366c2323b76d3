"""What travels from initialize to a worker: one item per rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated

from perseid.errors import BadInputError
from perseid.jsontext import parse_json
from perseid.model.identity import ModelIdentity
from perseid.model.signature import ModelSignature
from perseid.pipeline.run_settings import (
    Anomaly,
    Fit,
    ItemOptions,
    Length,
    Precision,
    Rows,
    Transport,
)
from perseid.pipeline.schema import (
    FIRST,
    Count,
    Name,
    Within,
    check_schema,
    check_version,
    from_plain,
    to_plain,
)
from perseid.survey.column_spec import ColumnSpec
from perseid.survey.read_options import ImageLayout

REMEDY = (
    "give the workers the version of the client (`perseid aws deploy`; on a cluster, the "
    "environment that its workers run in)"
)
"""Advice for when a worker and the step before it have different versions."""
RESULT_SETTINGS = ("precision", "batch_size", "anomaly", "top", "missing", "columns", "layout",
                   "bands", "signature", "fit", "intervals", "lists")  # fmt: skip
"""Fields of a `WorkItem` that change results; every record names them."""


@dataclass(frozen=True)
class PartitionRef:
    """One partition file of the survey."""

    key: str
    """Key as in the catalogue, relative to the bucket, e.g. ``100MB/1.pt``."""
    size: Count
    """Size in bytes."""
    etag: str | None = None
    """The store's entity tag when the run began; a different one later means that the file was
    changed."""
    rows: Count | None = None
    """Number of objects in the file; None if the survey does not say."""


def data_path(partitions: Sequence[PartitionRef]) -> str | list[str] | None:
    """A rank's partitions in the existing system's form: one key, a list of keys, or None."""
    keys = [ref.key for ref in partitions]
    return keys if len(keys) > 1 else keys[0] if keys else None


@dataclass(frozen=True)
class WorkItem:
    """Everything a worker needs to know about its rank. Unknown keys in its JSON are refused."""

    run_id: Name
    """Unique name of the run; records of another run are never counted."""
    rank: Count
    """Number of the rank, from 0 to world size - 1."""
    world_size: Annotated[int, Within(1)]
    results_url: Name
    """The run's own prefix; everything that the run writes lies below it."""
    data_url: Name
    """URL of the bucket or folder that partition keys are relative to."""
    partitions: tuple[PartitionRef, ...]
    """The rank's partitions in natural order; empty for a surplus rank."""
    first: Count = 0
    """Position of the first of them among all partitions of the run, from 0."""
    model_url: Name = "default"
    """URL or path of the model; ``default`` is the one in the package."""
    precision: Precision = "float32"
    """``float32``, or ``int8`` (for the encoder only, on processors with VNNI)."""
    batch_size: Rows = 512
    """Upper bound of rows per model call; the runtime chooses its own micro-batch size below it."""
    anomaly: Anomaly = "both"
    """Features that the score uses: ``both``, ``embedding``, ``residual``, or ``none``."""
    top: Length = 24
    """Length of the list of the most anomalous objects."""
    transport: Transport = "store"
    """How ranks exchange statistics: ``store`` (summarize merges), ``direct``, ``relay``, or
    ``auto``."""
    options: ItemOptions = field(default_factory=ItemOptions)
    """Options that do not affect results, such as the rendezvous' address."""
    model: ModelIdentity | None = None
    """The model that the rank must use; None in items of runs that do not name it by content."""
    missing: Mapping[str, Sequence[float]] | None = None
    """Values that mean a missing magnitude or redshift, by column; None in a run begun by a version
    that took every number for a value."""
    columns: Mapping[str, Sequence[str]] | None = None
    """The survey's column names, by ours; None means that the usual names are looked for."""
    layout: ImageLayout | None = None
    """Axis order of the images in the files, ``channels-last`` or ``channels-first``; None means
    that it is inferred from the shape."""
    bands: Sequence[str] | None = None
    """Names of the survey's bands, in the order of the images; None means that each file names its
    own."""
    survey_columns: Sequence[ColumnSpec] | None = None
    """Columns of the catalogue that are copied from the survey; None in runs of earlier
    versions."""
    signature: Mapping[str, object] | None = None
    """The model's signature as JSON; None means that the model's file contains it."""
    fit: Fit = ""
    """How images of another size than the model's are made to fit: ``crop`` or ``pad``."""
    intervals: Mapping[str, Annotated[float, Within(0)]] | None = None
    """Half width of each interval around predicted redshifts, divided by 1 + z_pred; keys are
    probabilities as text. None if the model was not calibrated."""
    lists: Sequence[str] | None = None
    """Kinds of outputs that the catalogue keeps as lists: ``embedding``, ``pdf``."""
    model_change: bool = False
    """Whether the user let this run go on with another model than it began with."""
    version: str = ""
    """Version of perseid that made the item; empty in items of 0.1."""
    schema: int = FIRST
    """Version of the item's keys; see `perseid.pipeline.schema`."""

    def model_signature(self) -> ModelSignature | None:
        """The signature that the run gives its model; None if the model's file contains it."""
        return None if self.signature is None else ModelSignature.from_plain(self.signature)

    def result_settings(self) -> dict[str, object]:
        """All options that change what a rank predicts or what is derived from it, by name."""
        return {name: to_plain(getattr(self, name)) for name in RESULT_SETTINGS}

    def to_json(self) -> dict[str, object]:
        """The item as JSON values, as stored in ``items.json``."""
        return {f.name: to_plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, object] | str) -> WorkItem:
        """The reverse of `to_json`; raises `BadInputError` naming the key that is wrong."""
        what = "this work item"
        try:
            plain = parse_json(value) if isinstance(value, str) else value
            version = str(plain.get("version", ""))
            schema = check_schema(plain.get("schema"), what, version, REMEDY)
        except BadInputError:
            raise
        except (AttributeError, ValueError) as error:
            raise BadInputError(f"{what} cannot be read: {error}") from error
        check_version(version, what, REMEDY)
        item = from_plain(cls, {**plain, "schema": schema}, what)
        if item.rank >= item.world_size:
            raise BadInputError(
                f"{what} cannot be read: 'rank' is '{item.rank}' of {item.world_size} ranks"
            )
        return item
