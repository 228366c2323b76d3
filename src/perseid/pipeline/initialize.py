"""The first step: list the partitions, spread them over ranks, claim the run's prefix."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property

from perseid import __version__
from perseid.errors import (
    BadInputError,
    BadModelError,
    NotFoundError,
    PerseidError,
    StorageError,
)
from perseid.model.files import DEFAULT
from perseid.model.python_source import is_python
from perseid.model.signature import ModelSignature
from perseid.model.signature_files import signature_beside, signature_of
from perseid.pipeline import layout
from perseid.pipeline.checks import CheckedModel, check_model, check_shape
from perseid.pipeline.claim import FormerRun, claim, give_up, refuse_if_taken
from perseid.pipeline.items import PartitionRef, WorkItem
from perseid.pipeline.manifest import Manifest, assign
from perseid.pipeline.model_inputs import same_order_note
from perseid.pipeline.overlap import refuse_overlap
from perseid.pipeline.pdf_checks import ADDED
from perseid.pipeline.rankfiles import temporary_folder
from perseid.pipeline.request import RunRequest
from perseid.pipeline.run_settings import ItemOptions, RunSettings
from perseid.pipeline.schema import SCHEMA, check_version
from perseid.pipeline.scriptfolder import holds_fmi_configuration, script_key
from perseid.pipeline.survey_columns import carried, choose_columns, parse_keep
from perseid.pipeline.tables import CATALOGUE
from perseid.storage import Location, Storage
from perseid.survey.column_spec import ColumnSpec
from perseid.survey.description import SurveyDescription, description_of
from perseid.survey.discovery import Layout, discover
from perseid.survey.hats import rows_of_files
from perseid.survey.look import look_at_formats, notes_on
from perseid.survey.names import check_known
from perseid.survey.read_options import ReadOptions, channels_last


@dataclass(frozen=True)
class Initialized:
    """A run that has begun: its prefix is claimed, its items are written."""

    manifest: Manifest

    @cached_property
    def items(self) -> tuple[WorkItem, ...]:
        """One a rank."""
        return tuple(self.manifest.items())

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know of the run, one sentence each."""
        return self.manifest.warnings


@dataclass(frozen=True)
class Listing:
    """The partitions that a request names."""

    data_url: str
    """Their keys are relative to it."""
    partitions: tuple[PartitionRef, ...]
    """In natural order, cut to the request's `file_limit`."""
    warnings: tuple[str, ...] = ()
    """One sentence each."""
    said: SurveyDescription = field(default_factory=SurveyDescription)
    """What the survey says of itself."""
    uneven: bool = False
    """Whether ranks are given as many rows, not as many partitions: pixels of HATS are uneven."""

    def read_options(self, request: RunRequest) -> ReadOptions:
        """How the files are read: what the request says comes before what the survey says."""
        return ReadOptions(
            names={**self.said.columns, **request.column_names},
            channels_last=channels_last(request.layout or self.said.layout),
            bands=request.band_names or self.said.bands,
        )


