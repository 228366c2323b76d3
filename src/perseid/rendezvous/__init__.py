"""How workers find each other: server, client, hole punching and relay; standard library only."""

from perseid.rendezvous.client import Client, Notice
from perseid.rendezvous.net import Endpoint
from perseid.rendezvous.protocol.auth import job_key, parse_key
from perseid.rendezvous.protocol.liveness import LONGEST_SILENCE, LossTimeouts
from perseid.rendezvous.punch import Link
from perseid.rendezvous.server import Config, EmbeddedServer, Server, read_secret

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
