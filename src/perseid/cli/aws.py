"""``perseid aws``: deploy, destroy, doctor, policy, and the rendezvous service."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from perseid.aws.deploy import service
from perseid.aws.deploy.deployment import Deployed, deploy, dry_run, to_json
from perseid.aws.deploy.destroy import destroy
from perseid.aws.deploy.doctor import Check, examine
from perseid.aws.deploy.packaging import MIB, UNZIPPED_LIMIT, Package
from perseid.aws.deploy.policy import deployer, rendezvous_deployer, runner, text
from perseid.aws.deploy.template import NAME, Options, default_bucket
from perseid.aws.deploy.wheels import MACHINES, PYTHONS, StandIn, default_cache
from perseid.aws.session import Aws
from perseid.aws.stack_events import Change, StackEvent
from perseid.cli import aws_prove, units
from perseid.cli.awsarguments import add_storage_arguments
from perseid.cli.show_check import show_check
from perseid.errors import AwsError, BadInputError, PerseidError
from perseid.plaintext import counted


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of ``perseid aws``."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    deploying = commands.add_parser("deploy", help="package and upload; make or update the stack")
    _deploy_arguments(deploying)
    deploying.set_defaults(act=_deploy)
    removing = commands.add_parser("destroy", help="remove the stack; data stays")
    removing.add_argument(
        "--delete-bucket",
        action="store_true",
        help="also remove the bucket that deploy made, with all data and results",
    )
    removing.add_argument("--yes", action="store_true", help="do not ask")
    removing.set_defaults(act=_destroy)
    doctor = commands.add_parser("doctor", help="check everything that a run on AWS needs")
    doctor.add_argument("--json", action="store_true", help="print what was found as JSON")
    doctor.set_defaults(act=_doctor)
    policy = commands.add_parser("policy", help="print the IAM policy that a person needs")
    _policy_arguments(policy)
    policy.set_defaults(act=_policy)
    aws_prove.configure(commands.add_parser("prove", help="measure what only AWS can show, for "
                                            "less than a dollar"))  # fmt: skip
    rendezvous = commands.add_parser("rendezvous", help="start, stop or show the service")
    rendezvous.add_argument("what", choices=("start", "stop", "status"))
    rendezvous.add_argument(
        "--wait", type=units.time_argument, default=service.START_SECONDS, metavar="TIME",
        help="with start: longest wait (default %(default)g s)",
    )  # fmt: skip
    rendezvous.add_argument("--json", action="store_true", help="print the status as JSON")
    rendezvous.set_defaults(act=_rendezvous)
    for sub in (deploying, removing, doctor, policy, rendezvous):
        sub.add_argument("--stack", default=NAME, metavar="NAME", help="default %(default)s")
        add_storage_arguments(sub)


def run(args: argparse.Namespace) -> int:
    """Do what was asked."""
    return int(args.act(args))


def _policy_arguments(policy: argparse.ArgumentParser) -> None:
    policy.add_argument("who", choices=("deploy", "deploy-rendezvous", "run"),
                        help="for deploying, what a rendezvous adds to that, or for running "
                             "only")  # fmt: skip
    policy.add_argument("--bucket", action="append", metavar="NAME", help="buckets with surveys "
                        "and results (default: the one that deploy makes)")  # fmt: skip
    policy.add_argument(
        "--account", default="", metavar="NUMBER", help="default: of the credentials"
    )
    policy.add_argument("--zone", default="", metavar="ID", help="hosted zone of the record")
    policy.add_argument("--cluster", default="", metavar="NAME", help="as for deploy")
    policy.add_argument("--role", default="", metavar="ARN", help="as for deploy: make no roles")
    policy.add_argument("--permissions-boundary", default="", metavar="ARN",
                        help="as for deploy: make no role without it")  # fmt: skip


def _deploy_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", type=Path, nargs="?", const=Path("perseid-aws"), metavar="DIR",
        help="write all that would be deployed to DIR (perseid-aws) and call no AWS",
    )  # fmt: skip
    parser.add_argument("--yes", action="store_true", help="do not ask before changing the stack")
    parser.add_argument("--json", action="store_true", help="print outputs as JSON")
    what = parser.add_argument_group("what is deployed (left out: as it was, or the default)")
    what.add_argument(
        "--bucket", metavar="NAME", help="for packages and results (default: make one)"
    )
    what.add_argument("--data-bucket", action="append", metavar="NAME", help="workers may read it")
    what.add_argument("--results-bucket", action="append", metavar="NAME[/PREFIX]",
                      help="… and write it, or only below the prefix")  # fmt: skip
    what.add_argument("--architecture", choices=tuple(MACHINES),
                      help="default x86_64; arm64 is experimental")  # fmt: skip
    what.add_argument("--python", choices=PYTHONS, help="default: this one's version, or 3.12")
    what.add_argument("--model", type=Path, metavar="FILE.onnx", help="default model of the stack")
    _worker_arguments(what)
    what.add_argument(
        "--reserve", type=int, metavar="N", help="concurrency kept for workers (0: none)"
    )
    what.add_argument("--layer", action="append", metavar="ARN", help="layer of the worker")
    what.add_argument("--worker-image", metavar="URI",
                      help="image in ECR that workers run in place of the zip")  # fmt: skip
    what.add_argument("--log-days", type=int, metavar="DAYS", help="that logs are kept (30)")
    what.add_argument(
        "--error-logs", action=argparse.BooleanOptionalAction, default=None,
        help="have Step Functions log errors, also of EXPRESS children (default: no)",
    )  # fmt: skip
    what.add_argument("--tag", action="append", metavar="KEY=VALUE",
                      help="tag of the stack, all it has and the bucket that is made")  # fmt: skip
    what.add_argument("--kms-key", metavar="ARN", help="that encrypts the buckets, if it is yours")
    _account_arguments(parser)


def _worker_arguments(what: argparse._ArgumentGroup) -> None:
    """What a worker's function has."""
    what.add_argument(
        "--memory", type=units.memory_argument, metavar="SIZE", help="of a worker (1769)"
    )
    what.add_argument(
        "--retry-memory", type=units.memory_argument, metavar="SIZE",
        help="of a worker that tries a rank again whose memory did not suffice (twice a worker's, "
        "at most 3008; 0: none)",
    )  # fmt: skip
    what.add_argument(
        "--timeout", type=units.whole_time_argument, metavar="TIME", help="of a worker (900)"
    )
    what.add_argument(
        "--tmp", type=units.memory_argument, metavar="SIZE", help="/tmp of a worker (512)"
    )


