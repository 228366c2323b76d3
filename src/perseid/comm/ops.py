"""Reductions: sum, prod, max, min, and, or, minloc, maxloc, and user-defined functions."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Number
from typing import Any

import numpy as np

from perseid.comm.arguments import short_repr, shown
from perseid.comm.frames import CUSTOM, reduction_code
from perseid.errors import BadInputError

Array = np.ndarray[Any, np.dtype[Any]]
"""An array of any shape and type."""
Combine = Callable[[Any, Any], Any]


@dataclass(frozen=True, slots=True)
class Op:
    """A reduction: how two values are combined into one.

    An operation that is commutative and associative may be evaluated as a tree (always the same
    tree, in rank order); any other is evaluated strictly as ``f(f(f(x0, x1), x2), x3)``.
    """

    name: str
    function: Combine
    """Function that combines two objects."""
    commutative: bool = False
    associative: bool = False
    ufunc: np.ufunc | None = None
    """NumPy function that combines arrays in place; None: ``function`` is called with whole
    arrays."""
    tree: bool = field(init=False)
    """Whether it may be evaluated as a tree: it is commutative and associative."""
    logical: bool = False
    """Whether values count only as true or false."""
    pairs: bool = False
    """Whether values are pairs, of a value and the place where it is."""
    converts: bool = field(init=False)
    """Whether `operand` does anything."""
    code: int = field(init=False)
    """Its number in a signature; all user-defined functions share one."""

    def __post_init__(self) -> None:
        # Computed once, since every reduction asks for both; the class is frozen otherwise.
        object.__setattr__(self, "tree", self.commutative and self.associative)
        object.__setattr__(self, "converts", self.logical or self.pairs)
        code = CUSTOM if self.name == "custom" else reduction_code(self.name)
        object.__setattr__(self, "code", code)

    @classmethod
    def custom(
        cls, function: Combine, *, commutative: bool = False, associative: bool = False
    ) -> Op:
        """A reduction by a user-defined function, which must give the same result on every rank."""
        return cls("custom", function, commutative, associative)

    def operand(self, value: Any) -> Any:
        """A rank's value as an operand, checked as far as a single rank can, so that it gets the
        same kind of result, or the same refusal, as several ranks.

        Raises
        ------
        BadInputError
            The operation combines pairs, and the value is none.
        """
        if self.pairs and not _is_pair(value):
            raise BadInputError(f"{self.name} combines (value, place) pairs, not {shown(value)}")
        if not self.logical:
            return value
        if isinstance(value, np.ndarray):
            # Back in the type of the array, since the result is written to memory of that type.
            return np.logical_and(value, value, dtype=bool).astype(value.dtype)
        return bool(value)

    def arrays(self, left: np.ndarray, right: np.ndarray, out: np.ndarray) -> None:
        """Combine two arrays into ``out``, which may be one of them.

        Raises
        ------
        BadInputError
            The function returned an array of another shape, or of a type that ``out`` cannot hold.
        """
        if self.ufunc is not None:
            # "unsafe", since a logical function gives bool, which belongs into an array of the
            # operands' type.
            self.ufunc(left, right, out=out, casting="unsafe")
            return
        result = np.asarray(self.function(left, right))
        if result.shape != out.shape or not np.can_cast(result.dtype, out.dtype, "same_kind"):
            raise BadInputError(
                f"the reduction's function made shape {result.shape} of {result.dtype} of two "
                f"arrays of shape {out.shape} of {out.dtype}; it must keep the shape and the type"
            )
        out[...] = result


def _is_pair(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return bool(value.shape[:1] == (2,))
    return isinstance(value, Sequence) and len(value) == 2


def _is_nan(value: Any) -> bool:
    return isinstance(value, Number) and value != value


def _maximum(left: Any, right: Any) -> Any:
    """The greater value, or NaN if one of them is NaN, as in NumPy: any other rule would make the
    result depend on the order."""
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return np.maximum(left, right)
    if _is_nan(left) or _is_nan(right):
        return left if _is_nan(left) else right
    return right if right > left else left


def _minimum(left: Any, right: Any) -> Any:
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return np.minimum(left, right)
    if _is_nan(left) or _is_nan(right):
        return left if _is_nan(left) else right
    return right if right < left else left


def _both(left: Any, right: Any) -> Any:
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return np.logical_and(left, right).astype(np.result_type(left, right))
    return bool(left) and bool(right)


def _either(left: Any, right: Any) -> Any:
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return np.logical_or(left, right).astype(np.result_type(left, right))
    return bool(left) or bool(right)


def _maxloc(left: Any, right: Any) -> Any:
    if _is_nan(left[0]) or _is_nan(right[0]):
        return _nan_place(left, right)
    # The place decides between equal values, so that the order of evaluation does not matter.
    if left[0] == right[0]:
        return left if left[1] <= right[1] else right
    return right if right[0] > left[0] else left


def _nan_place(left: Any, right: Any) -> Any:
    """The pair whose value is NaN; of two such pairs, the one with the lower place."""
    if _is_nan(left[0]) and _is_nan(right[0]):
        return left if left[1] <= right[1] else right
    return left if _is_nan(left[0]) else right


def _minloc(left: Any, right: Any) -> Any:
    if _is_nan(left[0]) or _is_nan(right[0]):
        return _nan_place(left, right)
    if left[0] == right[0]:
        return left if left[1] <= right[1] else right
    return right if right[0] < left[0] else left


SUM = Op("sum", operator.add, True, True, np.add)
PROD = Op("prod", operator.mul, True, True, np.multiply)
MAX = Op("max", _maximum, True, True, np.maximum)
MIN = Op("min", _minimum, True, True, np.minimum)
AND = Op("and", _both, True, True, np.logical_and, logical=True)
OR = Op("or", _either, True, True, np.logical_or, logical=True)
MINLOC = Op("minloc", _minloc, True, True, pairs=True)
"""The ``(value, place)`` pair with the least value; of equal values, the lowest place. Only for
objects."""
MAXLOC = Op("maxloc", _maxloc, True, True, pairs=True)
"""The ``(value, place)`` pair with the greatest value; of equal values, the lowest place. Only for
objects."""

_BY_NAME = {op.name: op for op in (SUM, PROD, MAX, MIN, AND, OR, MINLOC, MAXLOC)}


def as_op(op: Op | str | Combine) -> Op:
    """The operation with a name, or one from any function of two values (strictly in rank order).

    Raises
    ------
    BadInputError
        It is neither a known name nor a function.
    """
    if isinstance(op, Op):
        return op
    if isinstance(op, str) and op in _BY_NAME:
        return _BY_NAME[op]
    if callable(op):
        return Op.custom(op)
    raise BadInputError(
        f"{short_repr(op)} is not a reduction; use one of {', '.join(_BY_NAME)}, or a function"
    )
