"""What follows from the kinds of NAT: whom to dial where, when to try again, when not to try.

Pure functions; measured in network namespaces with nftables (docs/reference/rendezvous-protocol.md
names the kinds), not behind any cloud's NAT.
"""

from __future__ import annotations

from perseid.rendezvous.protocol import NatBehavior, NatFiltering, NatMapping, PeerRecord
from perseid.rendezvous.protocol.wire import Address


def mapping_kind(local: Address, first: Address, second: Address | None) -> NatMapping:
    """The mapping that two observations of one local port show.

    Parameters
    ----------
    local
        The socket's own address.
    first, second
        What the server saw on its two ports; ``second`` None: it was asked on one only.
    """
    if first == local:
        return NatMapping.NONE
    if second is None:
        return NatMapping.UNKNOWN
    return NatMapping.INDEPENDENT if second == first else NatMapping.SYMMETRIC


def dial_candidates(me: PeerRecord, peer: PeerRecord) -> list[Address]:
    """Addresses of a peer that are worth dialling, the likeliest first.

    Private addresses only between workers with equal public ones (elsewhere they are somebody
    else's), never an address of one's own, and only of families in which both have one.
    """
    found: list[Address] = []
    for family in (peer.public.family, 10 - peer.public.family):
        mine, theirs = in_family(me, family), in_family(peer, family)
        if mine and theirs:
            public, *private = theirs
            found.extend(private if public.host == mine[0].host else ())
            found.append(public)
    own = {me.public, *me.private}
    return [address for address in dict.fromkeys(found) if address not in own]


def in_family(peer: PeerRecord, family: int) -> list[Address]:
    """A worker's addresses of one family (4 or 6), the public one first.

    Of the family that it did not register by, ``private`` holds the public one first.
    """
    return [one for one in (peer.public, *peer.private) if one.family == family]


def direct_impossible(me: PeerRecord, peer: PeerRecord) -> bool:
    """Whether no direct connection can come about, computed alike at both ends.

    A symmetric NAT reaches only peers that accept unsolicited connections, or that sit behind the
    same NAT; workers without a common address family reach each other through the relay only.
    """
    common = [family for family in (4, 6) if in_family(me, family) and in_family(peer, family)]
    if not common:
        return True
    if common != [me.public.family] or me.public.family != peer.public.family:
        return False  # the kinds of NAT are known of the family that one registered by
    if me.public.host == peer.public.host:
        return False
    return _blocks(me.nat, peer.nat) or _blocks(peer.nat, me.nat)


def _blocks(one: NatBehavior, other: NatBehavior) -> bool:
    return one.mapping is NatMapping.SYMMETRIC and other.filter is NatFiltering.FILTERED
