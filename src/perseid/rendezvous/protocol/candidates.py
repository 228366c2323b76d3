"""Which of the addresses that a worker claims to have may be handed to others, and dialed.

The server sees one address of each worker itself. All others are claims, and a worker that lies
could have its whole job connect to a stranger. So the server passes on, and a worker dials, only
a few of them, and none that cannot be a worker's. (RFC 8445, section 19.5.1, describes the same
attack on ICE.)
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

from perseid.rendezvous.protocol.wire import Address

MAX_PER_FAMILY = 2
"""Claimed addresses kept of each family: the worker's own, and what a server sees in the family
that the worker does not register by."""


def usable_candidates(claimed: Iterable[Address], observed: Address) -> tuple[Address, ...]:
    """The claimed addresses that may be dialed, in their order.

    At most ``MAX_PER_FAMILY`` of a family, one port of a host, and of the observed host the
    observed port only. Never multicast, unspecified, reserved or link-local ones (among these is
    the metadata service of clouds), and loopback only if the server sees the worker there.

    Parameters
    ----------
    claimed
        As the worker sent them.
    observed
        The worker's address as the server sees it.
    """
    claimed = tuple(claimed)
    if claimed == (observed,):  # no NAT and one address family: most workers
        return claimed
    kept: list[Address] = []
    hosts: set[str] = set()
    for address in claimed:
        # Of the host that the server sees, the observed port is a fact and any other is only a
        # claim.
        own = address.host == observed.host
        if address.host in hosts or not address.port or (own and address != observed):
            continue
        if not _dialable(address.host, _is_loopback(observed.host)):
            continue
        if sum(one.family == address.family for one in kept) < MAX_PER_FAMILY:
            hosts.add(address.host)
            kept.append(address)
    return tuple(kept)


@lru_cache(maxsize=4096)
def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


@lru_cache(maxsize=4096)
def _dialable(host: str, loopback: bool) -> bool:
    address = ipaddress.ip_address(host)
    if address.is_loopback:
        return loopback
    # Private addresses stay allowed: workers behind one NAT reach each other by them.
    return not (
        address.is_multicast
        or address.is_unspecified
        or address.is_link_local
        or address.is_reserved
    )
