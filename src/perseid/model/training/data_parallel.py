"""One training on several ranks: each computes its share of every batch, and gradients are
averaged.

The ranks are those of ``torch.distributed``'s default process group, whatever its backend. Every
rank draws the random numbers of the whole batch, and batch normalization uses the whole batch. So
the result equals that of one process with the same batch size, except for the order of sums.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from perseid.errors import BadInputError
from perseid.plaintext import counted, option


class DataParallel:
    """This process as one of the ranks that train together.

    Parameters
    ----------
    batch
        Rows per step, over all ranks.

    Raises
    ------
    BadInputError
        The ranks cannot share the batch equally.
    """

    def __init__(self, batch: int) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        if batch % self.size:
            raise BadInputError(
                f"a batch of {counted(batch, 'row')} cannot be shared equally by {self.size} "
                "ranks: give "
                f"{option('batch', max(1, round(batch / self.size)) * self.size)}"
            )
        self._statistics: Any = dist.new_group(list(range(self.size)))
        """A separate process group: its sums are interleaved with those of the gradients."""

    def share(self, rows: int) -> slice:
        """This rank's part of a batch."""
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def prepare(self, model: nn.Module) -> None:
        """Let the batch normalizations of a model use the whole batch."""
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    setattr(parent, name, _WholeBatchNorm(child, self._statistics))

    def wrap(self, model: nn.Module, loss: Callable[..., Tensor]) -> nn.Module:
        """A module that returns the loss and whose gradients are averaged over all ranks."""
        with warnings.catch_warnings():  # newer versions of torch renamed the last option
            warnings.simplefilter("ignore", FutureWarning)
            # Each phase leaves out some parameters. Buffers already agree on all ranks.
            return DistributedDataParallel(
                _Objective(model, loss), find_unused_parameters=True, broadcast_buffers=False
            )

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        found = torch.tensor([flag], dtype=torch.uint8)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return bool(found)

    def mean(self, value: float) -> float:
        """The mean over all ranks' values."""
        found = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(found)
        return float(found) / self.size

    def from_first(self, value: Any) -> Any:
        """The value of rank 0, on every rank."""
        told = [value]
        dist.broadcast_object_list(told, src=0)
        return told[0]

    def check_same(self, value: str, what: str) -> None:
        """Refuse to train if the ranks' values differ.

        Raises
        ------
        BadInputError
            The values differ.
        """
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        others = [rank for rank, one in enumerate(found) if one != found[0]]
        if others:
            raise BadInputError(f"{what} of ranks {others} differ from those of rank 0")


class _SumOfRanks(torch.autograd.Function):
    """The sum of all ranks' tensors, through which gradients are propagated."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        """Sum the tensors of all ranks."""
        ctx.group = group
        return _summed(tensor, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Sum the gradients: every rank's loss depends on every rank's tensor."""
        return _summed(gradient, ctx.group), None


def _summed(tensor: Tensor, group: Any) -> Tensor:
    total = tensor.detach().clone()
    dist.all_reduce(total, group=group)
    return total


class _Objective(nn.Module):
    """A model together with a loss that is computed with it."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, *arguments: Any) -> Tensor:
        """Compute the loss."""
        return self._loss(*arguments)


class _WholeBatchNorm(nn.BatchNorm2d):
    """Batch normalization over the rows of all ranks; every rank must have equally many."""

    def __init__(self, former: nn.BatchNorm2d, group: Any) -> None:
        super().__init__(former.num_features, former.eps, former.momentum)
        # The tensors are shared, so an optimizer or a state that refers to them stays valid.
        self._parameters, self._buffers = former._parameters, former._buffers
        self.training = former.training
        self._group = group

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (n, channels, height, width)."""
        if not self.training:
            return super().forward(x)
        own = x.mean(dim=(0, 2, 3)).double()
        spread = x.var(dim=(0, 2, 3), unbiased=False).double()
        ranks = dist.get_world_size(self._group)
        both = torch.stack((own, spread + own * own)) / ranks
        mean, square = _SumOfRanks.apply(both, self._group).unbind()  # type: ignore[no-untyped-call]
        variance = square - mean * mean
        self._note(mean, variance, ranks * x.numel() // x.shape[1])
        shape = (1, -1, 1, 1)
        scale = ((variance + self.eps).rsqrt() * self.weight).to(x.dtype).view(shape)
        # The mean is subtracted before scaling: if it is far from zero, the other order loses
        # digits.
        found: Tensor = (x - mean.to(x.dtype).view(shape)) * scale + self.bias.view(shape)
        return found

    @torch.no_grad()
    def _note(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Update the running statistics with a batch."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        unbiased = variance * count / max(count - 1, 1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
