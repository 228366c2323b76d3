"""Check that everything a run on AWS needs is there. Each check gives one line: all is well, or
what to do."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from perseid.aws import stack
from perseid.aws.deploy import service
from perseid.aws.deploy.template import NEW_ACCOUNT_MB
from perseid.aws.handlers.ready import CHECK
from perseid.aws.session import Aws, aws_errors
from perseid.errors import AwsError, NotFoundError, PerseidError
from perseid.jsontext import parse_json
from perseid.measure.fields import Fields
from perseid.plaintext import counted

SKEW_SECONDS = 60.0
"""Largest tolerated difference from AWS's clock, in seconds; AWS refuses signatures from 300 s
on."""
FEW_AT_ONCE = 100
"""Number of concurrent executions below which a run of the published size takes several rounds."""
FUNCTIONS = ("Initialize", "Worker", "LargerWorker", "Summarize", "Ping", "DnsUpdater")
"""The functions of a stack; the outputs that name them end in ``Function``."""
LARGER = "LargerWorkerFunction"
"""Output that names the worker with more memory, which has the same role as the other worker."""


@dataclass(frozen=True)
class Check:
    """The result of one check, and what to do if something is wrong."""

    name: str
    state: str
    """``ok``, ``note`` (it works, but the user should know something), ``bad`` or ``skip``."""
    text: str
    """What was found, or what the user should do."""


@dataclass(frozen=True)
class Finding:
    """A check's state and text, as in `Check`."""

    state: str
    text: str


@dataclass
class Facts:
    """Results of earlier checks that later ones need."""

    identified: bool = False
    """Whether AWS accepted the credentials and named their owner."""
    date: str = ""
    """Date header of that answer."""
    outputs: Mapping[str, str] | None = None
    """Outputs of the stack; None if there is no stack."""
    parameters: Mapping[str, str] | None = None
    status: service.Status | None = None
    """Status of the rendezvous service."""

    @property
    def known(self) -> Mapping[str, str]:
        """The stack's outputs; checks wrapped by `_of_stack` run only if there are any."""
        return self.outputs or {}


def examine(aws: Aws, name: str) -> Iterator[Check]:
    """Yield the result of every check in order; a check runs even if an earlier one failed."""
    facts = Facts()
    for title, check in CHECKS:
        try:
            found = check(aws, name, facts)
        except PerseidError as error:
            gone = isinstance(error, NotFoundError) and facts.outputs is not None
            found = Finding("bad", f"{error}: {service.REMAKE}" if gone else str(error))
        yield Check(title, found.state, found.text)


def _of_stack(check: Callable[[Aws, str, Facts], Finding]) -> Callable[..., Finding]:
    """Wrap a check that needs a stack, so that it is skipped if there is none."""

    def checked(aws: Aws, name: str, facts: Facts) -> Finding:
        if facts.outputs is None:
            return Finding("skip", "there is no stack")
        return check(aws, name, facts)

    return checked


def _credentials(aws: Aws, name: str, facts: Facts) -> Finding:
    answer = Fields(aws.caller_identity())
    facts.date = answer.inner("ResponseMetadata").inner("HTTPHeaders").text("date") or ""
    facts.identified = True
    return Finding("ok", f"{answer.text('Arn')} in account {answer.text('Account')}")


def _region(aws: Aws, name: str, facts: Facts) -> Finding:
    return Finding("ok", aws.region)


def _clock(aws: Aws, name: str, facts: Facts) -> Finding:
    if not facts.identified:
        return Finding("skip", "not known without credentials")
    if not facts.date:
        return Finding("skip", "AWS's answer bore no date")
    skew = (datetime.now(UTC) - parsedate_to_datetime(facts.date)).total_seconds()
    if abs(skew) > SKEW_SECONDS:
        return Finding(
            "bad", f"this machine's clock is {skew:+.0f} s off: set it (NTP), or requests fail"
        )
    return Finding("ok", f"{skew:+.1f} s off")


def _stack(aws: Aws, name: str, facts: Facts) -> Finding:
    facts.outputs = stack.outputs(aws, name)
    found = stack.describe(aws, name) or stack.NOT_THERE
    facts.parameters, state = found.parameters, found.status
    if not state.endswith(("CREATE_COMPLETE", "UPDATE_COMPLETE")):
        again = "destroy" if state.startswith("DELETE") else "deploy"
        return Finding("bad", f"{name} is {state}: run `perseid aws {again}` again")
    return Finding("ok", f"{name} is {state}")


