"""Buffer arguments of MPI calls as NumPy arrays that share their memory.

Programs give ``array``, ``[array, count, type]`` or ``[array, counts, displacements, type]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from perseid.comm.ops import Array
from perseid.compat.mpi.datatypes import DATATYPES, Datatype, from_code, from_numpy
from perseid.compat.mpi.exceptions import UnsupportedError

BYTE = DATATYPES["BYTE"]


class _Marker:
    """A constant that takes the place of a buffer."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return f"MPI.{self._name}"

    def __reduce__(self) -> str:
        return self._name


IN_PLACE = _Marker("IN_PLACE")
BOTTOM = _Marker("BOTTOM")


class Spec(NamedTuple):
    """A buffer argument, parsed."""

    memory: Array
    """All bytes of the buffer as uint8, sharing its memory."""
    datatype: Datatype
    count: Any
    """Number of elements, or one number per rank; None for as many as the buffer has."""
    displacement: Any
    """Index of the first element, or one index per rank; None if not given."""

    @property
    def elements(self) -> Array:
        """The whole memory as elements; an incomplete element at the end is left out."""
        size = self.datatype.size
        whole = len(self.memory) // size * size
        dtype = self.datatype.dtype
        assert dtype is not None
        return self.memory[:whole].view(dtype)


def parse(given: Any, writable: bool = False) -> Spec:
    """Parse a buffer argument.

    Raises
    ------
    TypeError, ValueError, KeyError, BufferError
        For the same mistakes as in mpi4py, each with an explanation.
    """
    if given is IN_PLACE:
        raise UnsupportedError(
            "MPI.IN_PLACE is not possible in this call: give a separate array for the result."
        )
    if not isinstance(given, (list, tuple)):
        memory, own = _memory(given, writable)
        return Spec(memory, own, None, None)
    if not 2 <= len(given) <= 4:
        raise ValueError(f"a buffer is [array, count, displacement, type], not {len(given)} items")
    datatype: Any = None
    rest = list(given[1:])
    # A datatype comes last; None in the fourth place stands for the type of the array.
    if isinstance(rest[-1], (Datatype, str)) or (len(given) == 4 and rest[-1] is None):
        datatype = rest.pop()
    elif rest[-1] is None:
        rest.pop()
    memory, own = _memory(given[0], writable)
    return Spec(memory, _datatype(datatype, own), *_counts(rest))


def _counts(rest: list[Any]) -> tuple[Any, Any]:
    """Counts and displacements from the items between the array and its type."""
    if len(rest) == 1 and isinstance(rest[0], tuple) and len(rest[0]) == 2:
        return rest[0]
    if len(rest) > 2:
        raise ValueError("a buffer is [array, counts, displacements, type]")
    counts, displacements = [*rest, None, None][:2]
    return counts, displacements


def _datatype(given: Any, own: Datatype) -> Datatype:
    if given is None:
        return own
    found = from_code(given) if isinstance(given, str) else given
    if not found:
        raise ValueError("MPI.DATATYPE_NULL is not a type of a buffer")
    checked: Datatype = found
    return checked


def _memory(given: Any, writable: bool) -> tuple[Array, Datatype]:
    """The bytes of an object with a buffer, and the type of its elements."""
    if given is None or given is BOTTOM:
        return np.empty(0, np.uint8), BYTE
    # Reading GPU memory through its address would crash the process.
    if hasattr(given, "__cuda_array_interface__"):
        raise UnsupportedError("Arrays on a GPU cannot be sent: copy them to the host first.")
    if not isinstance(given, np.ndarray):
        given = _from_buffer(given)
    if not given.flags.forc:
        raise ValueError("an array that is sent or received into must be contiguous")
    if writable and not given.flags.writeable:
        raise BufferError("an array that is received into must be writable")
    own = from_numpy(given.dtype)
    if own is None:
        raise UnsupportedError(
            f"arrays of {given.dtype} cannot be sent as memory: use the lower-case method, or "
            "[array.view('u1'), MPI.BYTE]"
        )
    # In memory order: MPI sends the memory as it is, also that of Fortran-ordered arrays.
    return given.ravel(order="K").view(np.uint8), own


