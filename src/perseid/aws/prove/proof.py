"""The content of a proof: one line for each question that only AWS can settle."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from perseid import __version__

LINES: dict[str, str] = {
    "deploy": "a stack is made by CloudFormation, and its functions start",
    "x86_64.processor": "instructions, processors and libraries of x86 functions",
    "x86_64.start": "cold and warm starts of x86 functions",
    "arm64.processor": "instructions, processors and libraries of arm64 functions",
    "arm64.start": "cold and warm starts of arm64 functions",
    "rendezvous": "a task of the rendezvous comes to run on Fargate and gets an address",
    "gang-8": "8 functions meet: kind of NAT, direct paths and relayed ones, allreduce",
    "gang-32": "32 functions meet: kind of NAT, direct paths and relayed ones, allreduce",
    "map": "a distributed map over many partitions, as long as it takes",
    "bill": "what REPORT lines say was billed against what perseid expects",
    "destroy": "everything is removed again",
}
"""Names of the lines, and what each of them settles."""
_PRIVATE = (
    (re.compile(r"arn:aws[a-z-]*:\S+"), "ARN"),
    (re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "ID"),
    (re.compile(r"\b[0-9]{12}\b"), "ACCOUNT"),
    (re.compile(r"\b(?:[0-9]{1,3}\.){3}[0-9]{1,3}\b(?::[0-9]+)?"), "ADDRESS"),
    (re.compile(r"\b(?:[0-9a-f]{1,4}:){3,7}[0-9a-f]{1,4}\b", re.IGNORECASE), "ADDRESS"),
    (re.compile(r"\b(?:https?|s3)://\S+"), "URL"),
    (re.compile(r"\b(?:i|eni|vpc|subnet|sg|igw|rtb|r)-[0-9a-f]{8,17}\b"), "ID"),
    (re.compile(r"\bA[KS]IA[A-Z0-9]{12,}\b"), "KEY"),
)  # fmt: skip
Value = str | int | float | bool | None | tuple["Value", ...] | Mapping[str, "Value"]
"""A value that JSON can hold."""


@dataclass(frozen=True)
class Line:
    """One thing that was measured, or why it was not measured."""

    name: str
    """Name of the line, one of `LINES`."""
    state: str
    """State of the line: ``measured``, ``failed`` or ``skipped``."""
    sentence: str
    """What was found, or why it was not measured."""
    seconds: float = 0.0
    """Duration of the measurement, in seconds."""
    usd: float = 0.0
    """Highest possible cost, USD."""
    values: Mapping[str, Value] = field(default_factory=dict)
    """Measured numbers by name."""


@dataclass(frozen=True)
class AwsProof:
    """Everything that was measured in one account and region."""

    lines: tuple[Line, ...]
    region: str
    day: str
    """Date in ISO format, UTC."""
    cap_usd: float
    concurrency: int | None = None
    """Number of functions that the account may run at once; None if unknown."""
    version: str = __version__

    @property
    def usd(self) -> float:
        """Highest possible total cost in USD."""
        return sum(line.usd for line in self.lines)

    @property
    def whole(self) -> bool:
        """Whether every line was measured."""
        return all(line.state == "measured" for line in self.lines)

    def to_json(self) -> str:
        """The content of the file that the user can mail."""
        plain = {
            "perseid": self.version,
            "region": self.region,
            "day": self.day,
            "concurrency": self.concurrency,
            "cap_usd": self.cap_usd,
            "spent_usd_at_most": round(self.usd, 6),
            "lines": [
                {
                    "name": line.name,
                    "settles": LINES[line.name],
                    "state": line.state,
                    "sentence": line.sentence,
                    "seconds": round(line.seconds, 3),
                    "usd_at_most": round(line.usd, 6),
                    "values": line.values,
                }
                for line in self.lines
            ],
        }
        return json.dumps(plain, indent=1) + "\n"


def anonymous(text: str, names: Iterable[str] = ()) -> str:
    """Remove account ids, ARNs, addresses, URLs, resource ids and the given names from a text.

    Parameters
    ----------
    names
        Names of users, buckets and anything else that must be removed; empty names are ignored.

    Examples
    --------
    >>> anonymous("arn:aws:iam::123456789012:user/ann may not, says 10.0.0.7", ["ann"])
    'ARN may not, says ADDRESS'
    """
    for pattern, word in _PRIVATE:
        text = pattern.sub(word, text)
    for name in sorted(filter(None, names), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "NAME", text)
    return text