def initialize(
    request: RunRequest,
    *,
    replace: bool = False,
    run_id: str | None = None,
    check: Callable[[Manifest], None] | None = None,
    sealed_certificate: str | None = None,
) -> Initialized:
    """Begin a run: after this its prefix holds ``manifest.json`` and ``items.json``.

    Parameters
    ----------
    request
        What to run.
    replace
        Take the place of the run that is at the prefix now. It is removed once the place is
        claimed (only objects that it wrote), and not touched where anything is wrong.
    run_id
        A unique name; where the run at the prefix has it already (a request delivered twice), that
        one is begun again as it is. Made up where it is not given.
    check
        Called with the manifest before anything is written; what it raises ends the run.
    sealed_certificate
        With which ranks encrypt what they send each other: see `perseid.comm.certificates.seal`.

    Raises
    ------
    NotFoundError
        No such data.
    BadModelError
        No such model.
    BadInputError
        The data holds no partition.
    RunError
        Another run, or what is left of one, is at the prefix.
    """
    created = time.time()
    storage = Storage(request.results_url)
    place = storage.local_path()
    if place is not None and place.is_file():
        raise StorageError(
            f"{place} is a file, and a run is a folder: choose another place for results"
        )
    # AWS may deliver a request twice (at-least-once); the second must find the first one's run.
    begun = _begun(storage, run_id) if run_id else None
    # Looked at before anything else, so that `claim` can tell whether it has changed since.
    former = FormerRun.at(storage) if replace and begun is None else None
    if not replace and begun is None:
        refuse_if_taken(storage)
    # Everything that can be wrong with the request is found out here, before anything is written.
    manifest = plan(request, created, run_id)
    if sealed_certificate is not None:
        manifest = _with_certificate(manifest, sealed_certificate)
    if begun is not None:
        manifest = _adopt(begun, manifest)
        storage.put(layout.MANIFEST, _json(manifest.to_json()))
    else:
        if check is not None:
            check(manifest)
        claim(storage, manifest, former)
    try:
        _put_items(storage, manifest)
    except PerseidError:
        if begun is None:  # nothing of a run that cannot begin stays
            give_up(storage)
        raise
    payload = _json({**manifest.request, "data_map": manifest.data_map()})
    storage.put(layout.PAYLOAD, payload)
    if manifest.script is not None:  # scripts look for it at the bucket's root and nowhere else
        Storage(request.bucket_url(request.bucket or "")).put(layout.PAYLOAD, payload)
    return Initialized(manifest)


def _with_certificate(manifest: Manifest, sealed: str) -> Manifest:
    options = replace(manifest.settings.options, sealed_certificate=sealed)
    return replace(manifest, settings=replace(manifest.settings, options=options))


def _put_items(storage: Storage, manifest: Manifest) -> None:
    """Write the items, one per line: of 100,000 ranks they are 150 MB, which no process holds."""
    with temporary_folder("initialize") as folder:
        with open(folder / layout.ITEMS, "w", encoding="utf-8") as file:
            before = "[\n"
            for item in manifest.plain_items():
                file.write(before + json.dumps(item))
                before = ",\n"
            file.write("\n]")
        storage.put(layout.ITEMS, folder / layout.ITEMS)


def _begun(storage: Storage, run_id: str) -> Manifest | None:
    """The manifest at the prefix, if it is of this very run."""
    try:
        manifest = Manifest.load(storage)
    except (NotFoundError, BadInputError):
        return None
    return manifest if manifest.run_id == run_id else None


def _adopt(begun: Manifest, now: Manifest) -> Manifest:
    """The run as it was begun, by the clock and with the settings of the step that goes on with it.

    On AWS a client claims the prefix and names the partitions; the step that runs there knows
    which rendezvous there is, which model the workers call ``default``, and its clock is theirs.

    Raises
    ------
    BadInputError
        The two are of different versions.
    BadModelError
        The model was replaced between the two.
    """
    check_version(
        begun.version,
        "the client that began this run",
        "deploy the workers again with that version (`perseid aws deploy`)",
    )
    model = begun.model or now.model
    if model is not None and now.model is not None and (said := model.difference(now.model)):
        if now.model.kind != DEFAULT:
            raise BadModelError(
                f"the model {now.model.uri} was replaced while the run began ({said}): start it "
                "again with --replace"
            )
        model = now.model
    return replace(begun, created=now.created, settings=now.settings, model=model)


def plan(request: RunRequest, created: float | None = None, run_id: str | None = None) -> Manifest:
    """What `initialize` would do, without writing anything (``--dry-run``)."""
    _check_script(request)
    model = None if request.script_mode else _checked(request)
    listing = list_partitions(request)
    survey = CheckedSurvey() if model is None else _check_data(request, listing, model)
    files = len(listing.partitions)
    world_size = request.world_size or files
    now = time.time() if created is None else created
    return Manifest(
        run_id=run_id or new_run_id(now),
        created=now,
        version=__version__,
        schema=SCHEMA,
        results_url=request.results_url,
        data_url=listing.data_url,
        partitions=listing.partitions,
        assignment=assign(files, world_size, _weights(listing)),
        settings=_settings(request, listing, survey, model),
        request=request.given(),
        script=_environment(request) if request.script_mode else None,
        model=model.identity if model else None,
        warnings=(
            *request.warnings(),
            *listing.warnings,
            *survey.notes,
            *(model.notes if model else ()),
            *_script_warnings(request),
            *_claim_warnings(request),
        ),
    )


