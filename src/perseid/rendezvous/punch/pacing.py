"""How long to wait between two connections to the same peer; pure functions, a clock by hand."""

from __future__ import annotations

MAX_WAIT = 0.005
"""Longest mean wait between two tries of an observed address, in seconds: slower back-off was
clearly worse in the NAT laboratory."""
GROWTH = 1.05
"""Growth of that wait from try to try, up to ``MAX_WAIT``."""
MIN_ROUND_TRIP = 0.0005
"""Seconds; on loopback the measured round trip would make the loop spin."""
BACKOFF_SECONDS = 0.05
"""First wait after a failure that says that the address may not be the peer's."""
MAX_BACKOFF_SECONDS = 2.0
"""Longest of these waits; each is about twice the one before."""
CLAIMED_BURST = 6
"""Connections at once to addresses that one rank claims to have: each of the few that the server
passes on, and another try for some."""
CLAIMED_RATE = 0.5
"""Further ones a second. A job of n ranks with one that lies sends a stranger n times this."""


def retry_wait(round_trip: float, tries: int, chance: float) -> float:
    """Seconds until the next try after an observed address refused.

    Random, so that both sides' connections are in flight at once sooner or later; a fixed period
    can miss forever.

    Parameters
    ----------
    round_trip
        Seconds to the server and back, standing in for the unknown one to the peer.
    tries
        Tries so far.
    chance
        Uniform in [0, 1).
    """
    # The exponent is capped so that an attempt of many thousand tries cannot overflow.
    grown = max(round_trip, MIN_ROUND_TRIP) * GROWTH ** min(tries, 200)
    # Uniform between 0 and twice the mean: two sides that refuse each other fall out of step.
    return min(MAX_WAIT, grown) * 2 * chance


def backoff(failures: int, chance: float) -> float:
    """Seconds until the next try after a failed handshake, or a refusal by a claimed address.

    Parameters
    ----------
    failures
        Failures so far, this one included.
    chance
        Uniform in [0, 1).
    """
    mean = min(MAX_BACKOFF_SECONDS, BACKOFF_SECONDS * 2.0 ** min(failures - 1, 10))
    # Spread by half to either side, so that many ranks do not come back at the same moment.
    return mean * (0.5 + chance)


class TokenBucket:
    """Limits how often something is done.

    Parameters
    ----------
    burst
        Times at once.
    rate
        Times a second after that.
    """

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, burst: float, rate: float) -> None:
        self._burst, self._rate = burst, rate
        # Long ago: the first call finds the bucket full, whatever the clock says.
        self._tokens, self._at = burst, float("-inf")

    def take(self, now: float) -> float:
        """Take a token: 0; if there is none, the seconds until there will be."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate
