"""``perseid run PAYLOAD.json --state-machine ARN``: run and measure an existing state machine."""

from __future__ import annotations

import argparse
import json
import sys

from perseid.api.measurements import MeasuredRun, Measurements
from perseid.api.progress_display import RunProgress
from perseid.api.terminal import width
from perseid.cli.engines import progress_of
from perseid.cli.request_options import given_options
from perseid.errors import BadInputError, RunError, RunInterruptedError
from perseid.pipeline.request import read_keys
from perseid.textfile import decode

ARN = "arn:aws:states:"


def run_existing(args: argparse.Namespace) -> int:
    """Start the state machine with the unchanged payload, follow it, and print the tables."""
    _check(args)
    payload = _payload(args)
    from perseid.aws.existing import examine, follow, measure, start
    from perseid.aws.observe.calls import Calls
    from perseid.aws.session import Aws

    calls = Calls(Aws(args.region, args.profile))
    machine = examine(calls, args.state_machine)
    arn = start(calls, machine, payload)
    with progress_of(args) as progress:
        progress.say(f"execution  {arn}")
        if args.detach:
            print(arn)
            return 0
        try:
            follow(calls, arn, progress, progress.say)
        except KeyboardInterrupt:
            raise RunInterruptedError(
                f"the execution continues without this command: {arn}"
            ) from None
        progress.say("fetching logs and times")
        found = measure(calls, machine, arn)
    _show(args, found.run, progress)
    execution = found.execution
    if execution.status != "SUCCEEDED":
        said = execution.cause or "no cause was given"
        raise RunError(
            f"the execution ended as {execution.status}: {said} ({execution.error or 'no error'})"
        )
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.request is None:
        raise BadInputError("--state-machine needs a payload: perseid run PAYLOAD.json …")
    if not args.state_machine.startswith(ARN):
        raise BadInputError(
            f"--state-machine {args.state_machine!r} is not the ARN of a state machine "
            f"({ARN}REGION:ACCOUNT:stateMachine:NAME)"
        )
    given = {name for name in ("columns", "missing", "replace", "dry_run") if getattr(args, name)}
    given |= given_options(args).keys()
    if given:
        raise BadInputError(
            "with --state-machine the payload is sent as it is: put "
            f"{', '.join(sorted(given))} into the file, or leave the options out"
        )


def _payload(args: argparse.Namespace) -> str:
    """The text of the file, after checking that it is a JSON object."""
    read_keys(args.request)
    return decode(args.request.read_bytes(), str(args.request))


def _show(args: argparse.Namespace, run: MeasuredRun, progress: RunProgress) -> None:
    progress.close()
    view = Measurements([run]).table()
    if args.json:
        print(json.dumps(view.to_json(), indent=1))
    else:
        sys.stdout.write(view.render(width=width()))
