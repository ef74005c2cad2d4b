"""The optimizer's update, for gradients that are passed in."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Gradients = Sequence[Tensor | None]  # of each parameter; None where the loss does not depend on it


class Update:
    """`optimizer.step()`; for a fused Adam or AdamW, its one kernel without the Python code around it.

    That code costs 6 to 12 % of a step of a small MLP on a CPU. The arithmetic and the state are those of the
    optimizer, which takes the first step itself and so creates the state.

    Attributes:
        parameters: all parameters, in the order of the optimizer's groups.
        fused: whether the optimizer can skip an update without the host reading a value.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.parameters: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        self.fused = all(group.get("fused") for group in optimizer.param_groups)
        self._kernels: list[Callable[[Gradients, Tensor], None]] = []

    @torch.no_grad()
    def __call__(self, gradients: Gradients, skip: Tensor) -> None:
        """Update the parameters, unless `skip` [] is 1. A parameter without a gradient stays as it is."""
        if not self.fused and skip.item():
            return
        for kernel in self._kernels:
            kernel(gradients, skip)
        if self._kernels:
            return
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.fused:
            self.optimizer.found_inf = skip  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad()  # frees memory that the next gradient reuses while it is in the cache
        groups = self.optimizer.param_groups
        unusual = any(group.get(name) for group in groups for name in ("amsgrad", "maximize", "differentiable"))
        if self.fused and not unusual and type(self.optimizer) in (torch.optim.Adam, torch.optim.AdamW):
            first = 0
            for group in groups:
                places = range(first, first + len(group["params"]))
                first = places.stop
                if trained := [place for place in places if gradients[place] is not None]:
                    self._kernels.append(self._kernel(group, trained))

    def _kernel(self, group: dict[str, Any], places: list[int]) -> Callable[[Sequence[Any], Tensor], None]:
        """The fused kernel for the parameters of a group at these places, as torch.optim.adam calls it."""
        parameters = [self.parameters[place] for place in places]
        states = [self.optimizer.state[p] for p in parameters]
        means, squares, steps = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step"))
        decoupled = isinstance(self.optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay", False)
        fused = torch._fused_adamw_ if decoupled else torch._fused_adam_
        beta1, beta2 = group["betas"]
        fixed = {"beta1": beta1, "beta2": beta2, "weight_decay": group["weight_decay"], "eps": group["eps"]}
        fixed |= {"amsgrad": False, "maximize": False, "grad_scale": None}

        def update(gradients: Sequence[Any], skip: Tensor) -> None:
            trained = [gradients[place] for place in places]
            torch._foreach_add_(steps, 1)
            fused(parameters, trained, means, squares, [], steps, lr=group["lr"], found_inf=skip, **fixed)
            torch._foreach_sub_(steps, [skip] * len(steps))

        return update
