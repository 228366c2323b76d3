"""What is deployed: the template, the state machine's definition, and the template's parameters."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources

from perseid import __version__
from perseid.aws.deploy.packaging import Package
from perseid.aws.deploy.tags import check_tags
from perseid.aws.deploy.wheels import PYTHONS, Target
from perseid.errors import BadInputError

NAME = "perseid"
"""Default name of the stack."""
NAME_CHARACTERS = 32
"""Longest name of a stack. With it CloudFormation need not shorten the names of the roles, which
the policies of `perseid aws policy` recognize by their beginning."""
RESERVED = ("aws", "ssm")
"""Prefixes that no name of a parameter may have
(https://docs.aws.amazon.com/systems-manager/latest/userguide/sysman-paramstore-su-create.html)."""
ARN = "arn:aws"
WORKER_MB = 1769
"""Default memory of a worker in MB, for which Lambda gives one vCPU."""
NEW_ACCOUNT_MB = 3008
"""Most memory of a function in a new account, in MB."""
MOST_MB = 10_240
"""Most memory of any function, in MB."""
BUCKET_CHARACTERS = 63
"""Longest name of a bucket
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html)."""
_IMAGE = re.compile(
    r"\d{12}\.dkr\.ecr\.[a-z0-9-]+\.amazonaws\.com/[a-z0-9._/-]+(:[\w.-]+)?(@sha256:[0-9a-f]{64})?"
)
_YES_NO = {True: "yes", False: "no"}
_CLUSTER = re.compile("[A-Za-z0-9_-]{1,255}")
_NAME = re.compile("[A-Za-z]([A-Za-z0-9-]*[A-Za-z0-9])?")


@dataclass(frozen=True)
class Options:
    """The user's options; None means the value of the previous deployment, or else the template's
    default."""

    name: str = NAME
    """Name of the stack, with which the names of all its resources begin."""
    bucket: str | None = None
    """Bucket for packages and results; created if not given."""
    read_buckets: tuple[str, ...] | None = None
    """Further buckets with surveys, models or scripts."""
    write_buckets: tuple[str, ...] | None = None
    """Further buckets for results, which may also be read. ``BUCKET/PREFIX`` limits writing and
    deleting to objects below the prefix, also for `bucket`."""
    architecture: str | None = None
    python: str | None = None
    memory_mb: int | None = None
    retry_memory_mb: int | None = None
    """Memory in MB of the worker that retries ranks that ran out of memory; 0 means no such
    worker."""
    timeout: int | None = None
    """Time limit of a worker, in seconds."""
    storage_mb: int | None = None
    """Size of a worker's /tmp, in MB."""
    reserved: int | None = None
    """Concurrency reserved for workers; 0 means none."""
    layers: tuple[str, ...] | None = None
    worker_image: str | None = None
    """URI of an image in this region's ECR that workers run instead of the zip, for scripts whose
    imports fit neither a zip nor a layer."""
    log_days: int | None = None
    error_logs: bool | None = None
    """Whether Step Functions logs errors of the state machine and of the map's child executions."""
    rendezvous: bool | None = None
    """Whether the stack has a rendezvous: a VPC, an ECS service and an EventBridge rule. Giving any
    of the options from `vpc` to `image` implies it."""
    role: str | None = None
    """ARN of one role for all functions and the state machine; otherwise each has its own."""
    boundary: str | None = None
    """ARN of the permissions boundary of the roles that are created."""
    kms_key: str | None = None
    """ARN of the key that encrypts the buckets, if it is a customer's key."""
    cluster: str | None = None
    """An existing ECS cluster for the rendezvous' task; otherwise one is created."""
    vpc: str | None = None
    subnets: tuple[str, ...] | None = None
    zone: str | None = None
    record: str | None = None
    image: str | None = None
    tags: tuple[str, ...] = ()
    """Further tags, as ``KEY=VALUE``, for the stack, its resources and a new bucket; later
    deployments keep them."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """Further parameters of the template."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise BadInputError(
                f"the stack's name {self.name!r} may hold letters, digits and - only, must begin "
                "with a letter and end with a letter or digit"
            )
        if len(self.name) > NAME_CHARACTERS:
            raise BadInputError(
                f"the stack's name {self.name!r} is longer than {NAME_CHARACTERS} characters"
            )
        if self.name.lower().startswith(RESERVED):
            raise BadInputError(
                f"the stack's name {self.name!r} begins with aws or ssm, which Parameter Store "
                "keeps for AWS: take another name"
            )
        if self.worker_image and not _IMAGE.fullmatch(self.worker_image):
            raise BadInputError(
                f"--worker-image {self.worker_image!r} is not in ECR, and Lambda takes images from "
                "there only: push it, and give ACCOUNT.dkr.ecr.REGION.amazonaws.com/NAME:TAG"
            )
        if self.worker_image and self.layers:
            raise BadInputError("an image has no layers: put their contents into the image")
        if self.role and self.boundary:
            raise BadInputError("with --role no roles are made: leave --permissions-boundary out")
        for place in self.write_buckets or ():
            if place.endswith("/") or "*" in place or "?" in place:
                raise BadInputError(f"--results-bucket {place!r} must be BUCKET or BUCKET/PREFIX")
        if self.cluster and not _CLUSTER.fullmatch(self.cluster):
            raise BadInputError(
                f"--cluster {self.cluster!r} must be the name of an ECS cluster: letters, digits, "
                "- and _"
            )
        check_tags(self.tags)
        if bool(self.vpc) != bool(self.subnets):
            raise BadInputError("give --vpc and --subnet together: public subnets of that VPC")
        if bool(self.zone) != bool(self.record):
            raise BadInputError(
                "give --zone and --record together: the hosted zone and a name in it"
            )

    def target(self, previous: Mapping[str, str]) -> Target:
        """The platform on which the functions run."""
        python = self.python or previous.get("Runtime", "").removeprefix("python")
        # Deployed when this version was still supported.
        if self.python is None and python not in PYTHONS:
            python = ""
        return Target(self.architecture or previous.get("Architecture") or "x86_64", python)


