"""log Φ(x), Φ the standard normal distribution function, with a derivative that is precise in the lower tail, too."""

import math
from typing import Any

import torch
from torch import Tensor


class _LogNdtr(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        value: Tensor = torch.special.log_ndtr(x)
        return value

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], x: Tensor) -> tuple[Tensor, int]:
        return _LogNdtr.apply(x), in_dims[0]  # it treats every element alike

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        x, value = ctx.saved_tensors
        # φ(x)/Φ(x). The exponent is a difference of two numbers of size x²/2, so that far out an expansion is better.
        ratio = torch.exp(-0.5 * x.square() - value) / math.sqrt(2 * math.pi)
        return gradients[0] * torch.where(x < -1000, -x - 1 / x, ratio)


def log_ndtr(x: Tensor) -> Tensor:
    """log Φ(x) of float64 numbers, any shape, differentiable once."""
    value: Tensor = _LogNdtr.apply(x)
    return value
