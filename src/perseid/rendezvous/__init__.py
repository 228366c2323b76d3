"""How workers find each other: server, client, punching and relay; standard library only."""

from perseid.rendezvous.auth import job_key, parse_key, read_secret
from perseid.rendezvous.client import Client
from perseid.rendezvous.dial import Endpoint
from perseid.rendezvous.embedded import EmbeddedServer
from perseid.rendezvous.links import Link
from perseid.rendezvous.roster import Notice
from perseid.rendezvous.server import Config, Server

__all__ = [
    "Client",
    "Config",
    "EmbeddedServer",
    "Endpoint",
    "Link",
    "Notice",
    "Server",
    "job_key",
    "parse_key",
    "read_secret",
]
