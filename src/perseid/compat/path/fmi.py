"""What ``import fmi`` finds under ``perseid fmi-run``."""

from perseid.compat.fmi import Communicator, datatypes, func, hints, op, types

__all__ = ["Communicator", "datatypes", "func", "hints", "op", "types"]
