"""vaex: train autoencoders from composable configs, with numbers that can be compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

    The methods of the model raise ValueError for an input of another shape, type, device or range than it was trained
    with.
    """
    from vaex.build import load_config, load_model  # imports torch, which `import vaex` must not

    model = load_model(run_folder, device)
    channels, height, width = load_config(Path(run_folder))[1]["image_shape"]
    model.image_shape = (channels, height, width)
    return model