def _concurrency(aws: Aws, name: str, facts: Facts) -> Finding:
    with aws_errors():
        limits = aws.client("lambda").get_account_settings()["AccountLimit"]
    most = int(limits["ConcurrentExecutions"])
    if most < FEW_AT_ONCE:
        return Finding(
            "note",
            f"{counted(most, 'function')} at once in this account: more ranks wait for their "
            "turn, and ranks "
            "that talk to each other must not be more; ask for more under Service Quotas (Lambda, "
            "concurrent executions)",
        )
    return Finding("ok", f"{counted(most, 'function')} at once")


@_of_stack
def _memory(aws: Aws, name: str, facts: Facts) -> Finding:
    outputs = facts.known
    with aws_errors():
        found = aws.client("lambda").get_function_configuration(
            FunctionName=outputs["WorkerFunction"]
        )
    most = int(found["MemorySize"])
    if most > NEW_ACCOUNT_MB:
        return Finding(
            "note",
            f"workers have {most} MB; new accounts are capped at {NEW_ACCOUNT_MB} MB, and a deploy "
            "above an account's cap fails: give --memory then",
        )
    return Finding("ok", f"workers have {most} MB, {found['Timeout']} s")


def _transitions(aws: Aws, name: str, facts: Facts) -> Finding:
    client = aws.client("service-quotas")
    try:
        with aws_errors():
            pages = client.get_paginator("list_service_quotas").paginate(ServiceCode="states")
            found = [quota for page in pages for quota in page["Quotas"]]
    except PerseidError as error:
        return Finding("skip", f"the quotas of Step Functions cannot be read: {error}")
    rates = {q["QuotaName"]: q["Value"] for q in found if "ransition" in q["QuotaName"]}
    if not rates:
        return Finding("skip", "AWS lists no quota of state transitions here")
    return Finding("ok", ", ".join(f"{quota}: {value:g}" for quota, value in sorted(rates.items())))


def _buckets(aws: Aws, name: str, facts: Facts) -> Finding:
    values = facts.parameters
    if values is None:
        return Finding("skip", "there is no stack")
    found = [arn.rpartition(":")[2] for arn in values["ReadBuckets"].split(",")]
    bad, notes = [], []
    for bucket in found:
        try:
            with aws_errors():
                where = aws.client("s3").get_bucket_location(Bucket=bucket)["LocationConstraint"]
        except NotFoundError:
            bad.append(f"{bucket} is gone: {_mend_bucket(bucket, values)}")
            continue
        except AwsError as error:
            bad.append(f"{bucket}: {error}")
            continue
        if foreign := foreign_key(aws, bucket, values.get("KmsKey", "")):
            bad.append(foreign)
        if (where or "us-east-1") != aws.region:
            notes.append(f"{bucket} is in {where or 'us-east-1'}: traffic between regions costs")
    if bad:
        return Finding("bad", "; ".join(bad + notes))
    if notes:
        return Finding("note", "; ".join(notes))
    return Finding("ok", ", ".join(found))


def foreign_key(aws: Aws, bucket: str, given: str) -> str:
    """What is wrong if a bucket is encrypted with a customer's key that no role may use; otherwise
    empty."""
    try:
        with aws_errors():
            found = aws.client("s3").get_bucket_encryption(Bucket=bucket)
    except (AwsError, NotFoundError):  # no encryption is set, or it may not be read
        return ""
    for rule in found["ServerSideEncryptionConfiguration"]["Rules"]:
        key = rule.get("ApplyServerSideEncryptionByDefault", {}).get("KMSMasterKeyID", "")
        if key and not key.endswith("alias/aws/s3") and not given:
            return (
                f"{bucket} is encrypted with the key {key}, which no role of the stack may use: "
                "`perseid aws deploy --kms-key ARN`"
            )
    return ""


def _mend_bucket(bucket: str, values: Mapping[str, str]) -> str:
    if bucket == values["CodeBucket"]:
        return f"it held the packages; {service.REMAKE}"
    if bucket in values["WriteBuckets"]:
        return (
            "make it again, or name those that are there by `perseid aws deploy --results-bucket`"
        )
    return "make it again, or name those that are there by `perseid aws deploy --data-bucket`"


@_of_stack
def _functions(aws: Aws, name: str, facts: Facts) -> Finding:
    """Start each function: the import alone shows whether a library is missing."""
    outputs = facts.known
    versions, bad = set(), []
    for part in FUNCTIONS:
        function = outputs.get(f"{part}Function")
        if function is None:
            continue
        try:
            with aws_errors():
                answer = aws.client("lambda").invoke(
                    FunctionName=function, Payload=json.dumps({CHECK: True}).encode()
                )
        except NotFoundError:  # another check reports it
            continue
        said = parse_json(answer["Payload"].read() or b"null") or {}
        if answer.get("FunctionError"):
            bad.append(f"{function} does not start: {said.get('errorMessage', said)}")
        else:
            versions.add(said["python"])
    if bad:
        return Finding("bad", "; ".join(bad) + "; deploy it again with `perseid aws deploy`")
    return Finding("ok", f"all start, on Python {', '.join(sorted(versions))}")


