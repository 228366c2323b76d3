"""Direct TCP connections between two workers, through NATs where their kinds allow it."""

from perseid.rendezvous.punch.links import Link

__all__ = ["Link"]
