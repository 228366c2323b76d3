"""The engine for this machine: worker processes, and the assignment of ranks to them."""

from perseid.engines.local.local_engine import LocalEngine

__all__ = ["LocalEngine"]
