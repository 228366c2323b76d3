"""MPI's reductions, implemented with ours."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from perseid.comm import MAX, MAXLOC, MIN, MINLOC, PROD, SUM
from perseid.comm import Op as OurOp
from perseid.comm.ops import Array
from perseid.compat.mpi import buffers
from perseid.compat.mpi.datatypes import Datatype, from_numpy
from perseid.compat.mpi.exceptions import UnsupportedError


class Op:
    """A reduction of objects and arrays, which can also be called with two values.

    Parameters
    ----------
    name
        MPI's name of the reduction; empty for a user-defined one.
    ours
        Our reduction; None for ``OP_NULL``.
    """

    def __init__(
        self, name: str, ours: OurOp | None, own: Callable[..., Any] | None = None
    ) -> None:
        self.name, self._ours, self._own = name, ours, own

    @classmethod
    def Create(cls, function: Callable[..., Any], commute: bool = False) -> Op:
        """Create a user-defined reduction.

        Parameters
        ----------
        function
            ``function(a, b, datatype)``. For two objects, the datatype is None and the function
            returns the result; for two buffers, it writes the result to the second.
        commute
            Whether the function is commutative.
        """

        # As in mpi4py, the datatype of an object is None.
        def combine(left: Any, right: Any) -> Any:
            return function(left, right, None)

        return cls("", OurOp.custom(combine, commutative=commute, associative=True), function)

    @property
    def is_predefined(self) -> bool:
        """Whether the reduction is predefined by MPI."""
        return self._own is None

    @property
    def is_commutative(self) -> bool:
        """Whether the reduction is commutative."""
        return self._ours is not None and self._ours.commutative

    def Is_predefined(self) -> bool:
        """Whether the reduction is predefined by MPI."""
        return self.is_predefined

    def Is_commutative(self) -> bool:
        """Whether the reduction is commutative."""
        return self.is_commutative

    def Free(self) -> None:
        """Release the reduction, which becomes ``OP_NULL``."""
        self.name, self._ours, self._own = "OP_NULL", None, None

    def Reduce_local(self, inbuf: Any, inoutbuf: Any) -> None:
        """Combine two buffers of this rank into the second."""
        left, right = buffers.simple(inbuf), buffers.simple(inoutbuf, writable=True)
        if left.size != right.size or left.dtype != right.dtype:
            raise ValueError(
                f"{left.size} of {left.dtype} cannot be combined with {right.size} of {right.dtype}"
            )
        self.for_arrays(right.dtype).arrays(left, right, right)

    def for_objects(self) -> OurOp:
        """Our reduction for objects."""
        if self._ours is None:
            raise UnsupportedError("MPI.OP_NULL is not a reduction: use one such as op=MPI.SUM.")
        return self._ours

    def for_arrays(self, dtype: np.dtype[Any]) -> OurOp:
        """Our reduction for arrays of a type."""
        ours, own = self.for_objects(), self._own
        if own is None:
            return ours
        datatype = from_numpy(dtype)

        def combine(left: Array, right: Array) -> Array:
            # MPI functions overwrite their second argument, and ours must not.
            result = right.copy()
            _call(own, left, result, datatype)
            return result

        return OurOp.custom(combine, commutative=ours.commutative, associative=True)

    def __call__(self, left: Any, right: Any) -> Any:
        if self._ours is None:
            raise ValueError("MPI.OP_NULL cannot be called")
        return self._ours.function(left, right)

    def __bool__(self) -> bool:
        return self._ours is not None

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Op) and self._ours is other._ours
        return same and self._own is getattr(other, "_own", None)

    def __hash__(self) -> int:
        # By identity, since functions cannot be compared.
        return hash(id(self._ours))

    def __repr__(self) -> str:
        return f"MPI.{self.name}" if self.name else "<MPI.Op of the program's own>"

    def __reduce__(self) -> Any:
        if self._own is not None:
            return Op.Create, (self._own, self.is_commutative)
        # By name, so that an unpickled reduction is the very same object.
        return _predefined, (self.name,)


def _call(own: Callable[..., Any], left: Array, result: Array, datatype: Datatype | None) -> None:
    # As mpi4py does, the function gets plain memory and the datatype.
    own(left.view(np.uint8).data, result.view(np.uint8).data, datatype)


def _either(left: Any, right: Any) -> bool:
    return bool(left) | bool(right)


def _both(left: Any, right: Any) -> bool:
    return bool(left) & bool(right)


def _one(left: Any, right: Any) -> bool:
    return bool(left) ^ bool(right)


def _first(left: Any, right: Any) -> Any:
    return left


def _last(left: Any, right: Any) -> Any:
    return right


def _tree(name: str, function: Callable[[Any, Any], Any], ufunc: np.ufunc | None = None,
          logical: bool = False) -> OurOp:  # fmt: skip
    return OurOp(name, function, True, True, ufunc, logical)


OPS = {
    name: Op(name, ours)
    for name, ours in {
        "OP_NULL": None,
        "MAX": MAX,
        "MIN": MIN,
        "SUM": SUM,
        "PROD": PROD,
        "LAND": _tree("and", _both, np.logical_and, True),
        "BAND": _tree("band", operator.and_, np.bitwise_and),
        "LOR": _tree("or", _either, np.logical_or, True),
        "BOR": _tree("bor", operator.or_, np.bitwise_or),
        "LXOR": _tree("lxor", _one, np.logical_xor, True),
        "BXOR": _tree("bxor", operator.xor, np.bitwise_xor),
        "MAXLOC": MAXLOC,
        "MINLOC": MINLOC,
        "REPLACE": OurOp.custom(_last, associative=True),
        # Not commutative: the result is that of a certain rank.
        "NO_OP": OurOp.custom(_first, associative=True),
    }.items()
}
"""Reductions by MPI's name."""


def _predefined(name: str) -> Op:
    return OPS[name]
