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

_BITS = {torch.bfloat16: torch.int16}
"""Types that NumPy has not, and one of the same size that it has."""
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
        if tensor.device.type != "cpu":
            raise BadInputError(
                f"Backend perseid sends tensors of the processor, not of {tensor.device}: use "
                "tensor.cpu(), or init_process_group('cpu:perseid,cuda:nccl')."
            )
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise BadInputError("Backend perseid sends dense tensors only: use tensor.to_dense().")


def bits(tensor: torch.Tensor) -> Array:
    """The elements of a contiguous tensor as a flat array that shares its memory; those of a type
    that NumPy has not as whole numbers."""
    flat = tensor.detach().view(-1)
    if tensor.dtype in _BITS:
        flat = flat.view(_BITS[tensor.dtype])
    array: Array = flat.resolve_conj().numpy()
    return array


def given(tensor: torch.Tensor) -> Array:
    """The elements of any tensor as a flat array, of a copy if need be."""
    return bits(tensor.detach().contiguous())


def filled(tensor: torch.Tensor, fill: Callable[[Array], None]) -> None:
    """Have the elements of any tensor filled in, through a copy if need be."""
    if tensor.is_contiguous():
        fill(bits(tensor))
        return
    copy = tensor.detach().contiguous()
    fill(bits(copy))
    tensor.detach().copy_(copy)


def numbers(tensor: torch.Tensor) -> Array:
    """The elements of any tensor as numbers that can be added, of a copy if need be."""
    if tensor.dtype in _BITS:
        array: Array = tensor.detach().to(torch.float32).contiguous().view(-1).numpy()
        return array
    return given(tensor)


def put_numbers(array: Array, tensor: torch.Tensor) -> None:
    """Numbers that are the elements of a tensor from now on."""
    if tensor.is_contiguous() and tensor.dtype not in _BITS:
        own = bits(tensor)
        if own.ctypes.data != array.ctypes.data:
            own[...] = array
        return
    found = torch.from_numpy(array.reshape(tuple(tensor.shape)))
    tensor.detach().copy_(found)


def reduction(op: Any) -> tuple[Op, bool]:
    """Our reduction of one of torch's, and whether the sum is divided by the number of ranks.

    Raises
    ------
    BadInputError
        There is none.
    """
    known = dist.ReduceOp
    # Compared, not looked up: torch's own is no key of a dictionary, and prints nothing.
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
            return ours, bool(op == known.AVG)
    raise BadInputError("Backend perseid reduces by SUM, AVG, PRODUCT, MIN, MAX, BAND, BOR, BXOR.")


def divide(array: Array, ranks: int) -> None:
    """Make a mean of a sum, in place; of whole numbers rounded to zero."""
    if array.dtype.kind in "iu":
        array[...] = np.trunc(array / ranks).astype(array.dtype)
    else:
        array /= array.dtype.type(ranks)
