"""Constants of MPI, with the names that mpi4py gives them."""

from __future__ import annotations

ANY_SOURCE = -1
ANY_TAG = -1
PROC_NULL = -2
ROOT = -4
UNDEFINED = -32766
TAG_UB_VALUE = 2**31 - 1
"""The largest tag."""

IDENT, CONGRUENT, SIMILAR, UNEQUAL = range(4)
"""Results of ``Comm.Compare`` and ``Group.Compare``."""
THREAD_SINGLE, THREAD_FUNNELED, THREAD_SERIALIZED, THREAD_MULTIPLE = range(4)
COMM_TYPE_SHARED = 0

SUCCESS = 0
ERROR_TEXTS = {
    "SUCCESS": "no error",
    "ERR_BUFFER": "invalid buffer",
    "ERR_COUNT": "invalid count",
    "ERR_TYPE": "invalid datatype",
    "ERR_TAG": "invalid tag",
    "ERR_COMM": "invalid communicator",
    "ERR_RANK": "invalid rank",
    "ERR_REQUEST": "invalid request",
    "ERR_ROOT": "invalid root",
    "ERR_GROUP": "invalid group",
    "ERR_OP": "invalid reduction",
    "ERR_TOPOLOGY": "invalid topology",
    "ERR_DIMS": "invalid dimensions",
    "ERR_ARG": "invalid argument",
    "ERR_UNKNOWN": "unknown error",
    "ERR_TRUNCATE": "the message is longer than the buffer",
    "ERR_OTHER": "other error",
    "ERR_INTERN": "internal error",
    "ERR_IN_STATUS": "the error is in the status",
    "ERR_PENDING": "the request is pending",
    "ERR_PROC_FAILED": "a rank is lost",
    "ERR_UNSUPPORTED_OPERATION": "not supported",
    "ERR_LASTCODE": "last error code",
}
"""Meaning of each MPI error class, in the order of their numbers."""
# Numbered in this order, since the standard fixes names but not values.
ERROR_CODES = {name: code for code, name in enumerate(ERROR_TEXTS)}
