"""What a user has to say about sources that do not say it themselves."""

from __future__ import annotations

from dataclasses import dataclass

from perseid.errors import BadInputError
from perseid.measure.execution import Execution


@dataclass(frozen=True)
class LoadOptions:
    """Facts about runs that their sources do not contain."""

    architecture: str = "x86"
    """Architecture of the functions, ``x86`` or ``arm``, for their price."""
    expected: int | None = None
    """Number of ranks that should have left a result; overrides what the source says."""
    executions: tuple[Execution, ...] = ()
    """Executions of the state machine to which invocations in the logs may belong."""

    def __post_init__(self) -> None:
        if self.expected is not None and self.expected < 1:
            raise BadInputError(
                f"the number of expected ranks must be at least 1, not {self.expected}"
            )
