"""Checks before an execution starts: one line for each thing that would fail, and what to do about
it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from perseid.aws import stack
from perseid.aws.deploy.doctor import Check, foreign_key
from perseid.aws.session import Aws, aws_errors
from perseid.aws.stack_resources import StackResources
from perseid.errors import PerseidError
from perseid.measure.fields import Fields
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.records import STORE
from perseid.plaintext import counted, option
from perseid.storage import Location

MIB = 1 << 20
ROOM = 2.0
"""Factor of its largest partition's size that a worker's memory may need, in addition to its
libraries."""
LIBRARIES_MB = 350
PENDING_SECONDS = 60.0
"""Longest wait for functions that are being created."""
READS, WRITES = ("s3:GetObject", "s3:ListBucket"), ("s3:PutObject",)


@dataclass(frozen=True)
class Preflight:
    """A run that is about to be started on a stack."""

    aws: Aws
    stack: str
    """Name of the stack."""
    place: StackResources
    manifest: Manifest

    def checks(self) -> Iterator[Check]:
        """Yield the result of every check in order; a check that cannot be made is skipped, with
        the reason."""
        for name, check in CHECKS:
            try:
                state, text = check(self)
            except PerseidError as error:
                state, text = "skip", f"not known: {error}"
            yield Check(name, state, text)

    @cached_property
    def parameters(self) -> Mapping[str, str]:
        """The parameters with which the stack was created."""
        return (stack.describe(self.aws, self.stack) or stack.NOT_THERE).parameters

    @property
    def buckets(self) -> Mapping[str, tuple[str, ...]]:
        """The actions that the run needs in each bucket."""
        found: dict[str, tuple[str, ...]] = {}
        urls = (
            (self.manifest.data_url, READS),
            (self.manifest.settings.model_url, READS[:1]),
            (self.manifest.results_url, (*READS, *WRITES)),
        )
        for url, actions in urls:
            place = Location.parse(url) if "://" in url else None
            if place is not None and place.scheme == "s3":
                found[place.bucket] = tuple(dict.fromkeys((*found.get(place.bucket, ()), *actions)))
        return found

    @property
    def meets(self) -> bool:
        """Whether all ranks have to run at once."""
        return self.manifest.talks or self.manifest.settings.transport not in (STORE, "auto")


Result = tuple[str, str]
"""Result of a check: state (``ok``, ``note``, ``bad``, ``skip``) and sentence."""


def _functions(run: Preflight) -> Result:
    client = run.aws.client("lambda")
    until = time.monotonic() + PENDING_SECONDS
    for name in (run.place.initialize, run.place.worker, run.place.summarize):
        while True:
            with aws_errors():
                found = Fields(client.get_function_configuration(FunctionName=name))
            state = found.text("State") or "Active"
            # It is being created, or it is waking up after weeks without a call.
            if state != "Pending" or time.monotonic() > until:
                break
            time.sleep(1)
        if state not in ("Active", "Inactive"):
            why = found.text("StateReason") or "no reason is given"
            return "bad", f"the function {name} is {state} ({why}): deploy the stack again"
    return "ok", "ready"


def _concurrency(run: Preflight) -> Result:
    reserved = int(run.parameters.get("ReservedConcurrency") or 0)
    ranks, limit = run.manifest.world_size, reserved
    if not reserved:
        with aws_errors():
            answer = Fields(run.aws.client("lambda").get_account_settings())
        limit = answer.inner("AccountLimit").count("UnreservedConcurrentExecutions") or 0
    if not limit:
        return "skip", "the account does not say how many functions may run at once"
    if run.meets and ranks > limit:
        return "bad", (
            f"{ranks} ranks have to run at once, and only {counted(limit, 'function')} may: "
            f"take fewer ranks ({option('world_size')}), leave {option('transport')} at store, or "
            "ask for more under Service Quotas (Lambda, concurrent executions)"
        )
    if ranks > limit:
        rounds = -(-ranks // limit)
        return "note", f"{ranks} ranks run {limit} at once, in about {rounds} rounds"
    return "ok", f"{counted(ranks, 'rank')}, {limit} may run at once"


def _rendezvous(run: Preflight) -> Result:
    given = run.manifest.settings.options.rendezvous_endpoint
    if not run.meets or given:
        return "skip", "none is needed" if not given else f"{given} is used"
    if run.parameters.get("Rendezvous", "yes") != "yes":
        return "bad", (
            "ranks are to meet, and this stack has no rendezvous: `perseid aws deploy "
            f"--rendezvous`, or leave {option('transport')} at store"
        )
    return "ok", "the run has it started"


def _memory(run: Preflight) -> Result:
    largest = max((part.size for part in run.manifest.partitions), default=0) / MIB
    need, have = ROOM * largest + LIBRARIES_MB, run.place.memory_mb
    if run.manifest.script is None and need > have:
        return "note", (
            f"a worker has {have} MB, and one with the largest partition, of {largest:.0f} MB, may "
            f"need {need:.0f}: `perseid aws deploy --memory {round(need)}` if ranks run out of it"
        )
    return "ok", f"{have} MB for partitions of at most {largest:.0f} MB"


def _regions(run: Preflight) -> Result:
    results = Location.parse(run.manifest.results_url).bucket
    notes = []
    for bucket in run.buckets:
        where = _region_of(run.aws, bucket)
        if where == run.aws.region:
            continue
        if bucket == results:
            return "bad", (
                f"results are to go to {bucket} in {where}, and Step Functions reads a run's items "
                f"in {run.aws.region} only: give {option('results')} in a bucket there"
            )
        notes.append(f"{bucket} is in {where}: traffic between regions costs about 0.02 USD a GB")
    return ("note", "; ".join(notes)) if notes else ("ok", run.aws.region)


def _region_of(aws: Aws, bucket: str) -> str:
    with aws_errors():
        return str(aws.client("s3").head_bucket(Bucket=bucket).get("BucketRegion") or aws.region)


def _keys(run: Preflight) -> Result:
    given = run.parameters.get("KmsKey", "")
    wrong = [foreign_key(run.aws, bucket, given) for bucket in run.buckets]
    found = [text for text in wrong if text]
    return ("bad", "; ".join(found)) if found else ("ok", "no key that the roles may not use")


def _rights(run: Preflight) -> Result:
    """Check the permissions: by the stack's own parameters or, if one role was given, by asking
    IAM."""
    if not run.parameters.get("RoleArn"):
        readable = _names(run.parameters.get("ReadBuckets", ""))
        missing = [bucket for bucket in run.buckets if readable and bucket not in readable]
        if missing:
            option = "--results-bucket" if _writes(run, missing[0]) else "--data-bucket"
            return "bad", (
                f"the stack's functions may not use {missing[0]}: `perseid aws deploy {option} "
                f"{missing[0]}` (name further buckets of the stack beside it)"
            )
    return _simulated(run)


def _simulated(run: Preflight) -> Result:
    """The answer of iam:SimulatePrincipalPolicy about the worker's role; None if it may not be
    called."""
    with aws_errors():
        function = Fields(
            run.aws.client("lambda").get_function_configuration(FunctionName=run.place.worker)
        )
    role = function.text("Role") or ""
    denied = []
    for bucket, actions in run.buckets.items():
        for action in actions:
            arn = f"arn:aws:s3:::{bucket}" + ("" if action == "s3:ListBucket" else "/*")
            denied += [f"{action} in {bucket}"] if _is_denied(run.aws, role, action, arn) else []
    if denied:
        return "bad", (
            f"IAM says that the worker's role may not {', '.join(denied)}: name the buckets by "
            "`perseid aws deploy --data-bucket` and `--results-bucket`, or have the role changed"
        )
    return "ok", "IAM says that the worker's role may do what it must"


def _is_denied(aws: Aws, role: str, action: str, arn: str) -> bool:
    with aws_errors():
        answer = aws.client("iam").simulate_principal_policy(
            PolicySourceArn=role, ActionNames=[action], ResourceArns=[arn]
        )
    decisions = [found.text("EvalDecision") for found in Fields(answer).rows("EvaluationResults")]
    return bool(decisions) and "allowed" not in decisions


def _writes(run: Preflight, bucket: str) -> bool:
    return WRITES[0] in run.buckets[bucket]


def _names(arns: str) -> list[str]:
    return [arn.rpartition(":")[2] for arn in arns.split(",") if arn]


CHECKS: tuple[tuple[str, Callable[[Preflight], Result]], ...] = (
    ("functions", _functions),
    ("concurrency", _concurrency),
    ("rendezvous", _rendezvous),
    ("memory", _memory),
    ("regions", _regions),
    ("keys", _keys),
    ("rights", _rights),
)
"""All checks, in the order in which they are shown."""
