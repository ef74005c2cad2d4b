"""Two ways to run a training step faster, without changing its code: torch.compile, and capture as a CUDA graph."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from vaex.config.schema import TrainerConfig
from vaex.errors import UserError, first_line
from vaex.training.memory import ran_out
from vaex.training.stacked import StackedStep
from vaex.training.step import TrainingStep

# Steps of a run from which compiling, which takes ten seconds to a minute, saves time (docs/benchmarks.md).
WORTH_COMPILING = {"cpu": 20_000, "cuda": 100_000}


def resolve_auto(trainer: TrainerConfig, device: torch.device, steps: int) -> TrainerConfig:
    """The same settings with `compile` and `capture` "true" or "false" where they were "auto".

    The result depends only on the arguments and the machine.

    Raises:
        UserError: the trainer must capture and there is no GPU, or must compile and there is no compiler.
    """
    on_gpu = device.type == "cuda"
    if trainer.capture == "true" and not on_gpu:
        raise UserError(f"trainer.capture=true: a CUDA graph needs a GPU and this run is on {device}; set it to auto")
    # TorchInductor writes C++ for a CPU; for a GPU it uses Triton, which compiles the launcher of every kernel.
    variable, language, usual = ("CC", "C", ("gcc", "clang")) if on_gpu else ("CXX", "C++", ("g++",))
    compilers = [os.environ[variable]] if os.environ.get(variable) else list(usual)
    can_compile = any(shutil.which(compiler) for compiler in compilers)
    if trainer.compile == "true" and not can_compile:
        raise UserError(
            f"trainer.compile=true: PyTorch needs a {language} compiler and there is no {' or '.join(compilers)}; "
            "set it to auto"
        )
    long = steps >= WORTH_COMPILING[device.type]
    if trainer.compile == "auto":
        trainer = replace(trainer, compile=str(long and can_compile).lower())
    return replace(trainer, capture=str(on_gpu).lower()) if trainer.capture == "auto" else trainer


def compile_step(step: TrainingStep) -> None:
    """Compile everything before the update, or before the exchange between processes. The noise stays the same."""
    torch._dynamo.config.trace_autograd_ops = True  # otherwise the graph ends at autograd.grad
    compiled = partial(torch.compile, fullgraph=True, dynamic=False, options={"fallback_random": True})
    if step.processes.size == 1:
        step.forward_backward = compiled(step.forward_backward)
    else:
        step.local_gradients = compiled(step.local_gradients)


def compile_stacked(step: StackedStep) -> None:
    """Compile everything of a step of several runs but the noise and the update."""
    torch._dynamo.config.trace_autograd_ops = True
    step.forward_backward = torch.compile(step.forward_backward, fullgraph=True, dynamic=False)


class CapturedStep:
    """A TrainingStep or StackedStep on a GPU that is launched as one CUDA graph.

    The first steps run without a graph, which warms up every library. Recording the graph executes nothing, so weights,
    optimizer state and random numbers are those of steps without a graph.

    Args:
        index_shape: of the rows that a step takes.
        generators: from which the step draws noise, beside the default one.
    """

    WARMUP = 3

    def __init__(
        self,
        step: TrainingStep | StackedStep,
        index_shape: Sequence[int],
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        self.step = step
        device = step.images.pixels.device
        self.index = torch.zeros(*index_shape, dtype=torch.int64, device=device)
        self.graph = torch.cuda.CUDAGraph()
        if torch.__version__ < "2.14":  # later versions do this themselves
            for generator in generators:
                self.graph.register_generator_state(generator)
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.steps_taken = 0

    def __call__(self, index: Tensor) -> None:
        """Train on the rows of `index`.

        Raises:
            UserError: an operation of the step cannot be captured.
        """
        self.index.copy_(index)
        if self.steps_taken < self.WARMUP:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.step(self.index)
            torch.cuda.current_stream().wait_stream(self.stream)
        else:
            if self.steps_taken == self.WARMUP:
                self._capture()
            self.graph.replay()
        self.steps_taken += 1

    def _capture(self) -> None:
        try:
            # Other threads, such as one that copies a checkpoint to the host, may use the GPU during the capture.
            with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
                self.step(self.index)
        except RuntimeError as error:
            if ran_out(error):
                raise
            reason = first_line(error)
            raise UserError(
                f"the training step cannot be captured as a CUDA graph ({reason}); set trainer.capture=false"
            ) from error
