"""The rendezvous server: one asyncio process that needs the standard library only."""

from perseid.rendezvous.server.embedded import EmbeddedServer
from perseid.rendezvous.server.server import Server
from perseid.rendezvous.server.server_config import Config, read_secret

__all__ = ["Config", "EmbeddedServer", "Server", "read_secret"]
