"""``perseid run --engine aws --dry-run``: check on one screen what would fail; start nothing."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from perseid.aws.engine import AwsEngine
from perseid.cli.show_check import show_check
from perseid.compat.scripts.script_job import script_job
from perseid.engines.base import Engine
from perseid.pipeline.initialize import plan
from perseid.pipeline.request import RunRequest
from perseid.plaintext import counted

FAILS = 1
"""Exit status if something would fail."""


def show_preflight(args: argparse.Namespace, engine: Engine, request: RunRequest) -> int:
    """Print each check as it is made; exit status 1 if one of them says that the run would fail."""
    assert isinstance(engine, AwsEngine)
    request = engine.prepare(request)
    manifest = plan(request, script_job(request))
    checks = []
    for check in engine.examine(manifest):
        checks.append(check)
        if not args.json:
            show_check(check)
    if args.json:
        print(json.dumps([asdict(check) for check in checks], indent=1))
    bad = any(check.state == "bad" for check in checks)
    if not args.json and not bad:
        print(f"{counted(manifest.world_size, 'rank')} can be started; nothing was started")
    return FAILS if bad else 0
