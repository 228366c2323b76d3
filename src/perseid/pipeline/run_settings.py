"""The settings that all ranks of a run share, and the options that do not change results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar

from perseid.survey.column_spec import ColumnSpec


@dataclass(frozen=True)
class ItemOptions:
    """Options that do not change results, such as limits and addresses. None: not given."""

    sparse: ClassVar[bool] = True
    """JSON holds only what is said."""

    memory_mb: int | None = None
    """MB that a worker may take."""
    timeout: float | None = None
    """Seconds that a worker may take."""
    retries: int | None = None
    """Attempts after a failed one."""
    threads: int | None = None
    """Threads that a worker computes with."""
    workers: int | None = None
    """Workers at once."""
    model_path: str | None = None
    """Folder in which the module of a Python model is looked for after the installed ones."""
    tolerated_failures: float | None = None
    """Percent of the ranks after whose failure AWS stops the rest."""
    rendezvous_endpoint: str | None = None
    """``HOST:PORT``."""
    rendezvous_key: str | None = field(default=None, repr=False)
    """The job's key, 64 hexadecimal digits; in no object of a run."""
    certificate: str | None = field(default=None, repr=False)
    """The job's certificate with its private key, which is encrypted under the job's key (PEM)."""
    meeting_seconds: float | None = None
    """How long ranks wait for each other."""
    ends: float | None = None
    """When this worker must be done, seconds since the epoch."""
    death_timeout: float | None = None
    link_timeout: float | None = None
    silence_timeout: float | None = None
    """Seconds after which a rank counts as lost: see `perseid.pipeline.join_settings`."""
    result_path: str | None = None
    """The result path of the request."""
    label_names: Mapping[str, str] | None = None
    """Names of the survey's labels, by the label."""
    attempts_before: int | None = None
    """Attempts that earlier executions may have made at the rank."""
    bucket_url: str | None = None
    """Script mode: where the script's folder is."""
    talks: bool | None = None
    """Script mode: whether ranks talk to each other, so that all must run at once."""
    script: Mapping[str, str] | None = None
    """Script mode: the item keys of the existing executor."""

    def to_json(self) -> dict[str, object]:
        """Plain JSON values: what is said."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}


@dataclass(frozen=True)
class ScriptJob:
    """A script that a request names, found in its folder; `perseid.compat.scripts` makes it."""

    environment: Mapping[str, str]
    """The item keys of the existing executor that do not depend on the rank."""
    bucket_url: str
    """Where the script's folder is."""
    talks: bool
    """Whether the script's ranks talk to each other, so that all must run at once."""
    warnings: tuple[str, ...] = ()
    """One sentence each."""


@dataclass(frozen=True)
class RunSettings:
    """The fields of a `WorkItem` that are the same for all ranks."""

    model_url: str = "default"
    """``default`` is the model in the package."""
    precision: str = "float32"
    """``float32`` or ``int8``."""
    batch_size: int = 512
    """Rows a model call, upper bound."""
    anomaly: str = "both"
    """Features of the score: ``both``, ``embedding``, ``residual``, or ``none``."""
    top: int = 24
    """Length of the list of the most anomalous objects."""
    missing: Mapping[str, Sequence[float]] | None = None
    """Values that mean a missing one, by column; None: every number is a value."""
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
    transport: str = "store"
    """How ranks exchange statistics: ``store``, ``direct``, ``relay``, ``auto``."""
    options: ItemOptions = field(default_factory=ItemOptions)
    """Options that do not affect results."""
