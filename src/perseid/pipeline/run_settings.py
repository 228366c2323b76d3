"""The settings that all ranks of a run share, and the options that do not change results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, ClassVar, Literal

from perseid.pipeline.schema import Count, Name, Seconds, Within
from perseid.survey.column_spec import ColumnSpec
from perseid.survey.read_options import ImageLayout

Rows = Annotated[int, Within(1, 65_536)]
"""A number of rows per model call."""
Length = Annotated[int, Within(0, 100_000)]
"""The length of the list of anomalies."""
Precision = Literal["float32", "int8"]
Anomaly = Literal["both", "embedding", "residual", "none"]
Transport = Literal["store", "direct", "relay", "auto"]
Fit = Literal["", "crop", "pad"]


@dataclass(frozen=True)
class ItemOptions:
    """Options that do not change results, such as limits and addresses. None means that an option
    was not given."""

    sparse: ClassVar[bool] = True
    """Only options that were given are written to the JSON."""

    memory_mb: Annotated[int, Within(1, 1 << 40)] | None = None
    """Memory that a worker may use, in MB."""
    timeout: Seconds | None = None
    """Seconds that a worker may take."""
    retries: Annotated[int, Within(0, 100)] | None = None
    """Number of attempts after a failed one."""
    threads: Annotated[int, Within(1, 4096)] | None = None
    """Number of threads that a worker computes with."""
    workers: Annotated[int, Within(1)] | None = None
    """Number of workers at once."""
    model_path: str | None = None
    """Folder that is searched for the module of a Python model, after the installed modules."""
    tolerated_failures: Annotated[float, Within(0, 100)] | None = None
    """Percentage of failed ranks above which AWS stops the rest."""
    rendezvous_endpoint: str | None = None
    """Address of the rendezvous, ``HOST:PORT``."""
    rendezvous_key: str | None = field(default=None, repr=False)
    """Key of the job, 64 hexadecimal digits; never written to an object of a run."""
    certificate: str | None = field(default=None, repr=False)
    """The job's certificate with its private key (PEM), which is encrypted with the job's key."""
    meeting_seconds: Seconds | None = None
    """Seconds that ranks wait for each other."""
    ends: Seconds | None = None
    """Time when this worker must be done, in seconds since the epoch."""
    death_timeout: Seconds | None = None
    link_timeout: Seconds | None = None
    silence_timeout: Seconds | None = None
    """Seconds after which a rank counts as lost: see `perseid.pipeline.join_settings`."""
    result_path: str | None = None
    """The result path of the request, as the user gave it."""
    label_names: Mapping[str, str] | None = None
    """The survey's names of its labels, by label."""
    attempts_before: Count | None = None
    """Number of attempts that earlier executions may have made at the rank."""
    bucket_url: str | None = None
    """In script mode, the location of the script's folder."""
    talks: bool | None = None
    """In script mode, whether ranks talk to each other, so that all must run at once."""
    script: Mapping[str, str] | None = None
    """In script mode, the item keys of the existing executor."""

    def to_json(self) -> dict[str, object]:
        """Plain JSON values of the options that were given."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}


@dataclass(frozen=True)
class ScriptJob:
    """A script that a request names and that was found in its folder; made by
    `perseid.compat.scripts`."""

    environment: Mapping[str, str]
    """Those item keys of the existing executor that do not depend on the rank."""
    bucket_url: str
    """Location of the script's folder."""
    talks: bool
    """Whether the script's ranks talk to each other, so that all must run at once."""
    warnings: tuple[str, ...] = ()
    """Warnings for the user, one sentence each."""


@dataclass(frozen=True)
class RunSettings:
    """Those fields of a `WorkItem` that are the same for all ranks."""

    model_url: Name = "default"
    """URL or path of the model; ``default`` is the one in the package."""
    precision: Precision = "float32"
    """Precision of the encoder, ``float32`` or ``int8``."""
    batch_size: Rows = 512
    """Upper bound of rows per model call."""
    anomaly: Anomaly = "both"
    """Features that the score uses: ``both``, ``embedding``, ``residual``, or ``none``."""
    top: Length = 24
    """Length of the list of the most anomalous objects."""
    missing: Mapping[str, Sequence[float]] | None = None
    """Values that mean a missing one, by column; None means that every number is a value."""
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
    transport: Transport = "store"
    """How ranks exchange statistics: ``store``, ``direct``, ``relay``, ``auto``."""
    options: ItemOptions = field(default_factory=ItemOptions)
    """Options that do not affect results."""
