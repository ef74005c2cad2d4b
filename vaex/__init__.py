"""vaex: train autoencoders from composable configs, with numbers that can be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from vaex.model import Autoencoder

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(run_folder: str | Path, device: str = "cpu") -> Autoencoder:
    """Load the trained model of a run, in evaluation mode.

    Args:
        run_folder: the folder of a complete run, with config.yaml and model.safetensors.
        device: the device of the model: auto, cpu, cuda or cuda:N.

    Raises:
        vaex.errors.UserError: a file is missing or damaged, or the weights belong to another run.
    """
    from vaex.build import load_model  # imports torch, which `import vaex` must not

    return load_model(run_folder, device)
