"""``perseid ping HOST[:PORT]``: check whether this machine can use a rendezvous server."""

from __future__ import annotations

import argparse
import json
import math
import sys

from perseid.cli import units
from perseid.errors import BadInputError, RendezvousUnreachableError
from perseid.rendezvous.client.connectivity import Ping, View, ping
from perseid.rendezvous.net.endpoint import Endpoint
from perseid.rendezvous.protocol import NatMapping

_NONE = "none: the server sees this machine's own address; workers here are dialed directly"
_SYMMETRIC = (
    "; these workers reach open peers directly and all others through the relay "
    "(serve with --relay)"
)
_UNKNOWN = (
    "unknown: the server's second port did not answer and its name gives no second address; open "
    "it (--http-port) to learn more"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``perseid ping``."""
    parser.add_argument("server", metavar="HOST[:PORT]")
    parser.add_argument("--timeout", type=units.time_argument, default=5.0, metavar="TIME")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(args: argparse.Namespace) -> int:
    """Ping and print the findings; exit status 1 with the reason if the server cannot be
    reached."""
    endpoint = Endpoint.parse(args.server)
    if not 0 < args.timeout < math.inf:
        raise BadInputError(f"--timeout must be a number of seconds above 0, not {args.timeout:g}")
    try:
        found = ping(endpoint, args.timeout)
    except RendezvousUnreachableError as error:
        print(f"perseid: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(_plain(endpoint, found)))
    else:
        _show(endpoint, found)
    return 0


def _plain(endpoint: Endpoint, found: Ping) -> dict[str, object]:
    """The findings as JSON values."""
    views = [
        {"seen": str(view.seen), "here": str(view.local), "nat": nat_words(view)}
        for view in found.views
    ]
    return {
        "name": endpoint.host,
        "addresses": list(found.addresses),
        "connected": str(found.remote),
        "connect_seconds": found.connect_seconds,
        "round_trip_seconds": found.round_trip_seconds,
        "keyed": found.keyed,
        "views": views,
    }


def _show(endpoint: Endpoint, found: Ping) -> None:
    print(f"name            {endpoint.host} -> {', '.join(found.addresses)}")
    print(f"connected       {found.remote} in {found.connect_seconds * 1e3:.2f} ms")
    print(f"round trip      {found.round_trip_seconds * 1e3:.3f} ms")
    print(f"keys            {'needed' if found.keyed else 'none: an open server'}")
    several = len({view.seen.family for view in found.views}) > 1
    for view in found.views:
        family = f" (IPv{view.seen.family})" if several else ""
        print(f"{'seen as' + family:16}{view.seen}, here {view.local}")
        print(f"{'NAT' + family:16}{nat_words(view)}")


def nat_words(view: View) -> str:
    """What was compared, what that shows about the NAT, and what it means for workers."""
    by_port, by_address = view.by_port(), view.by_address()
    if view.mapping is NatMapping.NONE:
        return _NONE
    if by_port:
        return f"symmetric: each port of the server sees another address{_SYMMETRIC}"
    if by_address:
        return f"symmetric (address-dependent): each address of the server sees another{_SYMMETRIC}"
    if by_port is None and by_address is None:
        return _UNKNOWN
    if by_address is None:
        return (
            "not port-dependent: both ports of the server see the same address, so hole punching "
            "should work; a server with a single address cannot show whether it depends on that, "
            "too"
        )
    number = 1 + len({asked.host for asked, _ in view.others if asked.host != view.asked.host})
    ports = "both ports and " if by_port is False else ""
    return (
        f"endpoint-independent: {ports}{number} addresses of the server see the same address; "
        "hole punching works"
    )
