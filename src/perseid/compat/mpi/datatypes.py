"""MPI's basic datatypes as NumPy types; derived datatypes are refused."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from perseid.compat.mpi.exceptions import UnsupportedError, failure


class Datatype:
    """The type of the elements of a buffer.

    Parameters
    ----------
    name
        MPI's name of the type.
    dtype
        The NumPy type; None for ``DATATYPE_NULL``.
    """

    def __init__(self, name: str, dtype: np.dtype[Any] | None) -> None:
        self.name, self.dtype = name, dtype

    @property
    def size(self) -> int:
        """Size of an element, in bytes."""
        if self.dtype is None:
            raise failure("ERR_TYPE", "MPI.DATATYPE_NULL has no size; give a datatype.")
        return self.dtype.itemsize

    extent = size

    def Get_size(self) -> int:
        """Size of an element, in bytes."""
        return self.size

    def Get_extent(self) -> tuple[int, int]:
        """Lower bound and extent of an element, in bytes."""
        return 0, self.size

    def Get_name(self) -> str:
        """MPI's name of the type."""
        return f"MPI_{self.name}"

    @property
    def typestr(self) -> str:
        """NumPy's code of the type, without the byte order."""
        # The first character is the byte order.
        return "" if self.dtype is None else self.dtype.str[1:]

    @classmethod
    def fromcode(cls, code: str) -> Datatype:
        """The type for a code of NumPy or of Python's ``array``, such as ``"d"``."""
        return from_code(code)

    def tocode(self) -> str:
        """NumPy's code of the type."""
        return "" if self.dtype is None else self.dtype.char

    def __bool__(self) -> bool:
        return self.dtype is not None

    def __eq__(self, other: object) -> bool:
        # By NumPy type: LONG and INT64_T are the same memory.
        return isinstance(other, Datatype) and self.dtype == other.dtype

    def __hash__(self) -> int:
        return hash(self.dtype)

    def __repr__(self) -> str:
        return f"MPI.{self.name}"

    def __getattr__(self, name: str) -> NoReturn:
        # Named explicitly, since programs that use derived types need to know what to do instead.
        if name.startswith("Create_") or name == "Dup":
            raise UnsupportedError(
                f"Derived datatypes (Datatype.{name}) are not supported: send the part of the "
                "array itself, such as numpy.ascontiguousarray(array[::2]), or an object."
            )
        raise AttributeError(name)


_NUMPY = {
    "CHAR": "i1", "SIGNED_CHAR": "i1", "UNSIGNED_CHAR": "u1", "BYTE": "u1",
    "SHORT": "i2", "INT": "i4", "LONG": "i8", "LONG_LONG": "i8",
    "UNSIGNED_SHORT": "u2", "UNSIGNED": "u4", "UNSIGNED_INT": "u4", "UNSIGNED_LONG": "u8",
    "UNSIGNED_LONG_LONG": "u8",
    "INT8_T": "i1", "INT16_T": "i2", "INT32_T": "i4", "INT64_T": "i8",
    "UINT8_T": "u1", "UINT16_T": "u2", "UINT32_T": "u4", "UINT64_T": "u8",
    "FLOAT": "f4", "DOUBLE": "f8", "C_BOOL": "?", "BOOL": "?", "CXX_BOOL": "?",
    "COMPLEX": "c8", "C_COMPLEX": "c8", "C_FLOAT_COMPLEX": "c8", "FLOAT_COMPLEX": "c8",
    "DOUBLE_COMPLEX": "c16", "C_DOUBLE_COMPLEX": "c16",
    "AINT": "i8", "OFFSET": "i8", "COUNT": "i8",
    "INTEGER": "i4", "REAL": "f4", "DOUBLE_PRECISION": "f8", "LOGICAL": "i4", "CHARACTER": "u1",
    "REAL4": "f4", "REAL8": "f8", "INTEGER1": "i1", "INTEGER2": "i2", "INTEGER4": "i4",
    "INTEGER8": "i8", "COMPLEX8": "c8", "COMPLEX16": "c16",
}  # fmt: skip
DATATYPE_NULL = Datatype("DATATYPE_NULL", None)
DATATYPES = {name: Datatype(name, np.dtype(code)) for name, code in _NUMPY.items()}
"""Datatypes by MPI's name; types without a NumPy type of the same layout are missing."""
MISSING = ("LONG_DOUBLE", "C_LONG_DOUBLE_COMPLEX", "WCHAR", "FLOAT_INT", "DOUBLE_INT", "TWOINT",
           "LONG_INT", "SHORT_INT", "LONG_DOUBLE_INT", "PACKED")  # fmt: skip
"""MPI names that are ``DATATYPE_NULL`` here, as in an MPI without those types."""
# Several MPI names share a NumPy type; for each, one name is chosen to describe arrays.
_BY_NUMPY: dict[np.dtype[Any], Datatype] = {}
for _name in ("SIGNED_CHAR", "BYTE", "SHORT", "INT", "LONG", "UNSIGNED_SHORT", "UNSIGNED",
              "UNSIGNED_LONG", "FLOAT", "DOUBLE", "C_BOOL", "C_FLOAT_COMPLEX",
              "C_DOUBLE_COMPLEX"):  # fmt: skip
    _BY_NUMPY[np.dtype(_NUMPY[_name])] = DATATYPES[_name]


def from_numpy(dtype: np.dtype[Any]) -> Datatype | None:
    """The MPI type for a NumPy type; None if there is none."""
    return _BY_NUMPY.get(dtype)


def from_code(code: str) -> Datatype:
    """The type for a code of NumPy or of Python's ``array``.

    Raises
    ------
    KeyError
        There is no type for this code.
    """
    # NumPy reads "c" as text of one byte.
    if code == "c":
        return DATATYPES["CHAR"]
    try:
        found = _BY_NUMPY.get(np.dtype(code))
    except (TypeError, ValueError):
        found = None
    if found is None:
        raise KeyError(code)
    return found
