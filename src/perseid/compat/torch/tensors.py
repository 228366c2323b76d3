"""Tensors as NumPy arrays, which share their memory if that is possible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from perseid.comm import MAX, MIN, PROD, SUM, Op
from perseid.comm.ops import Array
from perseid.errors import BadInputError

T = TypeVar("T")
_BITS = {
    torch.bfloat16: torch.int16,
    torch.complex32: torch.int32,
    torch.float8_e4m3fn: torch.uint8,
    torch.float8_e4m3fnuz: torch.uint8,
    torch.float8_e5m2: torch.uint8,
    torch.float8_e5m2fnuz: torch.uint8,
    torch.float8_e8m0fnu: torch.uint8,
}
"""For each type that NumPy lacks, a type of the same size that it has."""
_WIDER = dict.fromkeys(_BITS, torch.float32) | {torch.complex32: torch.complex64}
"""The type in which numbers of these types are reduced."""
_BAND = Op("band", np.bitwise_and, True, True, np.bitwise_and)
_BOR = Op("bor", np.bitwise_or, True, True, np.bitwise_or)
_BXOR = Op("bxor", np.bitwise_xor, True, True, np.bitwise_xor)

_kinds: Any = dist.ReduceOp.RedOpType
_REDUCTIONS = {
    _kinds.SUM: (SUM, False),
    _kinds.AVG: (SUM, True),
    _kinds.PRODUCT: (PROD, False),
    _kinds.MIN: (MIN, False),
    _kinds.MAX: (MAX, False),
    _kinds.BAND: (_BAND, False),
    _kinds.BOR: (_BOR, False),
    _kinds.BXOR: (_BXOR, False),
}
"""For each kind of torch's reductions: ours, and whether to divide the sum by the number of ranks.
"""


def check(tensors: Sequence[torch.Tensor]) -> None:
    """Refuse tensors that cannot be sent.

    Raises
    ------
    BadInputError
        A tensor is not in CPU memory, or is sparse or quantized.
    """
    for tensor in tensors:
        if not tensor.is_cpu:
            raise BadInputError(
                f"Backend perseid sends tensors of the processor, not of {tensor.device}: use "
                "tensor.cpu(), or init_process_group('cpu:perseid,cuda:nccl')."
            )
        # Other layouts have no plain memory to send.
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise BadInputError("Backend perseid sends dense tensors only: use tensor.to_dense().")


def in_place(tensor: torch.Tensor) -> bool:
    """Whether a tensor's memory holds its elements contiguously and unmodified."""
    return tensor.is_contiguous() and not (tensor.is_conj() or tensor.is_neg())