def _account_arguments(parser: argparse.ArgumentParser) -> None:
    """Add options that depend on the rights and the network of the account."""
    rights = parser.add_argument_group("if you may not create roles, or only with a boundary")
    rights.add_argument(
        "--role", metavar="ARN", help="one role for all (default: create a narrow role for each)"
    )
    rights.add_argument(
        "--permissions-boundary", metavar="ARN", help="permissions boundary of the created roles"
    )
    where = parser.add_argument_group("the rendezvous, for ranks that talk to each other")
    where.add_argument(
        "--rendezvous", action=argparse.BooleanOptionalAction, default=None,
        help="have one: a VPC, an ECS service, a rule (default: none)",
    )  # fmt: skip
    where.add_argument("--cluster", metavar="NAME",
                       help="an existing ECS cluster (default: make one)")  # fmt: skip
    where.add_argument("--vpc", metavar="ID", help="an existing VPC (default: make a small one)")
    where.add_argument("--subnet", action="append", metavar="ID", help="public subnet of it")
    where.add_argument("--zone", metavar="ID", help="existing hosted zone (default: no DNS name)")
    where.add_argument("--record", metavar="NAME", help="name in it, e.g. rendezvous.example.org")
    where.add_argument("--image", metavar="IMAGE", help="container image with Python >= 3.11")


def _options(args: argparse.Namespace) -> Options:
    return Options(
        name=args.stack,
        bucket=args.bucket,
        read_buckets=_tuple(args.data_bucket),
        write_buckets=_tuple(args.results_bucket),
        architecture=args.architecture,
        python=args.python,
        memory_mb=args.memory,
        retry_memory_mb=args.retry_memory,
        timeout=args.timeout,
        storage_mb=args.tmp,
        reserved=args.reserve,
        layers=_tuple(args.layer),
        worker_image=args.worker_image,
        log_days=args.log_days,
        error_logs=args.error_logs,
        rendezvous=args.rendezvous,
        role=args.role,
        boundary=args.permissions_boundary,
        kms_key=args.kms_key,
        tags=tuple(args.tag or ()),
        cluster=args.cluster,
        vpc=args.vpc,
        subnets=_tuple(args.subnet),
        zone=args.zone,
        record=args.record,
        image=args.image,
    )


def _deploy(args: argparse.Namespace) -> int:
    options = _options(args)
    if args.dry_run is not None:
        return _dry_run(args, options)
    aws = Aws(args.region, args.profile)
    done = deploy(
        aws, options, _packages(options), _tell, lambda changes: _confirm(changes, args.yes),
        model=args.model, interpreter=StandIn.of_environment().python,
    )  # fmt: skip
    if args.json:
        print(to_json(done))
    else:
        _show(done, args.stack)
    return 0


def _dry_run(args: argparse.Namespace, options: Options) -> int:
    packages = dry_run(
        options, args.dry_run, _packages(options), "ACCOUNT", args.region or "REGION",
        model=args.model,
    )  # fmt: skip
    _show_packages(packages.values())
    for path in sorted(args.dry_run.iterdir()):
        print(f"wrote {path} ({path.stat().st_size:,} bytes)")
    print("nothing was sent to AWS")
    return 0


def _packages(options: Options) -> Path:
    """Folder that caches zips, so that deploying the same again builds none."""
    return default_cache() / "packages" / options.name


