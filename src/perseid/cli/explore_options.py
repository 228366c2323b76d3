"""Options for the live page, shared by the commands that can serve it."""

from __future__ import annotations

import argparse

LOOPBACK = "127.0.0.1"


def add_server_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options for the page's address and the rater's name."""
    what = parser.add_argument_group("the page")
    what.add_argument("--port", type=int, default=0, metavar="N",
                      help="port to listen on (default: a free port)")  # fmt: skip
    what.add_argument("--host", default=LOOPBACK, help="allow other machines: an address of "
                      "this one (needs --token)")  # fmt: skip
    what.add_argument("--token", help="part of the page's address (default: a fresh one)")
    what.add_argument(
        "--no-browser", action="store_true", help="print the address, but open no browser"
    )
    what.add_argument("--rater", default="", metavar="NAME", help="kept with each rating (default: "
                      "no name is kept)")  # fmt: skip
    return what


def add_explore_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for showing a run while it is running."""
    what = add_server_arguments(parser)
    what.add_argument("--explore", action="store_true", help="serve a live page about the run, "
                      "until Ctrl-C")  # fmt: skip
