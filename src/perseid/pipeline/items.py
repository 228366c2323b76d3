"""What travels from initialize to a worker: one item per rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from perseid.errors import BadInputError
from perseid.jsontext import parse_json
from perseid.model.identity import ModelIdentity
from perseid.model.signature import ModelSignature
from perseid.pipeline.run_settings import ItemOptions
from perseid.pipeline.schema import FIRST, check_schema, check_version, from_plain, to_plain
from perseid.survey.column_spec import ColumnSpec

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
    """Key as in the catalogue: relative to the bucket, e.g. ``100MB/1.pt``."""
    size: int
    """Bytes."""
    etag: str | None = None
    """The store's entity tag when the run began; another one later means the file was changed."""
    rows: int | None = None
    """How many objects it holds; None if the survey does not say so itself."""


def data_path(partitions: Sequence[PartitionRef]) -> str | list[str] | None:
    """A rank's partitions as the existing system writes them: one key, a list of keys, or None."""
    keys = [ref.key for ref in partitions]
    return keys if len(keys) > 1 else keys[0] if keys else None


@dataclass(frozen=True)
class WorkItem:
    """Everything a worker needs to know about its rank. Unknown keys in its JSON are refused."""

    run_id: str
    """Unique name of the run; records of another run are never counted."""
    rank: int
    """0 <= rank < world_size."""
    world_size: int
    results_url: str
    """The run's own prefix: everything the run writes lies below it."""
    data_url: str
    """Partition keys are relative to this URL (a bucket or a folder)."""
    partitions: tuple[PartitionRef, ...]
    """In natural order; empty for a surplus rank."""
    first: int = 0
    """Place of the first of them among all partitions of the run, from 0."""
    model_url: str = "default"
    """``default`` is the model in the package."""
    precision: str = "float32"
    """``float32``, or ``int8`` (encoder only, where the processor has VNNI)."""
    batch_size: int = 512
    """Rows a model call, upper bound: the runtime takes micro-batches of its own below it."""
    anomaly: str = "both"
    """Features of the score: ``both``, ``embedding``, ``residual``, or ``none``."""
    top: int = 24
    """Length of the list of the most anomalous objects."""
    transport: str = "store"
    """How ranks exchange statistics: ``store`` (by summarize), ``direct``, ``relay``, ``auto``."""
    options: ItemOptions = field(default_factory=ItemOptions)
    """Options that do not affect results, e.g. the rendezvous' address."""
    model: ModelIdentity | None = None
    """The model that the rank must use; None in items of runs that do not name it by content."""
    missing: Mapping[str, Sequence[float]] | None = None
    """Values that mean a missing magnitude or redshift, by column; None in a run that was begun
    when every number was a value."""
    columns: Mapping[str, Sequence[str]] | None = None
    """Names of the survey's columns, by ours; None: the usual names are looked for."""
    layout: str | None = None
    """How images lie in the files, ``channels-last`` or ``channels-first``; None: seen from the
    shape."""
    bands: Sequence[str] | None = None
    """Names of the survey's bands, in the images' order; None: as each file says."""
    survey_columns: Sequence[ColumnSpec] | None = None
    """Columns of the catalogue that come from the survey; None in runs of earlier versions."""
    signature: Mapping[str, object] | None = None
    """What the model takes and gives, as JSON; None: as its file says."""
    fit: str = ""
    """``crop`` or ``pad``: what becomes of images of another size than the model's."""
    intervals: Mapping[str, float] | None = None
    """Half width over 1 + z_pred of intervals around predicted redshifts, by their probability as
    text; None: the model was not calibrated."""
    lists: Sequence[str] | None = None
    """Kinds of outputs that the catalogue takes as lists: ``embedding``, ``pdf``."""
    model_change: bool = False
    """The user let this run go on with another model than it began with."""
    version: str = ""
    """Version of the perseid that made the item; empty in items of 0.1."""
    schema: int = FIRST
    """Version of the item's keys: see `perseid.pipeline.schema`."""

    def model_signature(self) -> ModelSignature | None:
        """The signature that the run gives its model; None if the model's file has it."""
        return None if self.signature is None else ModelSignature.from_plain(self.signature)

    def result_settings(self) -> dict[str, object]:
        """Every option that changes what a rank predicts or what is made of it, by name."""
        return {name: to_plain(getattr(self, name)) for name in RESULT_SETTINGS}

    def to_json(self) -> dict[str, object]:
        """The item as JSON values, as ``items.json`` holds it."""
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
        return from_plain(cls, {**plain, "schema": schema}, what)
