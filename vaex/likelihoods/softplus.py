"""log(1 + exp(x)) to full precision, on a CPU without log1p, which would take most of the time of a step."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class _Softplus(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        e = x.abs().neg_().exp_()
        u = e + 1
        # log(u) plus, to first order, the effect of the rounding error in u = 1 + e
        correction = e.sub_(u - 1).div_(u)
        return u.log_().add_(correction).add_(x.clamp(min=0))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], x: Tensor) -> tuple[Tensor, int]:
        return _Softplus.apply(x), in_dims[0]  # it treats every element alike

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradients[0] * torch.sigmoid(x)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), any shape, differentiable."""
    if x.is_cuda:
        return F.softplus(x, threshold=40)  # above this, x is exact to float64's last bit
    value: Tensor = _Softplus.apply(x)
    return value
