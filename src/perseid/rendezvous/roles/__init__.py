"""What an accepted connection can turn out to be, one file a role.

A role is shared by all its connections and keeps what it needs of one in ``connection.state``.
"""

from perseid.rendezvous.roles.http import HttpRole
from perseid.rendezvous.roles.members import MemberRole
from perseid.rendezvous.roles.opening import OpeningRole
from perseid.rendezvous.roles.relays import RelayRole
from perseid.rendezvous.roles.tcpunch import TcpunchRole

__all__ = ["HttpRole", "MemberRole", "OpeningRole", "RelayRole", "TcpunchRole"]
