"""``perseid ping HOST[:PORT]``: can this machine use that rendezvous server?"""

from __future__ import annotations

import argparse
import math
import sys

from perseid.errors import BadInput, RendezvousUnreachable
from perseid.rendezvous.dial import Endpoint
from perseid.rendezvous.ping import Ping, ping
from perseid.rendezvous.protocol import Mapping

_NAT = {
    Mapping.NONE: "none: the server sees this machine's own address; workers here are dialled "
    "directly",
    Mapping.INDEPENDENT: "endpoint-independent: both ports see the same address; hole punching "
    "works",
    Mapping.SYMMETRIC: "symmetric: each destination sees another port; these workers reach open "
    "peers directly and all others through the relay (serve with --relay)",
    Mapping.UNKNOWN: "unknown: the server's second port did not answer; open it (--http-port) to "
    "learn more",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``perseid ping``."""
    parser.add_argument("server", metavar="HOST[:PORT]")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="S")


def run(args: argparse.Namespace) -> int:
    """Ping and say what was found: 0, or 1 with a sentence that says what to mend."""
    endpoint = Endpoint.parse(args.server)
    if not 0 < args.timeout < math.inf:
        raise BadInput(f"--timeout must be a number of seconds above 0, not {args.timeout:g}")
    try:
        found = ping(endpoint, args.timeout)
    except RendezvousUnreachable as error:
        print(f"perseid: {error}", file=sys.stderr)
        return 1
    _show(endpoint, found)
    return 0


def _show(endpoint: Endpoint, found: Ping) -> None:
    life = "" if found.ttl is None else f" (may be cached for {found.ttl} s)"
    print(f"name        {endpoint.host} -> {', '.join(found.addresses)}{life}")
    print(f"connected   {found.remote} in {found.connect_seconds * 1e3:.2f} ms")
    print(f"round trip  {found.round_trip_seconds * 1e3:.3f} ms")
    print(f"keys        {'needed' if found.keyed else 'none: an open server'}")
    print(f"seen as     {found.observed}, here {found.local}")
    print(f"NAT         {_NAT[found.mapping]}")
