"""The first step: list the partitions, distribute them over ranks, and claim the run's prefix."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from perseid.jsontext import json_bytes
from perseid.model.files import DEFAULT
from perseid.model.python_source import is_python
from perseid.model.signature import ModelSignature
from perseid.model.signature_files import signature_beside, signature_of
from perseid.pipeline import layout
from perseid.pipeline.checks import CheckedModel, check_model, check_shape
from perseid.pipeline.claim import FormerRun, claim, give_up, refuse_if_taken
from perseid.pipeline.items import WorkItem
from perseid.pipeline.manifest import Manifest, assign
from perseid.pipeline.model_inputs import same_order_note
from perseid.pipeline.pdf_checks import ADDED
from perseid.pipeline.rankfiles import temporary_folder
from perseid.pipeline.request import RunRequest
from perseid.pipeline.request_listing import Listing, list_partitions
from perseid.pipeline.run_settings import ItemOptions, RunSettings, ScriptJob
from perseid.pipeline.schema import SCHEMA, check_version
from perseid.pipeline.survey_columns import carried, choose_columns, parse_keep
from perseid.pipeline.tables import CATALOGUE
from perseid.plaintext import option
from perseid.storage import Location, Storage
from perseid.survey.column_spec import ColumnSpec
from perseid.survey.look import look_at_formats, notes_on
from perseid.survey.names import check_known


@dataclass(frozen=True)
class Initialized:
    """A run that has begun: its prefix is claimed and its items are written."""

    manifest: Manifest

    @cached_property
    def items(self) -> tuple[WorkItem, ...]:
        """Work items, one per rank."""
        return tuple(self.manifest.items())

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for the user about the run, one sentence each."""
        return self.manifest.warnings


def initialize(
    request: RunRequest,
    job: ScriptJob | None = None,
    *,
    replace: bool = False,
    run_id: str | None = None,
    check: Callable[[Manifest], None] | None = None,
    certificate: str | None = None,
) -> Initialized:
    """Begin a run: afterwards its prefix holds ``manifest.json`` and ``items.json``.

    Parameters
    ----------
    request
        What to run.
    job
        The script of a request in script mode: `perseid.compat.scripts.script_job.script_job`.
    replace
        Replace the run that is at the prefix now. Its objects, and no others, are removed once the
        prefix is claimed; if anything is wrong, nothing is touched.
    run_id
        Unique name of the run; made up if not given. If the run at the prefix already has this name
        (a request that was delivered twice), that run is continued unchanged.
    check
        Called with the manifest before anything is written; it may raise to refuse the run.
    certificate
        Certificate with which ranks encrypt their messages to each other, made by
        `perseid.comm.make_certificate` with the job's key. Its text is stored in the manifest.

    Raises
    ------
    NotFoundError
        The data does not exist.
    BadModelError
        The model does not exist.
    BadInputError
        The data holds no partition.
    RunError
        Another run, or the remains of one, is at the prefix.
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
    # Read before anything else, so that `claim` can tell whether it has changed since.
    former = FormerRun.at(storage) if replace and begun is None else None
    if not replace and begun is None:
        refuse_if_taken(storage)
    # Everything that can be wrong with the request must be found here, before anything is written.
    manifest = plan(request, job, created=created, run_id=run_id)
    if certificate is not None:
        manifest = _with_certificate(manifest, certificate)
    if begun is not None:
        manifest = _adopt(begun, manifest)
        storage.put(layout.MANIFEST, json_bytes(manifest.to_json()))
    else:
        if check is not None:
            check(manifest)
        claim(storage, manifest, former)
    try:
        _put_items(storage, manifest)
    except PerseidError:
        if begun is None:  # leave nothing behind of a run that cannot begin
            give_up(storage)
        raise
    payload = json_bytes({**manifest.request, "data_map": manifest.data_map()})
    storage.put(layout.PAYLOAD, payload)
    if job is not None:  # existing scripts look for the payload only at the bucket's root
        Storage(job.bucket_url).put(layout.PAYLOAD, payload)
    return Initialized(manifest)


def _with_certificate(manifest: Manifest, certificate: str) -> Manifest:
    options = replace(manifest.settings.options, certificate=certificate)
    return replace(manifest, settings=replace(manifest.settings, options=options))


def _put_items(storage: Storage, manifest: Manifest) -> None:
    """Write the items, one per line, as a stream: for 100,000 ranks they take 150 MB."""
    with temporary_folder("initialize") as folder:
        with open(folder / layout.ITEMS, "w", encoding="utf-8") as file:
            before = "[\n"
            for item in manifest.plain_items():
                file.write(before + json.dumps(item))
                before = ",\n"
            file.write("\n]")
        storage.put(layout.ITEMS, folder / layout.ITEMS)


def _begun(storage: Storage, run_id: str) -> Manifest | None:
    """The manifest at the prefix, if it belongs to this very run; otherwise None."""
    try:
        manifest = Manifest.load(storage)
    except (NotFoundError, BadInputError):
        return None
    return manifest if manifest.run_id == run_id else None


def _adopt(begun: Manifest, now: Manifest) -> Manifest:
    """The run as begun by the client, with the clock and the settings of this step, which continues
    it.

    On AWS a client claims the prefix and names the partitions. The step that runs there knows the
    rendezvous and the model that workers call ``default``, and shares the workers' clock.

    Raises
    ------
    BadInputError
        The client and this step have different versions of perseid.
    BadModelError
        The model was replaced after the client had begun the run.
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
                "again with --replace (in Python, replace=True)"
            )
        model = now.model
    return replace(begun, created=now.created, settings=now.settings, model=model)


