"""What the labels of a survey mean."""

from __future__ import annotations

from types import MappingProxyType

ANOMALY_KINDS = MappingProxyType(
    {
        0: "none",
        1: "merger",
        2: "ring",
        3: "tidal stream",
        4: "satellite trail",
        5: "cosmic ray",
        6: "bad column",
        7: "saturated star",
        8: "band offset",
        9: "dead band",
    }
)
"""What a label means; 0 is a plain object."""
