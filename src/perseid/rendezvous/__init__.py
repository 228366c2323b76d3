"""How workers find each other: server, client, hole punching and relay; standard library only.

Names are imported when they are first used: a worker that merges through the store needs the time
limits, and neither client nor server.
"""

from typing import TYPE_CHECKING

from perseid.lazy import lazy_names

if TYPE_CHECKING:
    from perseid.rendezvous.client import Client, Notice
    from perseid.rendezvous.liveness import LONGEST_SILENCE, LossTimeouts
    from perseid.rendezvous.net import Endpoint
    from perseid.rendezvous.protocol.auth import job_key, parse_key
    from perseid.rendezvous.punch import Link
    from perseid.rendezvous.server import Config, EmbeddedServer, Server, read_secret

_PLACES = {
    "Client": "perseid.rendezvous.client",
    "Notice": "perseid.rendezvous.client",
    "Endpoint": "perseid.rendezvous.net",
    "job_key": "perseid.rendezvous.protocol.auth",
    "parse_key": "perseid.rendezvous.protocol.auth",
    "LONGEST_SILENCE": "perseid.rendezvous.liveness",
    "LossTimeouts": "perseid.rendezvous.liveness",
    "Link": "perseid.rendezvous.punch",
    "Config": "perseid.rendezvous.server",
    "EmbeddedServer": "perseid.rendezvous.server",
    "Server": "perseid.rendezvous.server",
    "read_secret": "perseid.rendezvous.server",
}

__all__ = [
    "LONGEST_SILENCE",
    "Client",
    "Config",
    "EmbeddedServer",
    "Endpoint",
    "Link",
    "LossTimeouts",
    "Notice",
    "Server",
    "job_key",
    "parse_key",
    "read_secret",
]

__getattr__ = lazy_names(__name__, _PLACES)
