"""Whether the step is compiled and whether it is captured: what `auto` means on a device, for a run of some length."""

import os
import shutil
from dataclasses import replace

import torch

from vaex.config.schema import TrainerConfig
from vaex.errors import UserError

# Steps from which compiling, which takes from ten seconds to a minute, is repaid (docs/benchmarks.md).
REPAID_AFTER = {"cpu": 20_000, "cuda": 100_000}


def resolved(trainer: TrainerConfig, device: torch.device, steps: int) -> TrainerConfig:
    """The same settings with `compile` and `capture` true or false; a function of its arguments and the machine alone.

    Raises:
        UserError: capture without a GPU, or compile without a compiler.
    """
    on_gpu = device.type == "cuda"
    if trainer.capture == "true" and not on_gpu:
        raise UserError(f"trainer.capture=true: a CUDA graph needs a GPU and this run is on {device}; set it to auto")
    compiler = os.environ.get("CXX", "g++")
    can_compile = on_gpu or shutil.which(compiler) is not None
    if trainer.compile == "true" and not can_compile:
        raise UserError(
            f"trainer.compile=true: PyTorch needs a C++ compiler and there is no {compiler}; set it to auto"
        )
    long = steps >= REPAID_AFTER[device.type]
    return replace(
        trainer,
        compile=trainer.compile if trainer.compile != "auto" else str(long and can_compile).lower(),
        capture=trainer.capture if trainer.capture != "auto" else str(on_gpu).lower(),
    )
