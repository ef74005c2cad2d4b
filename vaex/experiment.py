"""What a run trains: data, model, objective and optimizer, as `vaex.build` puts them together."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vaex.data.dataset import Dataset
from vaex.model import Autoencoder
from vaex.objectives import Objective


@dataclass(frozen=True)
class Experiment:
    """Everything a run is made of, the model and the objective on their device."""

    dataset: Dataset
    model: Autoencoder
    objective: Objective
    corruption: Callable[[Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    learning_rate: float
    schedule: Callable[[int], float]
    steps: int
    device: torch.device
