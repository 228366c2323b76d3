"""Sockets, names and the event loop thread that client and hole punching are built on."""

from perseid.rendezvous.net.dialing import dial
from perseid.rendezvous.net.endpoint import DEFAULT_PORT, Endpoint

__all__ = ["DEFAULT_PORT", "Endpoint", "dial"]
