"""Tensors as arrays of NumPy that share their memory, as far as that can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from perseid.comm import MAX, MIN, PROD, SUM, Op
from perseid.comm.ops import Array
from perseid.errors import BadInputError

_BITS = {
    torch.bfloat16: torch.int16,
    torch.complex32: torch.int32,
    torch.float8_e4m3fn: torch.uint8,
    torch.float8_e4m3fnuz: torch.uint8,
    torch.float8_e5m2: torch.uint8,
    torch.float8_e5m2fnuz: torch.uint8,
    torch.float8_e8m0fnu: torch.uint8,
}
"""Types that NumPy does not have, and one of the same size that it has."""
_WIDER = dict.fromkeys(_BITS, torch.float32) | {torch.complex32: torch.complex64}
"""The type in which numbers of those types are reduced."""
_BAND = Op("band", np.bitwise_and, True, True, np.bitwise_and)
_BOR = Op("bor", np.bitwise_or, True, True, np.bitwise_or)
_BXOR = Op("bxor", np.bitwise_xor, True, True, np.bitwise_xor)


def check(tensors: Sequence[torch.Tensor]) -> None:
    """Refuse tensors that cannot be sent.

    Raises
    ------
    BadInputError
        One is not in the memory of the processor, or is sparse or quantized.
    """
    for tensor in tensors:
        if not tensor.is_cpu:
            raise BadInputError(
                f"Backend perseid sends tensors of the processor, not of {tensor.device}: use "
                "tensor.cpu(), or init_process_group('cpu:perseid,cuda:nccl')."
            )
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise BadInputError("Backend perseid sends dense tensors only: use tensor.to_dense().")


def in_place(tensor: torch.Tensor) -> bool:
    """Whether the memory of a tensor holds its elements as they are, one behind the other."""
    return tensor.is_contiguous() and not (tensor.is_conj() or tensor.is_neg())


def copied(tensor: torch.Tensor) -> torch.Tensor:
    """A copy whose memory holds the elements as they are."""
    return tensor.detach().resolve_conj().resolve_neg().contiguous()


def bits(tensor: torch.Tensor) -> Array:
    """The elements of a tensor that is ``in_place`` as a flat array that shares its memory; those
    of a type that NumPy does not have as whole numbers."""
    flat = tensor.detach()
    if tensor.dtype in _BITS:
        flat = flat.view(-1).view(_BITS[tensor.dtype])
    array: Array = flat.numpy().reshape(-1)
    return array


def given(tensor: torch.Tensor) -> Array:
    """The elements of any tensor as a flat array, of a copy if need be."""
    return bits(tensor if in_place(tensor) else copied(tensor))


def filled(tensor: torch.Tensor, fill: Callable[[Array], None]) -> None:
    """Have the elements of any tensor filled in, through a copy if need be."""
    if in_place(tensor):
        fill(bits(tensor))
        return
    copy = copied(tensor)
    fill(bits(copy))
    tensor.detach().copy_(copy)


def numbers(tensor: torch.Tensor) -> Array:
    """The elements of any tensor as numbers that can be added, of a copy if need be."""
    if tensor.dtype in _BITS:
        array: Array = tensor.detach().to(_WIDER[tensor.dtype]).contiguous().view(-1).numpy()
        return array
    return given(tensor)


def shares_numbers(tensor: torch.Tensor) -> bool:
    """Whether what ``numbers`` gives is the memory of the tensor itself."""
    return tensor.dtype not in _BITS and in_place(tensor)


def put_numbers(array: Array, tensor: torch.Tensor) -> None:
    """Copy numbers into a tensor of any type and layout."""
    found = torch.from_numpy(array.reshape(tuple(tensor.shape)))
    tensor.detach().copy_(found)


def reduction(op: Any, tensors: Sequence[torch.Tensor]) -> tuple[Op, bool]:
    """Our reduction of one of torch's, and whether the sum is divided by the number of ranks.

    Raises
    ------
    BadInputError
        There is none, or none of tensors of this type.
    """
    known = dist.ReduceOp
    # Compared, not looked up: torch's own is not a key of a dictionary, and prints nothing.
    for theirs, ours in (
        (known.SUM, SUM),
        (known.AVG, SUM),
        (known.PRODUCT, PROD),
        (known.MIN, MIN),
        (known.MAX, MAX),
        (known.BAND, _BAND),
        (known.BOR, _BOR),
        (known.BXOR, _BXOR),
    ):
        if op == theirs:
            _check_reducible(ours, tensors, mean=bool(op == known.AVG))
            return ours, bool(op == known.AVG)
    raise BadInputError("Backend perseid reduces by SUM, AVG, PRODUCT, MIN, MAX, BAND, BOR, BXOR.")


def _check_reducible(op: Op, tensors: Sequence[torch.Tensor], mean: bool) -> None:
    bitwise = op in (_BAND, _BOR, _BXOR)
    for dtype in {tensor.dtype for tensor in tensors}:
        if bitwise and (dtype.is_floating_point or dtype.is_complex):
            raise BadInputError(f"BAND, BOR and BXOR are of whole numbers, not of {dtype}.")
        if mean and dtype == torch.bool:
            raise BadInputError("There is no average of tensors of bool: use SUM, MIN or MAX.")


def divide(array: Array, ranks: int) -> None:
    """Make a mean of a sum, in place; of whole numbers rounded to zero."""
    if array.dtype.kind in "iu":
        array[...] = np.trunc(array / ranks).astype(array.dtype)
    else:
        array /= array.dtype.type(ranks)


def counts(tensor: torch.Tensor, splits: Sequence[int], ranks: int) -> list[int]:
    """Elements of the parts of a tensor that is cut along its first dimension."""
    rows = tensor.shape[0] if tensor.dim() else 1
    if not splits and rows % ranks:
        raise BadInputError(
            f"A tensor of {rows} rows cannot be cut into {ranks} equal parts: give the sizes of "
            "the parts."
        )
    splits = list(splits) or [rows // ranks] * ranks
    if sum(splits) != rows or len(splits) != ranks:
        raise BadInputError(f"Parts of {splits} rows for {ranks} ranks do not make {rows} rows.")
    return [split * (tensor.numel() // rows) if rows else 0 for split in splits]


def put(came: Sequence[Array], tensors: Sequence[torch.Tensor]) -> None:
    """Arrays that came from the ranks, each into its tensor.

    Raises
    ------
    BadInputError
        One has another number of elements than its tensor.
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
    """Consecutive parts of an array into tensors."""
    ends = np.cumsum([tensor.numel() for tensor in tensors])[:-1]
    put(np.split(array, ends), tensors)