def _from_buffer(given: Any) -> Array:
    try:
        view = memoryview(given)
    except TypeError:
        raise TypeError(
            f"an array or an object with a buffer is needed, not {type(given).__name__}: use the "
            "lower-case method for other objects"
        ) from None
    if not view.contiguous:
        raise ValueError("an array that is sent or received into must be contiguous")
    # A format of "c" has no counterpart as a number in NumPy.
    code = "u1" if view.format in ("c", "B") else view.format or "u1"
    # frombuffer refuses empty buffers, which are valid in MPI.
    if not view.nbytes:
        return np.empty(0, code)
    return np.frombuffer(view.cast("B"), code)


def _whole(name: str, value: Any) -> int:
    number = int(value)
    if number < 0:
        raise ValueError(f"a buffer's {name} must not be negative, not {number}")
    return number


def simple(given: Any, writable: bool = False) -> Array:
    """A buffer for one rank as a flat array that shares its memory."""
    return _simple(parse(given, writable))


def _simple(spec: Spec) -> Array:
    elements = spec.elements
    start = 0 if spec.displacement is None else _whole("displacement", spec.displacement)
    if spec.count is None:
        # Without a count, the buffer must be used as a whole.
        if spec.memory.size % spec.datatype.size or start > elements.size:
            raise ValueError(
                f"{spec.memory.size} bytes are not a whole number of {spec.datatype!r} from "
                f"element {start}"
            )
        return elements[start:]
    count = _whole("count", spec.count)
    if start + count > elements.size:
        raise ValueError(
            f"{count} elements from element {start} are more than the buffer has: {elements.size}"
        )
    return elements[start : start + count]


def blocks(given: Any, ranks: int, writable: bool = False) -> Array:
    """A buffer with one equal block per rank as a flat array that shares its memory."""
    spec = parse(given, writable)
    if spec.count is None:
        found = _simple(spec)
        if found.size % ranks:
            raise ValueError(f"{found.size} elements cannot be cut into {ranks} equal blocks")
        return found
    return _simple(spec._replace(count=_whole("count", spec.count) * ranks))


def parts(given: Any, ranks: int, writable: bool = False) -> list[Array]:
    """A buffer with blocks of individual sizes as one flat array per rank, sharing its memory."""
    spec = parse(given, writable)
    counts = _counts_of(spec, ranks)
    starts = _starts_of(spec, counts)
    found = []
    for count, start in zip(counts, starts, strict=True):
        found.append(_simple(spec._replace(count=count, displacement=start)))
    return found


def _counts_of(spec: Spec, ranks: int) -> list[int]:
    if spec.count is None:
        size = spec.elements.size
        if size % ranks:
            raise ValueError(f"{size} elements cannot be cut into {ranks} equal blocks")
        return [size // ranks] * ranks
    return _one_each("counts", spec.count, ranks)


def _one_each(name: str, given: Any, ranks: int) -> list[int]:
    if isinstance(given, (Sequence, np.ndarray)):
        found = [_whole(name, one) for one in given]
        if len(found) != ranks:
            raise ValueError(f"{ranks} {name} are needed, one for each rank, not {len(found)}")
        return found
    return [_whole(name, given)] * ranks


def _starts_of(spec: Spec, counts: list[int]) -> list[int]:
    ranks = len(counts)
    if spec.displacement is None:
        # As in mpi4py, blocks follow one another if no displacements are given.
        return [sum(counts[:rank]) for rank in range(ranks)]
    if isinstance(spec.displacement, (Sequence, np.ndarray)):
        return _one_each("displacements", spec.displacement, ranks)
    step = _whole("displacement", spec.displacement)
    return [rank * step for rank in range(ranks)]
