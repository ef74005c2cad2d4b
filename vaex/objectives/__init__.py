"""Objectives: what a model is trained to minimize."""

from vaex.objectives.base import Batch, Objective, Terms
from vaex.objectives.capacity import Capacity
from vaex.objectives.iwae import IWAE
from vaex.objectives.latents import DIP, MMD, TotalCorrelation
from vaex.objectives.rae import RAE
from vaex.objectives.target_rate import TargetRate
from vaex.objectives.vae import AE, VAE

__all__ = [
    "AE",
    "Capacity",
    "DIP",
    "IWAE",
    "MMD",
    "RAE",
    "VAE",
    "Batch",
    "Objective",
    "TargetRate",
    "Terms",
    "TotalCorrelation",
]
