"""The data, model, objective and optimizer of a run, which `vaex.build` creates."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vaex.data.dataset import Dataset
from vaex.model import Autoencoder
from vaex.objectives import Objective


@dataclass(frozen=True)
class Experiment:
    """Everything that training needs, with the model and the objective on their device.

    Attributes:
        corruption: maps x to the encoder's input; the identity unless the run has a corruption.
        learning_rates: of each parameter group of the optimizer, before the schedule; the networks' is the first.
        schedule: 0-based step -> factor on the learning rate.
        steps: optimizer steps of the whole run.
    """

    dataset: Dataset
    model: Autoencoder
    objective: Objective
    corruption: Callable[[Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    learning_rates: tuple[float, ...]
    schedule: Callable[[int], float]
    steps: int
    device: torch.device

    @property
    def parameters(self) -> int:
        """Number of parameters of the model."""
        return sum(parameter.numel() for parameter in self.model.parameters())
