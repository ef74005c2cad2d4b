"""What a process writes into the run folder: everything in rank 0, nothing in the other processes of a run."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from vaex.runs.folder import RESULTS, WEIGHTS, RunFolder
from vaex.runs.writing import WritePolicy
from vaex.training.background import Background
from vaex.training.checkpoint import Checkpoints, State
from vaex.training.metrics_log import Hyperparameters, MetricsLog, Numbers


class NullWriter:
    """The writer of every process but rank 0: its methods do nothing.

    Attributes:
        writes: whether this writer writes anything; if not, nothing needs to be drawn for it.
        path: the run folder.
    """

    writes = False
    path = Path()

    def lock(self) -> AbstractContextManager[None]:
        """Keep other commands away from the run folder."""
        return nullcontext()

    def status(self, status: str, **details: object) -> None:
        """Write status.json."""

    def config(self, config: Any, recorded: dict[str, Any]) -> None:
        """Write config.yaml: the config, and the facts recorded about the run."""

    def results(self, results: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Write model.safetensors, then results.json."""

    def newest_checkpoint(self) -> State | None:
        """The state of the newest undamaged checkpoint; None if there is none."""
        return None

    def checkpoint(self, step: int) -> State:
        """The state of the checkpoint of this step. Only rank 0 may call this."""
        raise NotImplementedError

    def check_space(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Raises UserError if there is too little room for the checkpoints."""

    @contextmanager
    def open(self, from_step: int, about: dict[str, Any]) -> Iterator[None]:
        """Open the logs and the background thread, which the methods below need.

        Args:
            from_step: the step that the run resumes from, or 0.
            about: facts about the run that every checkpoint includes.
        """
        yield

    def hyperparameters(self, values: Hyperparameters, metrics: list[str]) -> None:
        """Log the run's row of TensorBoard's hparams table."""

    def finish(self) -> None:
        """Mark that row as completed."""

    def numbers(self, step: int, epoch: float, numbers: Numbers) -> None:
        """Log numbers to metrics.jsonl and TensorBoard."""

    def pictures(self, step: int, files: Mapping[str, Tensor | bytes]) -> None:
        """Write figures/NAME and a copy with the step in its name, in the background."""

    def save_checkpoint(self, step: int, state: State, best_step: int | None, required: bool) -> None:
        """Copy the state as it is now, and write the copy in the background.

        A failed write of a `required` checkpoint stops the run, whatever the policy.
        """

    def wait(self) -> None:
        """Wait until everything is written. Raises WriteFailed."""


class RunWriter(NullWriter):
    """The writer of rank 0.

    Args:
        folder: the run folder.
        stop: whether the run stops if a log, picture or checkpoint can't be written.
    """

    writes = True

    def __init__(self, folder: RunFolder, *, stop: bool) -> None:
        self.folder, self.path = folder, folder.path
        self.policy = WritePolicy(folder.path, stop=stop)
        self.checkpoints = Checkpoints(folder.path / "checkpoints", self.policy)

    def lock(self) -> AbstractContextManager[None]:
        return self.folder.lock()

    def status(self, status: str, **details: object) -> None:
        self.folder.set_status(status, **details)

    def config(self, config: Any, recorded: dict[str, Any]) -> None:
        self.folder.write_config(config, recorded)

    def results(self, results: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
        self.folder.write(WEIGHTS, save({name: tensor.contiguous() for name, tensor in weights.items()}))
        self.folder.write_json(RESULTS, results)

    def newest_checkpoint(self) -> State | None:
        return self.checkpoints.load_newest()

    def checkpoint(self, step: int) -> State:
        return self.checkpoints.load(step)

    def check_space(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.checkpoints.check_space(model, optimizer)

    @contextmanager
    def open(self, from_step: int, about: dict[str, Any]) -> Iterator[None]:
        self._about = about
        with MetricsLog(self.path, from_step, self.policy) as self._log, Background() as self._background:
            yield

    def hyperparameters(self, values: Hyperparameters, metrics: list[str]) -> None:
        self._log.hyperparameters(values, metrics)

    def finish(self) -> None:
        self._log.finish()

    def numbers(self, step: int, epoch: float, numbers: Numbers) -> None:
        self._log.numbers(step, epoch, numbers)

    def pictures(self, step: int, files: Mapping[str, Tensor | bytes]) -> None:
        for name, content in files.items():
            path = self.path / "figures" / name
            paths = (path, path.parent / "steps" / f"{path.stem}-{step}{path.suffix}")
            self._background.submit(self._log.picture, step, path.stem, content, *paths)

    def save_checkpoint(self, step: int, state: State, best_step: int | None, required: bool) -> None:
        # The next steps change the tensors, so the background thread gets a copy.
        copy = tree_map_only(Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), {**state, **self._about})
        self._background.submit(self.checkpoints.save, step, copy, best_step, required)

    def wait(self) -> None:
        self._background.wait()
