"""What a user says about sources that do not say it themselves."""

from __future__ import annotations

from dataclasses import dataclass

from perseid.errors import BadInputError
from perseid.measure.execution import Execution


@dataclass(frozen=True)
class LoadOptions:
    """What the sources themselves do not say."""

    architecture: str = "x86"
    expected: int | None = None
    """Ranks that should have left a result, over what the source says."""
    executions: tuple[Execution, ...] = ()
    """Executions of the state machine that the logs' functions may have worked for."""

    def __post_init__(self) -> None:
        if self.expected is not None and self.expected < 1:
            raise BadInputError(
                f"the number of expected ranks must be at least 1, not {self.expected}"
            )
