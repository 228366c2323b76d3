"""Message passing between workers: a communicator as in mpi4py, over direct connections."""

from perseid.comm.certificates import make_certificate
from perseid.comm.communicator import Communicator
from perseid.comm.ops import AND, MAX, MAXLOC, MIN, MINLOC, OR, PROD, SUM, Op

__all__ = [
    "AND", "MAX", "MAXLOC", "MIN", "MINLOC", "OR", "PROD", "SUM", "Communicator", "Op",
    "make_certificate",
]  # fmt: skip
