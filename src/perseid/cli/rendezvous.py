"""``perseid rendezvous``: the server through which workers find each other."""

from perseid.rendezvous.server.command_line import configure, run

__all__ = ["configure", "run"]
