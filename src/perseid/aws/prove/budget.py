"""What a proof may still spend: nothing begins that could cost more than is left."""

from __future__ import annotations

from dataclasses import dataclass

from perseid.errors import BadInputError
from perseid.measure.cost import MB_PER_GB
from perseid.measure.prices import Prices

CAP_USD = 0.90
"""Highest cap that can be asked for."""


@dataclass(frozen=True)
class FunctionPrice:
    """Price of a function."""

    memory_mb: int
    architecture: str = "x86"
    """``x86`` or ``arm``."""

    def seconds(self, number: float) -> float:
        """USD of so many seconds."""
        price = Prices().lambda_gb_second(self.architecture).usd
        return self.memory_mb / MB_PER_GB * price * number

    def calls(self, number: int, seconds: float) -> float:
        """USD of so many calls of at most so many seconds each."""
        return number * (self.seconds(seconds) + Prices().lambda_request.usd)

    def longest(self, usd: float, calls: int) -> float:
        """Seconds that each of so many calls may take, for all of them to cost no more."""
        return (usd / calls - Prices().lambda_request.usd) / self.seconds(1.0)


class Budget:
    """Keeps the cap: nothing may begin that could cost more than is left.

    Raises `BadInputError` for a cap that is not above 0, or above `CAP_USD`.
    """

    def __init__(self, cap: float = CAP_USD) -> None:
        if not 0 < cap <= CAP_USD:
            raise BadInputError(f"the cap is {cap:g} USD: give one above 0, at most {CAP_USD:g}")
        self.cap = cap
        self.spent = 0.0
        """USD, at most."""

    @property
    def left(self) -> float:
        """USD that may still be spent."""
        return max(0.0, self.cap - self.spent)

    def lacks(self, at_most: float) -> str:
        """Why a step that may cost so much must not begin; empty if it may."""
        if at_most <= self.left:
            return ""
        return (
            f"it may cost {at_most:.3f} USD, and {self.left:.3f} USD are left of the cap of "
            f"{self.cap:g} USD"
        )

    def take(self, at_most: float, known: float | None) -> float:
        """What a step cost: as far as is known, never more than its bound, which it is else."""
        usd = at_most if known is None else min(known, at_most)
        self.spent += usd
        return usd
