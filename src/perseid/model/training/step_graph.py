"""The forward and backward pass of a training step as a CUDA graph.

A step of AstroMAE is some thousand small kernels, and starting them one by one takes a processor
longer than a GPU needs for a batch of 512. A graph starts all of them with one call.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

WARM_UPS = 3
"""Passes before the recording, in which libraries choose their kernels and take their memory."""

Inputs = tuple[Tensor | None, ...]
"""What a loss is computed from; tensors have the same shapes in every step."""


class StepGraph:
    """Records the gradients of a loss once; every call replays them with other inputs.

    Parameters
    ----------
    loss
        Computes the loss (a scalar) of inputs, without waiting for the GPU and without random
        numbers.
    inputs
        Inputs of the first step; only their shapes matter.
    model
        The model whose parameters get the gradients. Their ``grad`` must not be replaced between
        calls.
    """

    def __init__(self, loss: Callable[..., Tensor], inputs: Inputs, model: nn.Module) -> None:
        self._inputs = tuple(None if one is None else one.clone() for one in inputs)
        # The passes below update the statistics of the norms, as steps do.
        before = [(buffer, buffer.clone()) for buffer in model.buffers()]
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                model.zero_grad(set_to_none=True)
                loss(*self._inputs).backward()  # type: ignore[no-untyped-call]
        torch.cuda.current_stream().wait_stream(side)
        model.zero_grad(set_to_none=True)  # so that the recorded pass writes gradients, not adds
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._loss = loss(*self._inputs)
            self._loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)

    def __call__(self, inputs: Inputs) -> Tensor:
        """The loss of these inputs, whose gradients the parameters then have.

        The tensor is overwritten by the next call.
        """
        for own, given in zip(self._inputs, inputs, strict=True):
            if own is not None and given is not None:
                own.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._loss.detach()