def copied(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with the same elements for which `in_place` holds, copied if necessary."""
    return tensor.detach().resolve_conj().resolve_neg().contiguous()


def bits(tensor: torch.Tensor) -> Array:
    """The elements of a tensor that is `in_place`, as a flat array that shares its memory; types
    that NumPy lacks appear as integers."""
    other = _BITS.get(tensor.dtype)
    # Every call into torch slows down a small collective, so no needless view is made.
    flat = tensor.detach() if tensor.requires_grad else tensor
    if other is not None:
        # The same bits under another type: nothing is converted on the way.
        flat = flat.view(-1).view(other)
    array: Array = flat.numpy()
    return array if array.ndim == 1 else array.reshape(-1)


def given(tensor: torch.Tensor) -> Array:
    """The elements of any tensor as a flat array, copied if necessary."""
    return bits(tensor if in_place(tensor) else copied(tensor))


def filled(tensor: torch.Tensor, fill: Callable[[Array], None]) -> None:
    """Fill the elements of any tensor, through a copy if necessary."""
    if in_place(tensor):
        fill(bits(tensor))
        return
    copy = copied(tensor)
    fill(bits(copy))
    tensor.detach().copy_(copy)


def numbers(tensor: torch.Tensor) -> Array:
    """The elements of any tensor as numbers that can be added, copied if necessary."""
    if tensor.dtype in _BITS:
        array: Array = tensor.detach().to(_WIDER[tensor.dtype]).contiguous().view(-1).numpy()
        return array
    return given(tensor)


def shares_numbers(tensor: torch.Tensor) -> bool:
    """Whether the array from `numbers` shares the memory of the tensor."""
    return tensor.dtype not in _BITS and in_place(tensor)


def put_numbers(array: Array, tensor: torch.Tensor) -> None:
    """Copy numbers into a tensor of any type and layout."""
    # copy_ converts to the type of the tensor and follows its strides.
    found = torch.from_numpy(array.reshape(tuple(tensor.shape)))
    tensor.detach().copy_(found)


def reduction(op: Any, tensors: Sequence[torch.Tensor]) -> tuple[Op, bool]:
    """Our reduction for one of torch's, and whether to divide the sum by the number of ranks.

    Raises
    ------
    BadInputError
        There is no such reduction, or none for tensors of this type.
    """
    # torch gives an object with the kind of reduction, or the kind itself.
    found = _REDUCTIONS.get(getattr(op, "op", op))
    if found is not None:
        _check_reducible(found[0], tensors, found[1])
        return found
    raise BadInputError("Backend perseid reduces by SUM, AVG, PRODUCT, MIN, MAX, BAND, BOR, BXOR.")


def _check_reducible(op: Op, tensors: Sequence[torch.Tensor], mean: bool) -> None:
    bitwise = op is _BAND or op is _BOR or op is _BXOR
    if not (bitwise or mean):
        return
    for dtype in {tensor.dtype for tensor in tensors}:
        if bitwise and (dtype.is_floating_point or dtype.is_complex):
            raise BadInputError(f"BAND, BOR and BXOR are of whole numbers, not of {dtype}.")
        # A mean of truth values would be rounded to one of them.
        if mean and dtype == torch.bool:
            raise BadInputError("There is no average of tensors of bool: use SUM, MIN or MAX.")


def quiet(call: Callable[[T], None]) -> Callable[[T], None]:
    """Decorate a call that computes: torch does not warn of overflows either."""

    def quietly(argument: T) -> None:
        with np.errstate(all="ignore"):
            call(argument)

    return quietly


def divide(array: Array, ranks: int) -> None:
    """Divide a sum by the number of ranks, in place; integers are rounded toward zero."""
    if array.dtype.kind in "iu":
        # As torch does; floor division would round toward minus infinity.
        array[...] = np.trunc(array / ranks).astype(array.dtype)
    else:
        array /= array.dtype.type(ranks)


def counts(tensor: torch.Tensor, splits: Sequence[int], ranks: int) -> list[int]:
    """Number of elements of each part of a tensor that is split along its first dimension."""
    rows = tensor.shape[0] if tensor.dim() else 1
    if not splits and rows % ranks:
        raise BadInputError(
            f"A tensor of {rows} rows cannot be cut into {ranks} equal parts: give the sizes of "
            "the parts."
        )
    if not splits:
        return [tensor.numel() // ranks] * ranks
    splits = list(splits)
    if sum(splits) != rows or len(splits) != ranks:
        raise BadInputError(f"Parts of {splits} rows for {ranks} ranks do not make {rows} rows.")
    # Without rows there are no elements, and no division by zero.
    return [split * (tensor.numel() // rows) if rows else 0 for split in splits]


def put(came: Sequence[Array], tensors: Sequence[torch.Tensor]) -> None:
    """Copy the arrays from the ranks to their tensors.

    Raises
    ------
    BadInputError
        An array and its tensor differ in their number of elements.
    """
    for array, tensor in zip(came, tensors, strict=True):
        if array.size != tensor.numel():
            raise BadInputError(
                f"{array.size} elements came for a tensor of {tensor.numel()}: the sizes of the "
                "parts must agree on all ranks."
            )

        def fill(into: Array, array: Array = array) -> None:
            into[...] = array

        filled(tensor, fill)


def spread(array: Array, tensors: Sequence[torch.Tensor]) -> None:
    """Copy consecutive parts of an array to tensors."""
    ends = np.cumsum([tensor.numel() for tensor in tensors])[:-1]
    put(np.split(array, ends), tensors)
