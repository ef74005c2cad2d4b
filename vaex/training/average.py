"""A moving average of the weights, which is evaluated and exported in place of the latest weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """average ← average + w · (weights - average) after each step, with w = max(1 - decay, 9 / (10 + steps)).

    The second term makes the average forget the first weights sooner, as in TensorFlow's ExponentialMovingAverage.

    Args:
        model: whose parameters are averaged. Buffers have their latest values.
        decay: in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.least = 1 - decay
        self.parameters = dict(model.named_parameters())
        self.values = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self, steps: Tensor) -> None:
        """Take in the weights after `steps` steps, [] on the device."""
        values, weights = list(self.values.values()), [p.detach() for p in self.parameters.values()]
        difference = torch._foreach_sub(weights, values)
        torch._foreach_mul_(difference, (9 / (10 + steps)).clamp(min=self.least))
        torch._foreach_add_(values, difference)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """A context in which the model has the average weights."""
        own = self._swap([self.values[name] for name in self.parameters])
        try:
            yield
        finally:
            self._swap(own)

    def _swap(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Make these tensors the weights of the model, without a copy, and return those it had."""
        own = [parameter.data for parameter in self.parameters.values()]
        for parameter, tensor in zip(self.parameters.values(), tensors, strict=True):
            parameter.data = tensor
        return own

    @torch.no_grad()
    def replace_weights(self) -> None:
        """Give the model the average weights for good."""
        torch._foreach_copy_(list(self.parameters.values()), list(self.values.values()))

    def load(self, values: dict[str, Tensor]) -> None:
        """Raises RuntimeError if the values belong to another model."""
        if values.keys() != self.values.keys():
            raise RuntimeError("the average has weights of other names")
        for name, value in values.items():
            self.values[name].copy_(value.detach())
