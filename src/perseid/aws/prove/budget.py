"""The remaining budget of a proof: nothing may begin that could cost more than is left."""

from __future__ import annotations

from dataclasses import dataclass

from perseid.errors import BadInputError
from perseid.measure.cost import MB_PER_GB
from perseid.measure.prices import Prices

CAP_USD = 0.90
"""Highest cap that a user may set, in USD."""


@dataclass(frozen=True)
class FunctionPrice:
    """Price of calling a function."""

    memory_mb: int
    architecture: str = "x86"
    """Architecture, ``x86`` or ``arm``."""

    def seconds(self, number: float) -> float:
        """Cost in USD of this many seconds."""
        price = Prices().lambda_gb_second(self.architecture).usd
        return self.memory_mb / MB_PER_GB * price * number

    def calls(self, number: int, seconds: float) -> float:
        """Cost in USD of this many calls of at most this many seconds each."""
        return number * (self.seconds(seconds) + Prices().lambda_request.usd)

    def longest(self, usd: float, calls: int) -> float:
        """Longest duration in seconds of each of this many calls such that they cost no more than
        the amount."""
        return (usd / calls - Prices().lambda_request.usd) / self.seconds(1.0)


class Budget:
    """Keeps spending below the cap: nothing may begin that could cost more than is left.

    Raises `BadInputError` for a cap that is not above 0, or above `CAP_USD`.
    """

    def __init__(self, cap: float = CAP_USD) -> None:
        if not 0 < cap <= CAP_USD:
            raise BadInputError(f"the cap is {cap:g} USD: give one above 0, at most {CAP_USD:g}")
        self.cap = cap
        self.spent = 0.0
        """Cap in USD."""

    @property
    def left(self) -> float:
        """Amount in USD that may still be spent."""
        return max(0.0, self.cap - self.spent)

    def lacks(self, at_most: float) -> str:
        """Why a step with this maximum cost must not begin; empty if it may."""
        if at_most <= self.left:
            return ""
        return (
            f"it may cost {at_most:.3f} USD, and {self.left:.3f} USD are left of the cap of "
            f"{self.cap:g} USD"
        )

    def take(self, at_most: float, known: float | None) -> float:
        """Subtract the cost of a step: its known cost, but at most its bound; the bound if it is
        not known."""
        usd = at_most if known is None else min(known, at_most)
        self.spent += usd
        return usd