def plan(
    request: RunRequest,
    job: ScriptJob | None = None,
    *,
    created: float | None = None,
    run_id: str | None = None,
) -> Manifest:
    """What `initialize` would do, without writing anything (``--dry-run``)."""
    if request.script_mode != (job is not None):
        raise ValueError("script mode needs the script's job, and other requests must not have one")
    model = None if job else _checked(request)
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
        assignment=assign(files, world_size, listing.weights),
        settings=_settings(request, listing, survey, model, job),
        request=request.given(),
        script=job.environment if job else None,
        model=model.identity if model else None,
        warnings=(
            *request.warnings(),
            *listing.warnings,
            *survey.notes,
            *(model.notes if model else ()),
            *(job.warnings if job else ()),
            *_claim_warnings(request),
        ),
    )


def new_run_id(now: float) -> str:
    """A new unique id that sorts by time, such as ``20261122T101500Z-1f0a9c3b``."""
    return f"{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


@dataclass(frozen=True)
class CheckedSurvey:
    """Results of checking the survey's files."""

    columns: tuple[ColumnSpec, ...] | None = None
    """Columns of the catalogue that are copied from the survey."""
    notes: tuple[str, ...] = ()
    """Notes for the user, one sentence each."""


def _check_data(request: RunRequest, listing: Listing, model: CheckedModel) -> CheckedSurvey:
    """Check that ranks can read the partitions and that the model accepts them."""
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
    """Raise `BadInputError` if lists are requested of a kind that the model does not give."""
    lacking = [kind for kind in kinds if not model.list_columns((kind,))]
    if lacking:
        raise BadInputError(
            f"the request asks for lists of the kind {lacking[0]}, and the model "
            f"{model.name!r} gives none: leave it out of {option('lists')}"
        )


def _settings(
    request: RunRequest,
    listing: Listing,
    survey: CheckedSurvey,
    model: CheckedModel | None,
    job: ScriptJob | None,
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
        options=_options(request, listing, job),
    )


def _options(request: RunRequest, listing: Listing, job: ScriptJob | None) -> ItemOptions:
    return ItemOptions(
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
        bucket_url=job.bucket_url if job else None,
        talks=(job.talks or None) if job else None,
    )


def _checked(request: RunRequest) -> CheckedModel:
    url = _model_url(request)
    given = signature_beside(url) if request.signature is None else signature_of(request.signature)
    return check_model(url, request.precision, request.anomaly, request.batch_size, given,
                       request.device, request.model_folder)  # fmt: skip


def _model_url(request: RunRequest) -> str:
    model = request.model or DEFAULT
    return model if model == DEFAULT or is_python(model) else Location.parse(model).url


def _claim_warnings(request: RunRequest) -> tuple[str, ...]:
    if Storage(request.results_url).is_conditional:
        return ()
    return (
        "AWS_CONDITIONAL_PUT is disabled: two runs that begin at this place in the same moment are "
        "not kept apart, so start one at a time",
    )
