"""The interface of the ``fmi`` module, implemented with our communicator.

Scripts written for FMI (FaaS Message Interface) run unchanged: ``perseid fmi-run script.py``. In
contrast to FMI's own module, arrays are accepted like lists, mismatched calls are errors, no call
changes the caller's values, and every wait has a deadline.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from perseid.comm import MAX, MIN, PROD, SUM, Op
from perseid.comm import Communicator as OurCommunicator
from perseid.comm.cost_model import choose
from perseid.compat.fmi_config import FmiConfig, load
from perseid.errors import BadInputError, RendezvousTimeoutError
from perseid.plaintext import option
from perseid.rendezvous import job_key
from perseid.storage import Storage

SPARE_SECONDS = 15.0
"""Seconds before a script's own time limit at which every call ends, whatever the configuration."""


# Lower-case names and the values of members are those of FMI's own module.
class datatypes(enum.Enum):
    """Element types of FMI's values."""

    int = 1
    double = 2
    int_list = 3
    double_list = 4


class hints(enum.Enum):
    """Criterion for the choice of a channel: latency or price."""

    fast = 1
    cheap = 2


class op(enum.Enum):
    """FMI's names of the reductions."""

    sum = 1
    prod = 2
    max = 3
    min = 4
    custom = 5


@dataclass(frozen=True)
class types:
    """The type of a value; for lists, with the number of elements."""

    datatype: datatypes
    length: int = 1

    @property
    def is_list(self) -> bool:
        """Whether the type is that of a list."""
        return self.datatype in (datatypes.int_list, datatypes.double_list)

    @property
    def nbytes(self) -> int:
        """Size of a value in bytes, with 4 per int and 8 per double, as in C."""
        whole = self.datatype in (datatypes.int, datatypes.int_list)
        return (4 if whole else 8) * (self.length if self.is_list else 1)

    def element(self, value: Any) -> Any:
        """Convert a number to the element type."""
        whole = self.datatype in (datatypes.int, datatypes.int_list)
        return int(value) if whole else float(value)

    def value(self, value: Any, length: int | None = None) -> Any:
        """Convert a value to this type.

        Raises
        ------
        BadInputError
            The value has another type or length.
        """
        try:
            if not self.is_list:
                return self.element(value)
            found = [self.element(one) for one in value]
        except (TypeError, ValueError):
            raise BadInputError(f"{value!r} is not of the type {self.datatype.name}") from None
        expected = self.length if length is None else length
        if len(found) != expected:
            raise BadInputError(f"a list of {len(found)} elements, but the type has {expected}")
        return found


@dataclass(frozen=True)
class func:
    """A reduction: one of ``op``, or a function of two numbers and its algebraic properties."""

    op: op
    function: Callable[[Any, Any], Any] | None = None
    commutative: bool = True
    associative: bool = True

    def __post_init__(self) -> None:
        # A function without op.custom would be ignored, and the program would get another result.
        if (self.op.name == "custom") != (self.function is not None):
            raise BadInputError("fmi.func takes a function with fmi.op.custom, and only with it")

    def ours(self, type_: types) -> Op:
        """The operation for values of a type; for lists it works element by element."""
        if self.function is None:
            plain: Op = {"sum": SUM, "prod": PROD, "max": MAX, "min": MIN}[self.op.name]
            if not type_.is_list:
                return plain
            ufunc = plain.ufunc
            assert ufunc is not None
            combine: Callable[[Any, Any], Any] = ufunc
        else:
            function = self.function
            combine = functools.partial(_each, function) if type_.is_list else function
        return Op.custom(combine, commutative=self.commutative, associative=self.associative)


def _each(function: Callable[[Any, Any], Any], left: Any, right: Any) -> list[Any]:
    # strict, so that lists of different lengths are an error, not cut short.
    return [function(one, other) for one, other in zip(left, right, strict=True)]