def _show(done: Deployed, name: str) -> None:
    _show_packages(done.packages.values())
    print("the stack is up" if done.changed else "nothing changed in the stack")
    for key, value in done.outputs.items():
        print(f"  {key:28} {value}")
    other = "" if name == NAME else f" --stack {name}"
    bucket = done.outputs.get("Bucket", "BUCKET")
    print(
        f"next: perseid run --engine aws{other} --data s3://{bucket}/… --out s3://{bucket}/runs/1"
    )


def _show_packages(packages: object) -> None:
    assert hasattr(packages, "__iter__")
    for package in packages:
        assert isinstance(package, Package)
        print(
            f"{package.name + '.zip':12} {package.zipped / MIB:6.1f} MiB, unzipped "
            f"{package.unzipped / MIB:6.1f} of {UNZIPPED_LIMIT // MIB} MiB, "
            f"{counted(len(package.entries), 'file')}"
        )


def _tell(event: Change | StackEvent | str) -> None:
    if isinstance(event, StackEvent):
        reason = f"  {event.reason}" if event.reason else ""
        line = f"{event.when:%H:%M:%S}  {event.status:28} {event.resource} ({event.kind}){reason}"
    else:
        line = str(event)
    print(line, file=sys.stderr)


def _confirm(changes: list[Change], yes: bool) -> bool:
    for change in changes:
        how = " (replaced)" if change.replacement and change.action == "Modify" else ""
        print(f"  {change.action:8} {change.resource:24} {change.kind}{how}", file=sys.stderr)
    return yes or _ask(f"make these {len(changes)} changes?")


def _ask(question: str) -> bool:
    if not sys.stdin.isatty():
        raise BadInputError(f"{question} There is no terminal to answer in: give --yes")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _destroy(args: argparse.Namespace) -> int:
    aws = Aws(args.region, args.profile)
    what = f"remove the stack {args.stack} in {aws.region} (account {aws.account})"
    if args.delete_bucket:
        what += " and its bucket with ALL data and results"
    if not args.yes and not _ask(f"{what}?"):
        print("nothing was done")
        return 1
    remains = destroy(aws, args.stack, _tell, delete_bucket=args.delete_bucket)
    print(f"the stack {args.stack} is gone, with its log groups, packages and secret")
    for left in remains:
        print(f"kept: {left.name} ({left.why})")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    if args.json:
        checks = list(_checks(args))
        print(json.dumps([asdict(check) for check in checks], indent=1))
        return 1 if any(check.state == "bad" for check in checks) else 0
    bad = 0
    for check in _checks(args):
        bad += check.state == "bad"
        show_check(check)
    return 1 if bad else 0


def _checks(args: argparse.Namespace) -> Iterator[Check]:
    try:
        aws = Aws(args.region, args.profile)
    except AwsError as error:  # no region, or no such profile
        yield Check("configuration", "bad", str(error))
        return
    yield from examine(aws, args.stack)


def _policy(args: argparse.Namespace) -> int:
    account, region = args.account, args.region
    if not account or not region:
        try:
            aws = Aws(args.region, args.profile)
            account, region = account or aws.account, aws.region
        except PerseidError as error:
            print(f"perseid: {error}; using the placeholders ACCOUNT and REGION", file=sys.stderr)
            account, region = account or "ACCOUNT", region or "REGION"
    buckets = args.bucket or [default_bucket(args.stack, account, region)]
    if args.who == "deploy":
        made = deployer(args.stack, account, region, buckets[0], buckets[1:], role=args.role,
                        boundary=args.permissions_boundary)  # fmt: skip
    elif args.who == "deploy-rendezvous":
        made = rendezvous_deployer(args.stack, account, region, args.zone, cluster=args.cluster)
    else:
        made = runner(args.stack, account, region, buckets, buckets, args.zone,
                      cluster=args.cluster)  # fmt: skip
    print(text(made), end="")
    return 0


def _rendezvous(args: argparse.Namespace) -> int:
    aws = Aws(args.region, args.profile)
    if args.what == "stop":
        service.stop(aws, args.stack)
        print("the rendezvous is stopping; once it has stopped it costs nothing")
        return 0
    if args.what == "start":
        found = service.start(aws, args.stack, _tell, seconds=args.wait)
    else:
        found = service.status(aws, args.stack)
    if args.json:
        print(json.dumps({**asdict(found), "consistent": found.consistent}, default=str))
        return 0 if found.endpoint is None or found.consistent else 1
    print(f"tasks       {found.running} running of {found.wanted} wanted")
    print(f"address     {found.task.address or 'none'}")
    print(f"published   {found.published.address or 'none'}")
    if found.name:
        print(f"DNS         {found.name} -> {', '.join(found.recorded) or 'no record'}")
    if found.endpoint is None:
        return 0
    seen = service.try_it(found.endpoint)
    if isinstance(seen, str):
        print(f"ping        {seen}")
        return 1
    print(f"ping        {seen.round_trip_seconds * 1e3:.1f} ms")
    return 0 if found.consistent else 1


def _tuple(values: list[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(values)
