"""The module that ``import fmi`` finds in script mode, ``perseid comm run`` and ``fmi-run``."""

from perseid.compat.fmi import Communicator, datatypes, func, hints, op, types

__all__ = ["Communicator", "datatypes", "func", "hints", "op", "types"]