class Communicator:
    """FMI's communicator.

    Parameters
    ----------
    peer_id, num_peers
        Number of this worker, and the number of workers.
    config_path
        FMI's configuration file. ``backends.Direct`` names our rendezvous server; if the server
        requires a job key, it is ``backends.Direct.key`` or in ``PERSEID_JOB_KEY``. If
        ``perseid run``, ``comm run`` or ``fmi-run -n`` started this process, their server is used
        instead.
    comm_name
        Name that is the same on all workers and that no other run uses.
    faas_memory
        Memory of one worker in MB, which determines the price of its time.
    """

    def __init__(
        self,
        peer_id: int,
        num_peers: int,
        config_path: str,
        comm_name: str,
        faas_memory: int = 128,
    ) -> None:
        self._peer, self._peers, self._name = int(peer_id), int(num_peers), str(comm_name)
        self._config: FmiConfig = load(config_path, faas_memory, _started_server())
        self._hint = "fast"
        # Joined at the first call that needs it: many programs only ever use one transport.
        self._open: dict[str, OurCommunicator] = {}

    def hint(self, hint: hints) -> None:
        """Choose channels by time or by price from now on; all workers must give the same hint."""
        self._hint = hint.name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        self.close(error)

    def close(self, error: BaseException | None = None) -> None:
        """Leave, and close the connections to all other workers."""
        for comm in self._open.values():
            comm.close(error)

    # FMI programs do not close their communicator; they let it go out of scope.
    def __del__(self) -> None:
        if hasattr(self, "_open"):
            self.close()

    @contextlib.contextmanager
    def _comm(self, operation: str, nbytes: int) -> Iterator[OurCommunicator]:
        """The communicator of the best transport for an operation, for one call."""
        config = self._config
        # The same on all workers, since each gives the same operation, size and hint.
        best = choose(operation, self._peers, nbytes, self._hint, config.transports, config.rates)
        try:
            if best.transport not in self._open:
                self._open[best.transport] = self._join(best.transport)
            yield self._open[best.transport]
        except RendezvousTimeoutError as error:
            # A local run may work on fewer ranks at once than the program has workers.
            at_once = int(os.environ.get("PERSEID_RANKS_AT_ONCE") or self._peers)
            if at_once >= self._peers:
                raise
            raise RendezvousTimeoutError(
                f"{error} This run works on {at_once} of its {self._peers} ranks at once, so the "
                f"others may not have started: give {option('workers', self._peers)}, or "
                "fmi_enabled true in the request.",
                error.missing,
            ) from error

    def _join(self, way: str) -> OurCommunicator:
        config, limit = self._config, _within_script(self._config.deadline)
        store = None
        if config.bucket is not None:
            if config.region:
                # The user's own setting overrides the configuration of the program.
                os.environ.setdefault("AWS_REGION", config.region)
            store = Storage(config.bucket)
        return OurCommunicator.join(
            self._name,
            self._peer,
            self._peers,
            config.rendezvous if way == "direct" else None,
            self._key(),
            transport="auto" if way == "direct" else "store",
            prefix=f"fmi/{self._name}/{way}",
            deadline=limit,
            timeout=limit,
            silence_timeout=config.silence,
            store=store,
            wait=False,  # other workers may never use this transport
        )

    def _key(self) -> str | None:
        """The job key: for the server of this run, or otherwise as the user gave it."""
        secret = os.environ.get("PERSEID_JOB_SECRET")
        if secret and _started_server():
            return job_key(bytes.fromhex(secret), self._name).hex()
        return os.environ.get("PERSEID_JOB_KEY") or self._config.key

    # --- FMI's operations --------------------------------------------------------------------

    def barrier(self) -> None:
        """Return when every worker has called this."""
        with self._comm("barrier", 1) as comm:
            comm.barrier()

    def send(self, obj: Any, dest: int, type: types) -> None:
        """Send a value of a type to one worker."""
        value = type.value(obj)
        with self._comm("send", type.nbytes) as comm:
            comm.send(value, dest)

    def recv(self, src: int, type: types) -> Any:
        """Receive a value of a type from one worker."""
        with self._comm("send", type.nbytes) as comm:
            return type.value(comm.recv(src))

    def bcast(self, obj: Any, root: int, type: types) -> Any:
        """Return the root's value on every worker."""
        # The other workers may pass anything, usually None.
        mine = type.value(obj) if self._peer == root else None
        with self._comm("bcast", type.nbytes) as comm:
            return type.value(comm.bcast(mine, root))

    def gather(self, obj: Any, root: int, type: types) -> list[Any] | None:
        """Return all values on the root, in the order of workers; lists are concatenated."""
        value = type.value(obj)
        with self._comm("gather", type.nbytes) as comm:
            found = comm.gather(value, root)
        if found is None or not type.is_list:
            return found
        # FMI returns one flat list, not one list per worker.
        return [element for part in found for element in part]

    def scatter(self, obj: Sequence[Any] | None, root: int, type: types) -> Any:
        """Return this worker's part of the root's list; the type states the length of the whole."""
        if not type.is_list or type.length % self._peers:
            raise BadInputError(
                f"scatter needs a list whose length is a multiple of {self._peers}, not {type}"
            )
        # FMI states the length of the root's list, not of one part.
        size = type.length // self._peers
        parts = None
        if self._peer == root:
            whole = type.value(obj)
            parts = [whole[at : at + size] for at in range(0, len(whole), size)]
        with self._comm("scatter", type.nbytes // self._peers) as comm:
            return comm.scatter(parts, root)

    def reduce(self, obj: Any, root: int, func: func, type: types) -> Any:
        """Return the reduction of all values on the root, and None elsewhere."""
        value = self._value(obj, func, type)
        with self._comm("reduce", type.nbytes) as comm:
            found = comm.reduce(value, func.ours(type), root)
        return None if found is None else type.value(found)

    def allreduce(self, obj: Any, func: func, type: types) -> Any:
        """Return the reduction of all values on every worker."""
        value = self._value(obj, func, type)
        with self._comm("allreduce", type.nbytes) as comm:
            return type.value(comm.allreduce(value, func.ours(type)))

    def scan(self, obj: Any, func: func, type: types) -> Any:
        """Return the reduction of the values of workers 0 to this one."""
        value = self._value(obj, func, type)
        with self._comm("scan", type.nbytes) as comm:
            return type.value(comm.scan(value, func.ours(type)))

    @staticmethod
    def _value(obj: Any, func: func, type: types) -> Any:
        """The value to reduce; lists become arrays if NumPy does the reduction."""
        value = type.value(obj)
        return np.asarray(value) if type.is_list and func.function is None else value


def _within_script(seconds: float) -> float:
    """A time limit that ends before the script's own, so that its error message is seen."""
    # Set by the engine, which would otherwise end the script without an explanation.
    left = float(os.environ.get("PERSEID_SCRIPT_ENDS") or math.inf) - time.time()
    return min(seconds, max(1.0, left - min(SPARE_SECONDS, left / 2)))


def _started_server() -> str | None:
    """Address of the rendezvous that was started for this run; None if there is none."""
    return os.environ.get("PERSEID_RENDEZVOUS") if "PERSEID_JOB_SECRET" in os.environ else None


def python_path() -> str:
    """Value of ``PYTHONPATH`` with which programs import this ``fmi``."""
    former = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join([str(PATH), *(part for part in former if part and part != str(PATH))])


PATH = Path(__file__).with_name("path")
"""The folder to put on a program's path so that ``import fmi`` finds this module."""
