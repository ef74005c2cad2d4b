"""The optimizer's update, for gradients that are passed in."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Kernel = Callable[[list[Tensor], Tensor], None]


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
        self._kernels: list[Kernel] = []

    def __call__(self, gradients: Sequence[Tensor | None], skip: Tensor) -> None:
        """Update the parameters, unless `skip` [] is 1. A parameter without a gradient stays as it is."""
        if not self.fused and skip.item():
            return
        gradients = [
            None if gradient is None else in_layout_of(parameter, gradient)
            for parameter, gradient in zip(self.parameters, gradients, strict=True)
        ]
        if self._kernels:
            present = [gradient for gradient in gradients if gradient is not None]
            with torch.no_grad():
                for kernel in self._kernels:
                    kernel(present, skip)
            return
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.fused:
            self.optimizer.found_inf = skip  # type: ignore[attr-defined]
        self.optimizer.step()
        # This frees memory that the next gradient reuses while it is in the cache.
        self.optimizer.zero_grad(set_to_none=True)
        if type(self.optimizer) in (torch.optim.Adam, torch.optim.AdamW):
            self._kernels = self._fused_adam([gradient is not None for gradient in gradients])

    def _fused_adam(self, has_gradient: list[bool]) -> list[Kernel]:
        """One kernel for each group; no kernels if the settings need more than the arithmetic of plain Adam."""
        kernels = []
        first = 0
        position = iter(range(len(has_gradient)))
        for group in self.optimizer.param_groups:
            if not group["fused"] or group["amsgrad"] or group["maximize"] or group["differentiable"]:
                return []
            parameters = [p for p in group["params"] if has_gradient[next(position)]]
            if parameters:
                kernels.append(_kernel(self.optimizer, group, parameters, slice(first, first + len(parameters))))
            first += len(parameters)
        return kernels


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all elements of the tensors, [], in few kernels on a GPU and one pass on a CPU."""
    if tensors[0].is_cuda:
        total: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))
        return total
    # On a CPU, _foreach_norm adds up one element after the other: for nine million of them it is wrong by 3e-4. A dot
    # product of a million elements is wrong by 1e-6 to 4e-6, depending on the CPU, and one of 65,536 by less.
    blocks = [block for tensor in tensors for block in torch.split(tensor.flatten(), 2**16)]
    return torch.stack([torch.dot(block, block) for block in blocks]).sum().sqrt()


def in_layout_of(parameter: Tensor, gradient: Tensor) -> Tensor:
    """The gradient with the strides of its parameter; a copy only if they differ.

    Fused kernels go through both in the order of memory. A backend may return the gradient of a channels-last
    convolution in the default layout.
    """
    strides = zip(parameter.shape, parameter.stride(), gradient.stride(), strict=True)
    if all(size == 1 or ours == theirs for size, ours, theirs in strides):
        return gradient
    return torch.empty_like(parameter, requires_grad=False).copy_(gradient)


def cut(tensors: Sequence[Tensor], size: int) -> list[Tensor]:
    """Views of the elements of dense tensors in the order of memory, [n] each with n <= size."""
    starts = ((tensor, range(0, tensor.numel(), size)) for tensor in tensors)
    return [t.as_strided((min(size, t.numel() - n),), (1,), t.storage_offset() + n) for t, ns in starts for n in ns]


def piece_size(tensors: Sequence[Tensor]) -> int | None:
    """The size of the pieces into which to cut these tensors for the fused kernel of a GPU; None to leave them whole.

    One launch takes 36 tensors. A block of threads goes through 65,536 elements of a tensor, 2,048 at a time, so that
    the update of a small model takes as long as that of a much larger one, with most of the GPU idle. On an H100, the
    time of a launch is proportional to the elements of its largest block plus 2,048.
    """
    if not tensors[0].is_cuda:
        return None
    sizes = [tensor.numel() for tensor in tensors]

    def cost(count: int, block: int) -> int:
        return math.ceil(count / 36) * (block + 2048)

    costs: dict[int | None, int] = {None: cost(len(sizes), min(65536, max(sizes)))}
    for size in range(2048, 65536, 2048):
        count = sum(math.ceil(n / size) for n in sizes)
        if count <= 4 * 36:  # more launches take longer than this estimate
            costs[size] = cost(count, size)
    return min(costs, key=lambda size: costs[size])


def _have_one_layout(*tensors: Tensor) -> bool:
    """Whether their elements are in the same order in memory, without gaps."""
    first = tensors[0]
    dense = first.is_contiguous() or (first.ndim == 4 and first.is_contiguous(memory_format=torch.channels_last))
    return dense and all(tensor.stride() == first.stride() for tensor in tensors)


def _kernel(optimizer: torch.optim.Optimizer, group: dict[str, Any], parameters: list[Tensor], part: slice) -> Kernel:
    states = [optimizer.state[p] for p in parameters]
    means = [state["exp_avg"] for state in states]
    squares = [state["exp_avg_sq"] for state in states]
    steps = [state["step"] for state in states]
    size = piece_size(parameters) if all(map(_have_one_layout, parameters, means, squares)) else None
    step_of_piece = steps
    if size:
        step_of_piece = [step for step, p in zip(steps, parameters, strict=True) for _ in cut([p], size)]
        parameters, means, squares = (
            cut(tensors, size) for tensors in ([p.detach() for p in parameters], means, squares)
        )
    decoupled = isinstance(optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay", False)
    fused = torch._fused_adamw_ if decoupled else torch._fused_adam_
    beta1, beta2 = group["betas"]
    weight_decay, eps = group["weight_decay"], group["eps"]

    def update(gradients: list[Tensor], skip: Tensor) -> None:
        torch._foreach_add_(steps, 1)
        fused(
            parameters,
            cut(gradients[part], size) if size else gradients[part],
            means,
            squares,
            [],
            step_of_piece,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=weight_decay,
            eps=eps,
            amsgrad=False,
            maximize=False,
            grad_scale=None,
            found_inf=skip,
        )
        torch._foreach_sub_(steps, [skip] * len(steps))

    return update