@_of_stack
def _roles(aws: Aws, name: str, facts: Facts) -> Finding:
    outputs = facts.known
    names = [f"{part}Function" for part in FUNCTIONS]
    functions = [outputs[output] for output in names if output in outputs]
    roles = {}
    for function in functions:
        with aws_errors():
            found = aws.client("lambda").get_function_configuration(FunctionName=function)
        roles[function] = found["Role"]
        state, why = found.get("State", "Active"), found.get("StateReason", "no reason")
        if state == "Pending":
            return Finding("note", f"{function} is not ready yet: {why}")
        if state not in ("Active", "Inactive"):
            return Finding("bad", f"{function} is {state}: {why}; {service.REMAKE}")
    if (facts.parameters or {}).get("RoleArn"):
        return Finding("ok", f"{len(functions)} functions, all with the role that was given")
    own = [role for function, role in roles.items() if function != outputs.get(LARGER)]
    if len(set(own)) != len(own):
        return Finding(
            "bad", f"functions share a role, which the template never does; {service.REMAKE}"
        )
    return Finding("ok", f"{len(functions)} functions, a role each")


@_of_stack
def _state_machine(aws: Aws, name: str, facts: Facts) -> Finding:
    with aws_errors():
        found = aws.client("stepfunctions").describe_state_machine(
            stateMachineArn=facts.known["StateMachineArn"]
        )
    if found["status"] != "ACTIVE":
        return Finding("bad", f"{found['name']} is {found['status']}: {service.REMAKE}")
    return Finding("ok", str(found["name"]))


@_of_stack
def _service(aws: Aws, name: str, facts: Facts) -> Finding:
    if "RendezvousCluster" not in facts.known:
        return Finding("skip", "this stack has none; `perseid aws deploy --rendezvous` adds one")
    facts.status = found = service.status(aws, name)
    if not found.wanted:
        return Finding(
            "skip",
            "stopped, which costs nothing; `perseid aws rendezvous start` before a run whose ranks "
            "talk to each other",
        )
    if found.task.address is None:
        return Finding(
            "bad",
            f"{found.wanted} task wanted, none has an address: wait a minute, then look into the "
            f"log group /perseid/{name}-rendezvous",
        )
    return Finding("ok", f"a task runs at {found.task.address} since {found.task.started}")


def _address(aws: Aws, name: str, facts: Facts) -> Finding:
    found = facts.status
    if found is None or found.task.address is None:
        return Finding("skip", "no task runs")
    if not found.consistent:
        said = ", ".join(found.recorded) or "nothing"
        return Finding(
            "bad",
            f"the task is at {found.task.address}, but the parameter says "
            f"{found.published.address} and the DNS record {said}: `perseid aws rendezvous start` "
            "publishes it again",
        )
    return Finding("ok", f"{found.name or 'the parameter'} says {found.task.address}")


@_of_stack
def _ping(aws: Aws, name: str, facts: Facts) -> Finding:
    found = facts.status
    if found is None or found.endpoint is None:
        return Finding("skip", "no task runs")
    began = time.monotonic()
    with aws_errors():
        answer = aws.client("lambda").invoke(
            FunctionName=facts.known["PingFunction"],
            Payload=json.dumps({"rendezvous_endpoint": str(found.endpoint)}).encode(),
        )
    said = parse_json(answer["Payload"].read() or b"null")
    if answer.get("FunctionError"):
        return Finding(
            "bad", f"a function cannot reach it: {(said or {}).get('errorMessage', said)}"
        )
    took = time.monotonic() - began
    if not said.get("perseid"):
        return Finding("bad", f"something else listens there: {said.get('message')}")
    return Finding(
        "ok",
        f"connected in {said['connect_seconds'] * 1e3:.1f} ms, NAT {said['nat'].lower()}; the "
        f"invocation took {took:.1f} s",
    )


CHECKS: tuple[tuple[str, Callable[[Aws, str, Facts], Finding]], ...] = (
    ("credentials", _credentials),
    ("region", _region),
    ("clock", _clock),
    ("concurrency", _concurrency),
    ("transitions", _transitions),
    ("stack", _stack),
    ("memory", _memory),
    ("buckets", _buckets),
    ("roles", _roles),
    ("functions", _functions),
    ("state machine", _state_machine),
    ("rendezvous", _service),
    ("address", _address),
    ("ping", _ping),
)
"""All checks, in the order in which they are shown."""
