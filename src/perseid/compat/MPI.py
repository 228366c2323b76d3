"""The names of mpi4py: ``from perseid.compat import MPI`` replaces ``from mpi4py import MPI``.

The process joins the job when a communicator is first used, as ``Communicator.from_environment``
does, and leaves it when the program ends. docs/how-to/mpi4py.md lists what is available.
"""

from __future__ import annotations

import pickle
import socket
import time
from typing import Any

from perseid.compat.mpi import datatypes as _datatypes
from perseid.compat.mpi import reductions as _reductions
from perseid.compat.mpi.buffers import BOTTOM, IN_PLACE
from perseid.compat.mpi.comm import COMM_NULL, COMM_SELF, COMM_WORLD, Comm, Intracomm
from perseid.compat.mpi.constants import (
    ANY_SOURCE,
    ANY_TAG,
    COMM_TYPE_SHARED,
    CONGRUENT,
    ERROR_CODES,
    IDENT,
    PROC_NULL,
    ROOT,
    SIMILAR,
    THREAD_FUNNELED,
    THREAD_MULTIPLE,
    THREAD_SERIALIZED,
    THREAD_SINGLE,
    UNDEFINED,
    UNEQUAL,
)
from perseid.compat.mpi.datatypes import DATATYPE_NULL, Datatype
from perseid.compat.mpi.exceptions import (
    Get_error_class,
    Get_error_string,
    UnsupportedError,
)
from perseid.compat.mpi.exceptions import MPIException as Exception
from perseid.compat.mpi.groups import GROUP_EMPTY, GROUP_NULL, Group
from perseid.compat.mpi.message_status import Status
from perseid.compat.mpi.reductions import Op
from perseid.compat.mpi.requests import REQUEST_NULL, Request
from perseid.compat.mpi.world import PROCESS

Alloc_mem = bytearray
"""Allocate memory for a buffer; ordinary memory is sufficient."""
BSEND_OVERHEAD = 0
WTIME_IS_GLOBAL = 0
VERSION, SUBVERSION = 3, 1

# MPI has a hundred names of constants and types; listing them would repeat three tables.
globals().update(ERROR_CODES)
globals().update(_datatypes.DATATYPES)
globals().update(_reductions.OPS)
# Names without a type still exist, so that programs can compare with DATATYPE_NULL.
globals().update(dict.fromkeys(_datatypes.MISSING, DATATYPE_NULL))


def Init() -> None:
    """Join the job now."""
    PROCESS.world()


def Init_thread(required: int = THREAD_MULTIPLE) -> int:
    """Join the job now; calls are allowed from any thread."""
    PROCESS.world()
    return THREAD_MULTIPLE


def Finalize() -> None:
    """Leave the job once all ranks have called this; the end of the program does so as well."""
    PROCESS.finalize()


def Is_initialized() -> bool:
    """Whether this process has joined the job."""
    return PROCESS.joined or PROCESS.finalized


def Is_finalized() -> bool:
    """Whether this process has left the job."""
    return PROCESS.finalized


def Query_thread() -> int:
    """``THREAD_MULTIPLE``: calls are allowed from any thread."""
    return THREAD_MULTIPLE


def Is_thread_main() -> bool:
    """Whether this is the program's first thread."""
    import threading

    return threading.current_thread() is threading.main_thread()


def Get_processor_name() -> str:
    """The name of the host that this rank runs on."""
    # As in MPI, a name for people; ranks of one machine are found by Split_type.
    return socket.gethostname()


def Get_version() -> tuple[int, int]:
    """The version of the MPI standard that the calls follow."""
    return VERSION, SUBVERSION


def Get_library_version() -> str:
    """Name and version of the library that takes the place of an MPI implementation."""
    from perseid import __version__

    return f"perseid {__version__}"


def get_vendor() -> tuple[str, tuple[int, int, int]]:
    """Name and version of the implementation."""
    from perseid import __version__

    # Padded, since a version may have two numbers.
    major, minor, patch = (*(int(part) for part in __version__.split(".")[:3]), 0, 0)[:3]
    return "perseid", (major, minor, patch)


def Wtime() -> float:
    """Time of a monotonic clock, in seconds."""
    return time.perf_counter()


def Wtick() -> float:
    """Resolution of `Wtime`, in seconds."""
    return time.get_clock_info("perf_counter").resolution


def Attach_buffer(buf: Any) -> None:
    """Do nothing: buffered sends allocate their own memory."""


def Detach_buffer() -> None:
    """Do nothing, like `Attach_buffer`."""


def Free_mem(mem: Any) -> None:
    """Do nothing: Python frees the memory."""


_MISSING = {
    "Win": "one-sided communication", "File": "files (use perseid.Storage, or a file per rank)",
    "Intercomm": "intercommunicators", "Cartcomm": "topologies", "Graphcomm": "topologies",
    "Session": "sessions", "Info": "hints", "INFO_NULL": "hints", "Errhandler": "error handlers",
    "ERRORS_RETURN": "error handlers: every error is an exception", "Prequest":
    "persistent requests", "Grequest": "requests of a program's own", "Message": "matched probes",
    "Compute_dims": "topologies",
}  # fmt: skip


# Called for names that the module lacks, so that a missing part of MPI says what it is.
def __getattr__(name: str) -> Any:
    if name in _MISSING:
        raise AttributeError(f"MPI.{name} is not available in perseid.compat ({_MISSING[name]})")
    raise AttributeError(f"perseid.compat.MPI has no {name}")


__all__ = [
    "ANY_SOURCE", "ANY_TAG", "BOTTOM", "COMM_NULL", "COMM_SELF", "COMM_TYPE_SHARED", "COMM_WORLD",
    "CONGRUENT", "Comm", "DATATYPE_NULL", "Datatype", "Exception", "GROUP_EMPTY", "GROUP_NULL",
    "Get_error_class", "Get_error_string", "Group", "IDENT", "IN_PLACE", "Intracomm", "Op",
    "PROC_NULL", "REQUEST_NULL", "ROOT", "Request", "SIMILAR", "Status", "THREAD_FUNNELED",
    "THREAD_MULTIPLE", "THREAD_SERIALIZED", "THREAD_SINGLE", "UNDEFINED", "UNEQUAL",
    "UnsupportedError", "Wtime", "pickle",
]  # fmt: skip