def template() -> str:
    """The CloudFormation template (YAML)."""
    return _data("template.yaml")


def parameter_names() -> set[str]:
    """Names of the template's parameters."""
    section = template().split("\nParameters:\n")[1].split("\nConditions:\n")[0]
    return set(re.findall(r"^  (\w+):", section, re.MULTILINE))


def log_groups(name: str) -> list[str]:
    """Names of the log groups that a stack of this name may have."""
    found = re.findall(r'LogGroupName: !Sub "([^"]+)"', template())
    return [group.replace("${AWS::StackName}", name) for group in found]


def wants_rendezvous(options: Options, previous: Mapping[str, str]) -> bool:
    """Whether the stack is to have a rendezvous: as requested, else as deployed before."""
    if options.rendezvous is not None:
        return options.rendezvous
    if options.cluster or options.vpc or options.zone or options.image:
        return True
    # Stacks from before this option existed always have one.
    return previous.get("Rendezvous", "yes" if "RendezvousStart" in previous else "no") == "yes"


def definition() -> str:
    """The state machine in the Amazon States Language, with ``${…}`` in place of the functions."""
    return _data("statemachine.asl.json")


def definition_key() -> str:
    """Key of the uploaded definition; a new text has a new key."""
    return f"code/statemachine-{hashlib.sha256(definition().encode()).hexdigest()[:20]}.asl.json"


def secret_name(name: str) -> str:
    """Name of the SecureString that job keys are derived from."""
    return f"/{name}/rendezvous-secret"


def new_secret() -> str:
    """A new secret for the rendezvous: 256 random bits in hexadecimal."""
    return secrets.token_hex(32)


def default_bucket(name: str, account: str, region: str) -> str:
    """Name of the bucket that is created if none is given.

    Raises `BadInputError` if the stack's name is too long for it.
    """
    found = "-".join(["perseid", account, region, *([name] if name != NAME else [])]).lower()
    if len(found) > BUCKET_CHARACTERS:
        most = len(name) - (len(found) - BUCKET_CHARACTERS)
        raise BadInputError(
            f"the stack's name {name!r} makes the bucket's name {found} too long: take at most "
            f"{most} characters, or give --bucket"
        )
    return found


def expected_owner(bucket: str, account: str) -> dict[str, str]:
    """An argument for S3 calls which requires that a bucket named after this account belongs to it.

    Somebody else could guess the name and create the bucket first.
    """
    named = bucket.startswith(f"perseid-{account}-")
    return {"ExpectedBucketOwner": account} if named else {}


def prefix(name: str) -> str:
    """Prefix of all objects that deploying puts into the bucket."""
    return f"perseid/{name}"


def parameters(
    options: Options,
    packages: Mapping[str, Package],
    target: Target,
    bucket: str,
    previous: Mapping[str, str],
    running: int = 0,
) -> dict[str, str]:
    """Values of the template's parameters; those that are left out get the template's default.

    Parameters
    ----------
    options
        The user's options.
    packages
        The packages that were built.
    bucket
        Bucket that holds the packages.
    previous
        Values of the existing stack; empty if there is none. Values that somebody chose are kept,
        all others follow this template.
    running
        Number of rendezvous tasks that are wanted now, which a new deployment must not stop.
    """
    below = prefix(options.name)
    chosen = _chosen(options)
    fixed = {
        "Architecture": target.architecture,
        "Runtime": target.runtime,
        "Version": __version__,
        "Rendezvous": "yes" if wants_rendezvous(options, previous) else "no",
        "CodeBucket": bucket,
        "WorkerKey": f"{below}/{packages['worker'].key}",
        "ControlKey": f"{below}/{packages['control'].key}",
        "ToolsKey": f"{below}/{packages['tools'].key}",
        "DefinitionKey": f"{below}/{definition_key()}",
        "RendezvousStart": _start(),
        "RendezvousCount": str(running),
        "SecretParameter": secret_name(options.name),
    }
    # The template's defaults may improve between versions: only what somebody chose is carried
    # over.
    ours = fixed | _buckets(options, bucket, previous)
    kept = {**_kept(previous), **chosen, **options.extra}
    _check_retry_memory(kept)
    ours |= {} if "RetryMemory" in kept else {"RetryMemory": str(_retry_memory(kept))}
    names = sorted(kept.keys() - ours.keys())
    return {**kept, **ours, "Chosen": ",".join(names), **options.extra}


