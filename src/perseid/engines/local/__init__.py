"""The engine of this machine: worker processes, and which rank each of them works on."""

from perseid.engines.local.local_engine import LocalEngine

__all__ = ["LocalEngine"]
