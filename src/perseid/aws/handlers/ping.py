"""The connection test: can a Lambda function reach the rendezvous?"""

from __future__ import annotations

import time
from typing import Any

from perseid.aws.handlers import log
from perseid.aws.handlers.ready import Answer, Event, answers_check
from perseid.errors import BadInputError, RendezvousUnreachableError
from perseid.rendezvous.client.connectivity import ping
from perseid.rendezvous.net import Endpoint, dial

SECONDS = 5.0
"""Time limit in seconds for each of the two connections."""


@answers_check()
def handler(event: Event, context: Any) -> Answer:
    """Connect to ``event["rendezvous_endpoint"]``, then ask the server which address it sees.

    Raises
    ------
    BadInputError
        The event names no endpoint.
    RendezvousUnreachableError
        No server answers at the endpoint.
    """
    log.write_text(f"receiving event: {dict(event)}")
    if not event.get("rendezvous_endpoint"):
        raise BadInputError('give {"rendezvous_endpoint": "HOST" or "HOST:PORT"}')
    endpoint = Endpoint.parse(str(event["rendezvous_endpoint"]))
    began = time.monotonic()
    # A bare connection first: it distinguishes a closed firewall from a server of another kind.
    with dial(endpoint, began + SECONDS) as sock:
        remote = sock.getpeername()[0]
    seconds = time.monotonic() - began
    log.write_text(f"successfully connected to {endpoint} ({remote}) in {seconds * 1e3:.1f} ms")
    found = {"endpoint": str(endpoint), "address": remote, "connect_seconds": seconds}
    try:
        seen = ping(endpoint, SECONDS)
    except RendezvousUnreachableError as error:  # it may be a server of another kind
        return {**found, "perseid": False, "message": str(error)}
    return {
        **found,
        "perseid": True,
        "round_trip_seconds": seen.round_trip_seconds,
        "observed": str(seen.observed),
        "nat": seen.mapping.name,
        "keyed": seen.keyed,
    }