def list_partitions(request: RunRequest) -> Listing:
    """Every partition that the request names: all pages, natural order, `file_limit` applied.

    Raises
    ------
    NotFoundError
        The folder (or one of the listed files) is not there.
    BadInputError
        The folder holds no partition, the list names one twice, or the results would lie in the
        data, or the data in a run.
    """
    if request.data:
        found = discover(request.data)
        folder = found.location
    else:
        bucket = Location.parse(request.bucket_url(request.data_bucket or ""))
        folder = bucket / (request.data_prefix or "")
        found = discover(folder, base=bucket)
    named = found.layout is Layout.FILES or not (request.data or request.data_prefix)
    refuse_overlap(folder, Location.parse(request.results_url), results_may_lie_below=named)
    refs = tuple(PartitionRef(info.key, info.size, info.etag) for info in found.partitions)
    if found.layout is Layout.HATS:
        rows = rows_of_files(Storage(found.location), [ref.key for ref in refs])
        refs = tuple(replace(ref, rows=rows.get(ref.key)) for ref in refs)
    said, uneven = description_of(found), found.layout is Layout.HATS
    listing = Listing(found.location.url, refs, (*found.notes, *said.notes), said, uneven)
    limit, count = request.file_limit, len(refs)
    if limit is None or limit == count:
        return listing
    if limit > count:
        fewer = f"file_limit is {limit}, but there are only {count} partitions: all are used"
        return replace(listing, warnings=(*listing.warnings, fewer))
    return replace(listing, partitions=refs[:limit])


def _weights(listing: Listing) -> Sequence[int] | None:
    """What each partition weighs, where the survey's are uneven by their nature."""
    if not listing.uneven:
        return None
    rows = [ref.rows for ref in listing.partitions]
    known = [count for count in rows if count is not None]
    return known if len(known) == len(rows) else [ref.size for ref in listing.partitions]


def new_run_id(now: float) -> str:
    """E.g. ``20261122T101500Z-1f0a9c3b``: sorts by time, never the same twice."""
    return f"{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


@dataclass(frozen=True)
class CheckedSurvey:
    """What checking the survey's files has shown."""

    columns: tuple[ColumnSpec, ...] | None = None
    """Columns of the catalogue that come from the survey."""
    notes: tuple[str, ...] = ()
    """One sentence each."""


def _check_data(request: RunRequest, listing: Listing, model: CheckedModel) -> CheckedSurvey:
    """Find out whether ranks can read the partitions and the model take them."""
    storage = Storage(listing.data_url)
    options = listing.read_options(request)
    names, known = options.names, model.signature or model.given
    inputs = [column.column for column in known.columns] if known else list(names)
    check_known(request.column_names, inputs)
    looks = look_at_formats(storage, [ref.key for ref in listing.partitions], options)
    outputs = (*known.output_columns(), *known.list_columns()) if known else ()
    if known:
        _check_lists(request.list_kinds, known)
    reserved = [*(c.name for c in CATALOGUE), *(c.name for c in outputs), *ADDED]
    columns = choose_columns(looks, names, parse_keep(request.keep), reserved)
    if model.signature is not None:
        check_shape(
            storage,
            listing.partitions,
            model.signature,
            options=replace(options, further=carried(columns)),
            fit=request.fit or "",
        )
    taken = [one for name in inputs for one in names.get(name, (name,))]
    notes = notes_on(looks, carried(columns), taken)
    by_order = {same_order_note(known, look.columns.shape[0], look.bands)
                for look in looks if known and known.bands}  # fmt: skip
    return CheckedSurvey(columns, (*notes, *sorted(by_order - {""})))


def _check_lists(kinds: Sequence[str], model: ModelSignature) -> None:
    """Raise `BadInputError` if the model gives no lists of a kind that is asked for."""
    lacking = [kind for kind in kinds if not model.list_columns((kind,))]
    if lacking:
        raise BadInputError(
            f"the catalogue is to have lists of the kind {lacking[0]}, and the model "
            f"{model.name!r} gives none: leave it out of --lists"
        )