def _chosen(options: Options) -> dict[str, str]:
    """Parameters to which the user gave a value."""
    values: dict[str, object] = {
        "WorkerMemory": options.memory_mb,
        "RetryMemory": options.retry_memory_mb,
        "WorkerTimeout": options.timeout,
        "WorkerStorage": options.storage_mb,
        "ReservedConcurrency": options.reserved,
        "WorkerLayers": _list(options.layers),
        "WorkerImage": options.worker_image,
        "LogRetention": options.log_days,
        "ErrorLogs": None if options.error_logs is None else _YES_NO[options.error_logs],
        "RoleArn": options.role,
        "PermissionsBoundary": options.boundary,
        "KmsKey": options.kms_key,
        "ExistingCluster": options.cluster,
        "VpcId": options.vpc,
        "SubnetIds": _list(options.subnets),
        "HostedZoneId": options.zone and options.zone.rpartition("/")[2],
        "RecordName": options.record,
        "RendezvousImage": options.image,
    }
    return {name: str(value) for name, value in values.items() if value is not None}


def _retry_memory(kept: Mapping[str, str]) -> int:
    """Memory in MB of the worker for a second attempt after running out of memory, if nobody chose
    it.

    It is twice the worker's memory. It stays within a new account's limit, above which the
    deployment would fail, unless the worker itself has more.
    """
    memory = _worker_memory(kept)
    if memory == NEW_ACCOUNT_MB or memory >= MOST_MB:
        return 0
    return min(2 * memory, NEW_ACCOUNT_MB if memory < NEW_ACCOUNT_MB else MOST_MB)


def _check_retry_memory(kept: Mapping[str, str]) -> None:
    chosen, memory = int(kept.get("RetryMemory", 0)), _worker_memory(kept)
    if chosen and chosen <= memory:
        raise BadInputError(
            f"--retry-memory {chosen} is not more than the {memory} MB of a worker: give more, or "
            "0 for no such function"
        )


def _worker_memory(kept: Mapping[str, str]) -> int:
    return int(kept.get("WorkerMemory", WORKER_MB))


def _kept(previous: Mapping[str, str]) -> dict[str, str]:
    """Parameters that a user chose and that the template still has; for older stacks all their
    parameters."""
    chosen = previous["Chosen"].split(",") if "Chosen" in previous else list(previous)
    known = parameter_names()
    return {name: previous[name] for name in chosen if name in previous and name in known}


def _buckets(options: Options, bucket: str, previous: Mapping[str, str]) -> dict[str, str]:
    def known(key: str) -> tuple[str, ...]:
        places = (
            arn.removesuffix("/*").rpartition(":")[2] for arn in previous.get(key, "").split(",")
        )
        return tuple(place for place in places if place)

    write = options.write_buckets
    if write is None:
        write = tuple(place for place in known("WriteObjects") if place != bucket)
    narrow = any(place.startswith(f"{bucket}/") for place in write)
    writes = list(dict.fromkeys([*(() if narrow else (bucket,)), *write]))
    write_names = list(dict.fromkeys(place.partition("/")[0] for place in writes))
    read = options.read_buckets
    if read is None:
        read = tuple(name for name in known("ReadBuckets") if name not in (bucket, *write_names))
    reads = list(dict.fromkeys([bucket, *write_names, *read]))
    return {
        "WriteBuckets": ",".join(f"{ARN}:s3:::{name}" for name in write_names),
        "WriteObjects": ",".join(f"{ARN}:s3:::{place}/*" for place in writes),
        "ReadBuckets": ",".join(f"{ARN}:s3:::{name}" for name in reads),
        "ReadObjects": ",".join(f"{ARN}:s3:::{name}/*" for name in reads),
    }


def as_json(values: Mapping[str, str]) -> str:
    """The parameters in the form that the AWS command line reads."""
    entries = [{"ParameterKey": k, "ParameterValue": v} for k, v in sorted(values.items())]
    return json.dumps(entries, indent=1)


def _start() -> str:
    """The container's program without docstrings, because a parameter holds at most 4,096
    characters."""
    source = (
        resources.files("perseid.aws.deploy").joinpath("container.py").read_text(encoding="utf-8")
    )
    tree = ast.parse(source)
    del tree.body[0]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            del node.body[0]
    return ast.unparse(tree)


def _list(values: tuple[str, ...] | None) -> str | None:
    return None if values is None else ",".join(values)


def _data(name: str) -> str:
    return (
        resources.files("perseid.aws.deploy").joinpath(f"data/{name}").read_text(encoding="utf-8")
    )
