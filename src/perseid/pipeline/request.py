"""The run request: the payload format that users already have, extended by keys of our own."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from perseid.errors import BadInputError
from perseid.model.outputs import LISTS
from perseid.model.signature_files import signature_of
from perseid.pipeline.request_keys import KEYS
from perseid.pipeline.run_settings import Anomaly, Precision, Transport
from perseid.plaintext import did_you_mean, html_table
from perseid.rendezvous import LONGEST_SILENCE, Endpoint
from perseid.storage import Location
from perseid.survey.missing import MissingValues
from perseid.survey.names import ColumnNames, column_names
from perseid.survey.read_options import ImageLayout
from perseid.textfile import read_object

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


def _blank(value: Any) -> Any:
    """Turn empty values into None: existing payloads contain empty keys instead of omitting
    them."""
    return None if isinstance(value, str) and not value.strip() else value


def _inside(value: Any) -> Any:
    """Normalize a prefix and check that it stays within its bucket."""
    if not isinstance(value, str):
        return value
    parts = value.strip("/").split("/")
    if any(part in (".", "..") for part in parts) or "\\" in value or "\0" in value:
        raise ValueError("leads out of the bucket")
    return "/".join(part for part in parts if part)


def _bucket(value: Any) -> Any:
    if isinstance(value, str) and not _BUCKET.fullmatch(value):
        raise ValueError("no bucket name")
    return value


Blank = BeforeValidator(_blank)
Bucket = Annotated[str | None, BeforeValidator(_bucket), Blank]
Prefix = Annotated[str | None, BeforeValidator(_inside), Blank]
Count = Annotated[int | None, Field(ge=1), Blank]
# Beyond these bounds a typing error would fill the memory, or wait for threads, before it is found.
Ranks = Annotated[int | None, Field(ge=1, le=100_000), Blank]
Threads = Annotated[int | None, Field(ge=1, le=4096), Blank]


class RunRequest(BaseModel):
    """A request for one run. Each field's description says what is valid; `parse` quotes it in
    errors."""

    model_config = ConfigDict(extra="allow", populate_by_name=True, frozen=True)

    # the existing payload
    bucket: Bucket = Field(None, description="the name of a bucket (letters, digits, . _ -)")
    data_bucket: Bucket = Field(None, description="the name of a bucket (letters, digits, . _ -)")
    data_prefix: Prefix = Field(None, description="the folder of the partitions inside data_bucket")
    result_path: Prefix = Field(None, description="a prefix inside the bucket, without ..")
    file_limit: Count = Field(None, description="a whole number from 1, or leave it out for all")
    world_size: Ranks = Field(None, description="a whole number from 1 to 100000, or leave it out")
    batch_size: Annotated[int, Field(ge=1, le=65536)] = Field(
        512, description="a whole number from 1 to 65536"
    )
    object_type: Annotated[Literal["folder"], Blank] = Field(
        "folder", description="folder, the one kind there is"
    )
    s3_object_name: Prefix = Field(
        None, alias="S3_object_name", description="the script's folder inside the bucket"
    )
    script: Annotated[str | None, Blank] = Field(
        None, description="the script's path, e.g. /tmp/<S3_object_name>/inference.py"
    )
    rendezvous_endpoint: Annotated[str | None, Blank] = Field(
        None, description="host:port, or a host alone for port 10000"
    )
    fmi_enabled: Annotated[bool | None, Blank] = Field(
        None, description="true or false: whether a script's ranks talk to each other"
    )
    data_map: Any = Field(None, description="anything: it is made again from the listing")
    data_path: Any = Field(
        None, description="anything: DATA_PATH is each rank's own share of the listing"
    )

    # ours
    data: Annotated[str | list[str] | None, Blank] = Field(
        None, description="the URL or path of a folder of partitions, or a list of partition URLs"
    )
    results: Annotated[str | None, Blank] = Field(
        None, description="the URL or path of a folder for this run alone"
    )
    bucket_root: Annotated[str | None, Blank] = Field(
        None, description="a local folder whose sub-folders stand for the buckets"
    )
    model: Annotated[str | None, Blank] = Field(
        None, description="default, or the URL or path of an exported model"
    )
    model_path: Annotated[str | None, Blank] = Field(
        None, description="the path of a folder that holds the module of a Python model"
    )
    signature: Annotated[dict[str, Any] | None, Blank] = Field(
        None,
        description="what the model takes and gives: an object, or the path or URL of a file of it",
    )
    lists: Annotated[str | list[str] | None, Blank] = Field(
        None, description="embedding, pdf, or both with a comma"
    )
    fit: Annotated[Literal["crop", "pad"] | None, Blank] = Field(None, description="crop or pad")
    precision: Precision = Field("float32", description="float32 or int8")
    device: Literal["cpu", "cuda"] = Field("cpu", description="cpu or cuda")
    anomaly: Anomaly = Field("both", description="both, embedding, residual or none")
    top: Annotated[int, Field(ge=0, le=100_000)] = Field(
        24, description="a whole number from 0 to 100000"
    )
    missing: dict[str, object] | None = Field(
        None,
        description="an object of columns (magnitude, redshift) and the values that mean missing, "
        'such as {"redshift": [-1, -9]}, or "none"',
    )
    columns: dict[str, object] | None = Field(
        None,
        description="an object of columns (image, magnitude, redshift, object_id, label) and their "
        'names in the survey, such as {"object_id": "TARGETID"}; of magnitudes also a list',
    )
    layout: Annotated[ImageLayout | None, Blank] = Field(
        None, description="channels-last or channels-first, or leave it out"
    )
    bands: Annotated[str | list[str] | None, Blank] = Field(
        None, description="names of the bands of the survey's images, in their order"
    )
    keep: Annotated[str | list[str] | None, Blank] = Field(
        None, description="names of the survey's columns that the catalogue takes, or all"
    )
    transport: Transport = Field("store", description="store, direct, relay or auto")
    silence_timeout: Annotated[float | None, Field(ge=0, le=LONGEST_SILENCE), Blank] = Field(
        None, description="seconds from 0 (no limit) to 5350, or leave it out for 60"
    )
    link_timeout: Annotated[float | None, Field(gt=0, le=3600), Blank] = Field(
        None, description="seconds above 0, or leave it out for 15"
    )
    death_timeout: Annotated[float | None, Field(gt=0, le=3600), Blank] = Field(
        None, description="seconds above 0, or leave it out for 2"
    )
    memory_mb: Annotated[int, Field(ge=128, le=10_240)] = Field(
        1769, description="MB per worker, from 128 to 10240 as on Lambda"
    )
    timeout: Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)] = Field(
        900.0, description="seconds per worker, above 0 and at most 1000000"
    )
    retries: Annotated[int, Field(ge=0, le=100)] = Field(
        2, description="a whole number from 0 to 100"
    )
    tolerated_failures: Annotated[float | None, Field(ge=0, le=100), Blank] = Field(
        None, description="percent of the ranks, from 0 to 100: when more fail, AWS stops the rest"
    )
    workers: Count = Field(None, description="workers at once: a whole number from 1")
    threads: Threads = Field(None, description="threads per worker: a whole number from 1 to 4096")

    _given: dict[str, object] | None = PrivateAttr(None)

    def __init__(self, /, **keys: Any) -> None:
        try:
            super().__init__(**keys)
        except ValidationError as error:
            raise BadInputError(_sentences(error, ())) from error
        self.missing_values  # noqa: B018 - raises where they are none
        self.list_kinds  # noqa: B018 - so does this
        self.column_names  # noqa: B018 - so does this
        if self.rendezvous_endpoint and not self.script_mode:
            Endpoint.parse(self.rendezvous_endpoint)

    @model_validator(mode="after")
    def _whole(self) -> RunRequest:
        if not self.data and not self.data_bucket:
            raise ValueError("it names no data: give `data`, or `data_bucket` and `data_prefix`")
        if self.data and self.data_bucket:
            raise ValueError("it has both `data` and `data_bucket`: leave one of them out")
        if not self.results and not (self.bucket and self.result_path):
            raise ValueError(
                "it names no place for results: give `results`, or `bucket` and `result_path`"
            )
        if self.script_mode and not (self.bucket and self.s3_object_name and self.data_bucket):
            raise ValueError(
                "`script` runs only with `bucket`, `S3_object_name` and `data_bucket`: "
                "give all of them, or give `model` to use our runtime instead"
            )
        return self

    @classmethod
    def parse(
        cls, source: Mapping[str, object] | str | Path, *, options: Collection[str] = ()
    ) -> RunRequest:
        """Parse a request from a mapping of keys or from a JSON file.

        `options` are the keys that were given as options of a command; errors about them name the
        option.

        Raises
        ------
        BadInputError
            One sentence for each bad value, with its key, the value and what to give instead.
        """
        plain = dict(source) if isinstance(source, Mapping) else read_keys(Path(source))
        if _blank(plain.get("signature")) is not None:
            plain["signature"] = signature_of(plain["signature"]).to_plain()
        try:
            request = cls(**{str(key): value for key, value in plain.items()})
        except BadInputError as error:
            found = error.__cause__
            if options and isinstance(found, ValidationError):
                raise BadInputError(_sentences(found, options)) from found
            raise
        request._given = plain
        return request

    @classmethod
    def known_keys(cls) -> frozenset[str]:
        """Every key that means something, aliases included."""
        aliases = {field.alias for field in cls.model_fields.values() if field.alias}
        return frozenset(aliases | set(cls.model_fields))

    @property
    def column_names(self) -> ColumnNames:
        """Names of the survey's columns, which `parse` has validated."""
        return column_names(self.columns or {})

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names of the survey's bands, in the order of its images."""
        listed = self.bands.split(",") if isinstance(self.bands, str) else self.bands or ()
        return tuple(name for one in listed if (name := one.strip()))

    @property
    def missing_values(self) -> MissingValues:
        """Values that mean a missing magnitude or redshift; `parse` has validated them."""
        return MissingValues.of(self.missing or {})

    @property
    def model_folder(self) -> str:
        """The absolute path of `model_path`; empty if it was not given."""
        return str(Path(self.model_path).absolute()) if self.model_path else ""

    @property
    def list_kinds(self) -> tuple[str, ...]:
        """Kinds of outputs that the catalogue keeps as lists; `parse` has validated them."""
        given = self.lists.split(",") if isinstance(self.lists, str) else self.lists or ()
        kinds = tuple(dict.fromkeys(kind.strip() for kind in given))
        unknown = [kind for kind in kinds if kind not in LISTS]
        if unknown:
            raise BadInputError(
                f"lists in the request names {unknown[0]!r}: the catalogue takes "
                f"{' and '.join(LISTS)} as lists"
            )
        return kinds

    @property
    def script_mode(self) -> bool:
        """Whether the user's own script does the work: the request has a `script` and no
        `model`."""
        return self.script is not None and self.model is None

    @property
    def results_url(self) -> str:
        """URL of the run's own prefix."""
        if self.results:
            return Location.parse(self.results).url
        return (Location.parse(self.bucket_url(self.bucket or "")) / (self.result_path or "")).url

    def bucket_url(self, name: str) -> str:
        """URL of a bucket: on S3, or a folder in `bucket_root`."""
        return (Location.parse(self.bucket_root) / name).url if self.bucket_root else f"s3://{name}"

    def given(self) -> dict[str, object]:
        """The keys and values as the user gave them, including unknown ones, because scripts read
        them in this form."""
        if self._given is not None:
            return dict(self._given)
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def _repr_html_(self) -> str:
        rows = [(key, _short(value)) for key, value in self.given().items()]
        return html_table(("request", ""), rows)

    def warnings(self) -> tuple[str, ...]:
        """One sentence for each thing in the request that is ignored."""
        known = self.known_keys()
        said = [
            f"the key {key!r} is not known and is ignored{did_you_mean(key, known)}"
            for key in self.model_extra or {}
        ]
        if self.script and not self.script_mode:
            said.append("`script` is not run: the request has a `model`, so our runtime works")
        if self.data_map is not None:
            said.append("`data_map` is made again from the listing; the one given is ignored")
        if self.script_mode and self.data_path is not None:
            said.append("`data_path` is kept for scripts in payload.json; DATA_PATH names each "
                        "rank's own partitions")  # fmt: skip
        return tuple(said)


def read_keys(path: Path) -> dict[str, object]:
    """The keys of a request file; raises `BadInputError` if it is not a JSON object."""
    return read_object(path, "the request")


def _sentences(error: ValidationError, options: Collection[str]) -> str:
    """Turn pydantic's errors into one sentence per key; pydantic reports a key with a union type
    more than once."""
    hints = {f.alias or name: f.description for name, f in RunRequest.model_fields.items()}
    said: dict[str, str] = {}
    for entry in error.errors():
        if not entry["loc"]:
            said.setdefault("", f"the request cannot be run: {entry['ctx']['error']}")
            continue
        key = str(entry["loc"][0])
        option = KEYS[key].option if key in options else None
        what = option.flag if option is not None else f"{key} in the request"
        said.setdefault(key, f"{what} is {_short(entry['input'])}: give {hints.get(key)}")
    return "; ".join(said.values())


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