def _settings(
    request: RunRequest, listing: Listing, survey: CheckedSurvey, model: CheckedModel | None
) -> RunSettings:
    given, options = model.given if model else None, listing.read_options(request)
    return RunSettings(
        model_url=_model_url(request),
        precision=request.precision,
        batch_size=request.batch_size,
        anomaly=request.anomaly,
        top=request.top,
        missing={name: tuple(v) for name, v in request.missing_values.to_json().items()},
        columns=dict(options.names) or None,
        layout=request.layout or listing.said.layout,
        bands=options.bands or None,
        survey_columns=survey.columns,
        signature=given.to_plain() if given else None,
        intervals=model.intervals if model else None,
        fit=request.fit or "",
        lists=request.list_kinds or None,
        transport=request.transport,
        options=_options(request, listing),
    )


def _options(request: RunRequest, listing: Listing) -> ItemOptions:
    options = ItemOptions(
        memory_mb=request.memory_mb,
        timeout=request.timeout,
        retries=request.retries,
        threads=request.threads,
        workers=request.workers,
        model_path=request.model_folder or None,
        tolerated_failures=request.tolerated_failures,
        rendezvous_endpoint=request.rendezvous_endpoint,
        death_timeout=request.death_timeout,
        link_timeout=request.link_timeout,
        silence_timeout=request.silence_timeout,
        result_path=request.result_path,
        label_names={str(label): name for label, name in listing.said.labels.items()},
    )
    if not request.script_mode:
        return options
    bucket = request.bucket_url(request.bucket or "")
    return replace(options, bucket_url=bucket, talks=_talks(request) or None)


def _talks(request: RunRequest) -> bool:
    """Whether the script's ranks talk to each other, so that all must run at once."""
    if request.fmi_enabled is not None:
        return request.fmi_enabled
    bucket = Storage(request.bucket_url(request.bucket or ""))
    return holds_fmi_configuration(bucket, request.s3_object_name or "")


def _checked(request: RunRequest) -> CheckedModel:
    url = _model_url(request)
    given = signature_beside(url) if request.signature is None else signature_of(request.signature)
    return check_model(url, request.precision, request.anomaly, request.batch_size, given,
                       request.device, request.model_folder)  # fmt: skip


def _model_url(request: RunRequest) -> str:
    model = request.model or DEFAULT
    return model if model == DEFAULT or is_python(model) else Location.parse(model).url


def _environment(request: RunRequest) -> dict[str, str]:
    """The item keys of the existing executor that do not depend on the rank."""
    return {
        "S3_BUCKET": request.bucket or "",
        "S3_OBJECT_NAME": request.s3_object_name or "",
        "SCRIPT": request.script or "",
        "S3_OBJECT_TYPE": request.object_type,
        "DATA_BUCKET": request.data_bucket or "",
        "DATA_PREFIX": request.data_prefix or "",
        "RESULT_PATH": request.result_path or "",
        "BATCH_SIZE": str(request.batch_size),
    }


def _check_script(request: RunRequest) -> None:
    """The script must be in its folder: better said now than by every rank."""
    if not request.script_mode:
        return
    folder, script = request.s3_object_name or "", request.script or ""
    bucket = Storage(request.bucket_url(request.bucket or ""))
    key = f"{folder}/{script_key(folder, script)}"
    if not bucket.exists(key):
        raise NotFoundError(
            f"script {script!r} is not there: {bucket.where(key)} does not exist; check `script` "
            "and `S3_object_name`, or give `model` to use our runtime instead"
        )


def _claim_warnings(request: RunRequest) -> tuple[str, ...]:
    if Storage(request.results_url).is_conditional:
        return ()
    return (
        "AWS_CONDITIONAL_PUT is disabled: two runs that begin at this place in the same moment are "
        "not kept apart, so start one at a time",
    )


def _script_warnings(request: RunRequest) -> tuple[str, ...]:
    if not request.script_mode:
        return ()
    root = (Location.parse(request.bucket_url(request.bucket or "")) / layout.PAYLOAD).url
    return (f"{root} is shared by all script runs of the bucket: run them one after the other",)


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1).encode()
