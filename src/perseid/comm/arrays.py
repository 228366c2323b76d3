"""NumPy arrays as memory: checked, cut into parts, sent and received into."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from perseid.comm.frames import CODES, dtype_code
from perseid.comm.objects import Blob, Buffer
from perseid.comm.ops import Array, Op
from perseid.comm.ports import array_bytes
from perseid.comm.socket_channel import JOINED_BYTES
from perseid.errors import BadInputError

_CODES_BY_ID = {id(dtype): code for dtype, code in CODES.items()}
"""Type code by the identity of the NumPy type: NumPy has one object for each native type, and
looking it up by identity is faster than by value."""
_PLAIN_BY_ID = {id(dtype): code for dtype, code in CODES.items() if dtype.kind != "c"}
"""The same for types whose memory a memoryview can show as bytes."""


def _code(array: Array) -> int:
    if not isinstance(array, np.ndarray):
        raise BadInputError(
            f"this takes an array, not {type(array).__name__}: use the lower-case method"
        )
    # Subclasses carry more than their memory. A memmap is the exception: its memory is all it has.
    if type(array) is not np.ndarray and not isinstance(array, np.memmap):
        raise BadInputError(
            f"a {type(array).__name__} is more than its memory (a mask or a unit would be lost): "
            "use the lower-case method, or give numpy.asarray of it"
        )
    code = dtype_code(array.dtype)
    if code is None:
        raise BadInputError(
            f"arrays of {array.dtype} cannot be sent as memory: use the lower-case method"
        )
    return code


def to_send(array: Array) -> tuple[memoryview, int]:
    """The bytes of an array (a copy, if it is not contiguous) and the code of its type.

    Raises
    ------
    BadInputError
        It is not an array, or its type can only be pickled.
    """
    code = _code(array)
    return array_bytes(np.ascontiguousarray(array)), code


def to_receive(array: Array) -> tuple[memoryview, int]:
    """The bytes of an array that is received into, and the code of its type.

    Raises
    ------
    BadInputError
        It is not contiguous, or not writable.
    """
    # The usual array first, without a call: these checks are part of every small message.
    if type(array) is np.ndarray and array.size and array.flags.carray:
        usual = _PLAIN_BY_ID.get(id(array.dtype))
        if usual is not None:
            return array.data.cast("B"), usual
    code = _code(array)
    _check_place(array)
    return array_bytes(array), code


def payload(array: Array) -> tuple[Buffer, int]:
    """`to_send` with a copy of a small array.

    A small payload is copied behind its header anyway; bytes are then the cheaper operand.
    """
    code = _CODES_BY_ID.get(id(array.dtype)) if type(array) is np.ndarray else None
    if code is None:
        code = _code(array)
    if array.nbytes <= JOINED_BYTES:
        return array.tobytes(), code
    return array_bytes(np.ascontiguousarray(array)), code


def _check_place(array: Array) -> None:
    flags = array.flags
    if not (flags.c_contiguous and flags.writeable):
        raise BadInputError("an array that is received into must be contiguous and writable")


def without_overlap(array: Any, into: Any) -> Any:
    """The array, or a copy of it if ``into`` shares its memory.

    Parts of ``into`` are written before all of the array has been read.
    """
    both = isinstance(array, np.ndarray) and isinstance(into, np.ndarray)
    return array.copy() if both and np.may_share_memory(array, into) else array


def blob(data: memoryview) -> Blob:
    """A payload that consists of raw bytes."""
    return Blob(0, [data], len(data))


def parts(array: Array | None, dtype: np.dtype[Any], counts: Sequence[int]) -> list[memoryview]:
    """The bytes of consecutive parts of an array.

    Raises
    ------
    BadInputError
        The array is missing, has another type, or its size is not the sum of ``counts``.
    """
    data, ends = array_bytes(_whole(array, dtype, counts)), [0]
    for count in counts:
        ends.append(ends[-1] + count * dtype.itemsize)
    return [data[start:end] for start, end in itertools.pairwise(ends)]


def places(into: Array | None, dtype: np.dtype[Any], counts: Sequence[int]) -> list[memoryview]:
    """The bytes of consecutive parts of an array that is received into.

    Raises the same errors as ``parts`` and ``to_receive``.
    """
    found = parts(into, dtype, counts)
    if into is not None:
        _check_place(into)
    return found


def pieces(array: Array | None, dtype: np.dtype[Any], counts: Sequence[int]) -> list[Array]:
    """Consecutive parts of an array, as arrays; raises the same errors as ``parts``."""
    flat = _whole(array, dtype, counts).reshape(-1)
    ends = itertools.accumulate(counts, initial=0)
    return [flat[start:end] for start, end in itertools.pairwise(ends)]


def _whole(array: Array | None, dtype: np.dtype[Any], counts: Sequence[int]) -> Array:
    """The array, after checking that it can be cut into parts of so many elements."""
    total = sum(counts)
    if array is not None:
        _code(array)
    if array is None or array.dtype != dtype or array.size != total:
        have = "none" if array is None else f"{array.size} of {array.dtype}"
        raise BadInputError(f"an array of {total} elements of {dtype} is needed here, not {have}")
    if not array.flags.c_contiguous:
        raise BadInputError("an array that is cut into parts must be contiguous")
    return array


def like(into: Array | None, array: Array) -> Array:
    """Check that ``into`` can hold a result of the shape and type of ``array``, and return it.

    Raises
    ------
    BadInputError
        It is missing, has another shape or type, or cannot be written in place.
    """
    if into is not None:
        _code(into)
    if into is None or into.dtype != array.dtype or into.shape != array.shape:
        have = "none" if into is None else f"shape {into.shape} of {into.dtype}"
        raise BadInputError(
            f"the result needs an array of shape {array.shape} of {array.dtype}, not {have}"
        )
    _check_place(into)
    return into


def reducible(op: Op, array: Array) -> tuple[Op, int]:
    """An operation, and the code of the type of the array that it combines.

    Raises
    ------
    BadInputError
        The operation combines (value, place) pairs, or the array cannot be sent.
    """
    if op.pairs:
        raise BadInputError(f"{op.name} combines (value, place) pairs: use the lower-case method")
    return op, _code(array)


def matching(op: Op, array: Array, into: Array) -> int:
    """The type code that an array shares with the array for its reduction.

    A fast path for ``like`` and ``reducible``, which raise the errors.
    """
    if type(array) is np.ndarray and type(into) is np.ndarray and op.ufunc is not None:
        dtype = array.dtype
        code = _CODES_BY_ID.get(id(dtype))
        if code and into.dtype is dtype and into.shape == array.shape and into.flags.carray:
            return code
    code = reducible(op, array)[1]
    like(into, array)
    return code
