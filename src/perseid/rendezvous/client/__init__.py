"""A worker's side of the rendezvous: registration, updates, connections to peers."""

from perseid.rendezvous.client.client import Client
from perseid.rendezvous.client.connectivity import Ping, View, ping
from perseid.rendezvous.client.peer_table import Notice

__all__ = ["Client", "Notice", "Ping", "View", "ping"]
