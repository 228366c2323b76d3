"""``perseid explore``: a page about a run, served from this machine while someone looks."""

from __future__ import annotations

import argparse
import sys
import webbrowser

from perseid.api.run import Run
from perseid.cli.awsarguments import add_aws_arguments
from perseid.cli.status import add_run_argument, find_run
from perseid.explore import ExploredRun, ExploreServer, LiveRun
from perseid.explore.explore_server import LOOPBACK


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``perseid explore``."""
    add_run_argument(parser)
    add_server_arguments(parser)
    add_aws_arguments(parser)


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the page is served, and who looks."""
    what = parser.add_argument_group("the page")
    what.add_argument("--port", type=int, default=0, metavar="N", help="where to listen (default: "
                      "a free port)")  # fmt: skip
    what.add_argument("--host", default=LOOPBACK, help="let other machines in, too: an address of "
                      "this one (needs --token)")  # fmt: skip
    what.add_argument("--token", help="part of the page's address (default: a fresh one)")
    what.add_argument("--no-browser", action="store_true", help="print the address, open nothing")
    what.add_argument("--rater", default="", metavar="NAME", help="kept with each rating (default: "
                      "no name is kept)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Serve the page until the process is interrupted."""
    found = find_run(args)
    live = LiveRun(found)
    with server_of(args, found, live) as server:
        live.begin()
        announce(server, browser=not args.no_browser)
        try:
            server.wait()
        except KeyboardInterrupt:
            print("\nthe page is closed; ratings are kept in the run", file=sys.stderr)
    return 0


def server_of(args: argparse.Namespace, run: Run, live: LiveRun) -> ExploreServer:
    """The server that the arguments describe."""
    return ExploreServer(
        ExploredRun(run), live, host=args.host, port=args.port, token=args.token, name=args.rater
    )


def announce(server: ExploreServer, *, browser: bool) -> None:
    """Print the address, and open it where there is a browser."""
    print(f"explore    {server.address}", flush=True)
    print("           Ctrl-C ends the page", file=sys.stderr, flush=True)
    if browser:
        webbrowser.open(server.address)
