"""How long silence may last before it counts as a loss.

Three kinds of silence, with three times. A process that died closes its connections: the kernel
says so at once. A dead host or a cut link answers nothing, not even the kernel's probes. A process
that was stopped, or holds its interpreter in one long call, is silent while its kernel still
answers: it lives, and gets the longest time.

Beside the packages of the rendezvous, not in `protocol`: each worker needs these times, and few
need the frames, which take as long to import as the rest of a worker's own modules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from perseid.errors import BadInputError

DEATH_SECONDS = 2.0
"""From the end of a process until all other ranks know."""
LINK_SECONDS = 15.0
"""Without any answer of the peer's kernel: then its host is dead or the link is cut."""
SILENCE_SECONDS = 60.0
"""Without a sign of life of a process whose kernel answers."""
LONGEST_SILENCE = 5_350.0
"""The longest silence that the protocol's field can say, in seconds."""
LONGEST_WAIT = 1_000_000.0
"""The longest time that a call waits, in seconds (11 days): kernel and interpreter count waits in
integers, and some fail above 2^31 ms."""

_EXACT_MS = 65_000
"""A silence up to this stands in its 16-bit field as milliseconds; a larger value v stands for
(v - 65,000) x 10 s."""
_STEP_SECONDS = 10.0


@dataclass(frozen=True)
class LossTimeouts:
    """After how long a rank counts as lost, in seconds.

    Raises
    ------
    BadInputError
        A time is not a positive number, or the silence is longer than the protocol can say.
    """

    death: float = DEATH_SECONDS
    """From the end of a process until all other ranks know it: how long they may ask the
    rendezvous which rank ended first."""
    link: float = LINK_SECONDS
    """A host or a link that answers nothing. It does not depend on what the process does."""
    silence: float = SILENCE_SECONDS
    """A process that is stopped, or computes without letting its other threads run; 0: forever."""

    def __post_init__(self) -> None:
        for name, value in (("death", self.death), ("link", self.link), ("silence", self.silence)):
            # True is an int in Python, and "1 second" is surely not what was meant.
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value < 0:
                raise BadInputError(f"{name}_timeout must be a number of seconds, not {value!r}.")
        if not self.death or not self.link:
            raise BadInputError("death_timeout and link_timeout must be above 0 seconds.")
        for name, value in (("death", self.death), ("link", self.link)):
            if value > LONGEST_WAIT:
                raise BadInputError(
                    f"{name}_timeout is at most {LONGEST_WAIT:g} s, not {value:g} s."
                )
        if self.silence > LONGEST_SILENCE:
            raise BadInputError(
                f"silence_timeout is at most {LONGEST_SILENCE:g} s (0: no limit), "
                f"not {self.silence:g} s."
            )


def pack_silence(seconds: float) -> int:
    """A silence as the 16-bit number that stands for it, rounded up."""
    if seconds * 1000 <= _EXACT_MS:
        # 0.1 * 1000 is a little more than 100 in floating point: without the slack it would become
        # 101.
        return math.ceil(seconds * 1000 - 1e-6)
    return _EXACT_MS + math.ceil(seconds / _STEP_SECONDS)


def unpack_silence(value: int) -> float:
    """The seconds that a 16-bit number stands for."""
    return value / 1000 if value <= _EXACT_MS else (value - _EXACT_MS) * _STEP_SECONDS
