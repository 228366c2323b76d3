"""``perseid rendezvous``: the server through which workers find each other."""

from perseid.rendezvous.server.commands import configure, run

__all__ = ["configure", "run"]
