"""``perseid explore``: serve a live page about a run from this machine."""

from __future__ import annotations

import argparse
import json
import sys
import webbrowser
from contextlib import suppress
from typing import TextIO

from perseid.api.progress_display import RunProgress
from perseid.api.run import Run
from perseid.cli.awsarguments import add_aws_arguments
from perseid.cli.engines import to_the_end
from perseid.cli.explore_options import add_server_arguments
from perseid.cli.status import add_run_argument, find_run
from perseid.explore import ExploredRun, ExploreServer, LiveRun


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``perseid explore``."""
    add_run_argument(parser)
    add_server_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the page's address as JSON")
    add_aws_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Serve the page until the process is interrupted."""
    found = find_run(args)
    live = LiveRun(found)
    with server_of(args, found, live) as server:
        live.begin()
        announce(server, browser=not args.no_browser, to=sys.stdout, plain=args.json)
        try:
            server.wait()
        except KeyboardInterrupt:
            print("\nthe page is closed; ratings are kept in the run", file=sys.stderr)
    return 0


def explore_to_the_end(args: argparse.Namespace, run: Run, progress: RunProgress) -> int:
    """Follow a run to its end while serving a page about it; the page stays until Ctrl-C."""
    live = LiveRun(run)
    with server_of(args, run, live) as server:
        live.begun()
        announce(server, browser=not args.no_browser)
        status = to_the_end(args, run, progress, live.report)
        live.finish()
        with suppress(KeyboardInterrupt):
            server.wait()
    return status


def server_of(args: argparse.Namespace, run: Run, live: LiveRun) -> ExploreServer:
    """The server that the arguments describe."""
    return ExploreServer(
        ExploredRun(run), live, host=args.host, port=args.port, token=args.token, name=args.rater
    )


def announce(
    server: ExploreServer, *, browser: bool, to: TextIO | None = None, plain: bool = False
) -> None:
    """Print the page's address, as JSON if `plain`, and open it in a browser if wanted."""
    line = json.dumps({"address": server.address}) if plain else f"explore    {server.address}"
    print(line, file=to or sys.stderr, flush=True)
    print("           Ctrl-C ends the page", file=sys.stderr, flush=True)
    if browser:
        webbrowser.open(server.address)
