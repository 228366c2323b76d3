"""The options of a live page, for each command that can serve one."""

from __future__ import annotations

import argparse

LOOPBACK = "127.0.0.1"


def add_server_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
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
    return what


def add_explore_arguments(parser: argparse.ArgumentParser) -> None:
    """What shows a run while it goes on."""
    what = add_server_arguments(parser)
    what.add_argument("--explore", action="store_true", help="serve a live page about the run, "
                      "until Ctrl-C")  # fmt: skip
