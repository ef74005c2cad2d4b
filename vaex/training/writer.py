"""Write the run folder: rank 0 writes everything, the other processes of a run write nothing."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor
from torch.utils._pytree import tree_map_only

from vaex.runs.folder import RESULTS, WEIGHTS, RunFolder
from vaex.runs.writing import WritePolicy
from vaex.training.background import Background
from vaex.training.checkpoint import Checkpoints, State
from vaex.training.metrics_log import MetricsLog


class NullWriter:
    """The writer of every process but rank 0: it has all methods of RunWriter, and they do nothing."""

    writes = False
    path = Path()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *_, **__: nullcontext()


class RunWriter:
    """The writer of rank 0: the files of the run folder, its logs and its checkpoints.

    The methods `numbers`, `hyperparameters` and `finish` (see MetricsLog), `pictures`, `save` and `wait` may only be
    called inside `open`.

    Args:
        folder: the run folder.
        stop: whether the run stops if a log, picture or checkpoint can't be written.

    Attributes:
        writes: whether the process writes anything; if not, it draws no figures.
    """

    writes = True

    def __init__(self, folder: RunFolder, *, stop: bool) -> None:
        self.folder, self.path = folder, folder.path
        self.policy = WritePolicy(folder.path, stop=stop)
        self.lock, self.set_status, self.write_config = folder.lock, folder.set_status, folder.write_config
        self.checkpoints = Checkpoints(folder.path / "checkpoints", self.policy)
        self.check_space, self.load = self.checkpoints.check_space, self.checkpoints.load
        self.load_newest = self.checkpoints.load_newest

    def write_results(self, results: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Write model.safetensors, then results.json."""
        self.folder.write(WEIGHTS, save({name: tensor.contiguous() for name, tensor in weights.items()}))
        self.folder.write_json(RESULTS, results)

    @contextmanager
    def open(self, from_step: int, about: dict[str, Any]) -> Iterator[None]:
        """Open the logs and the background thread.

        Args:
            from_step: the step that the run resumes from, or 0.
            about: facts about the run that every checkpoint includes.
        """
        self.about = about
        with MetricsLog(self.path, from_step, self.policy) as log, Background() as self.background:
            self.log, self.numbers = log, log.numbers
            self.hyperparameters, self.finish = log.hyperparameters, log.finish
            yield

    def pictures(self, step: int, files: Mapping[str, Tensor | bytes]) -> None:
        """Write figures/NAME and a copy with the step in its name, in the background."""
        for name, content in files.items():
            path = self.path / "figures" / name
            paths = (path, path.parent / "steps" / f"{path.stem}-{step}{path.suffix}")
            self.background.submit(self.log.picture, step, path.stem, content, *paths)

    def save(self, step: int, state: State, best_step: int | None, required: bool) -> None:
        """Copy the state as it is now, and write the copy as a checkpoint in the background.

        A failed write of a `required` checkpoint stops the run, whatever the policy.
        """
        state = tree_map_only(Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), {**state, **self.about})
        self.background.submit(self.checkpoints.save, step, state, best_step, required)

    def wait(self) -> None:
        """Wait until everything is written. Raises WriteFailed if a write failed."""
        self.background.wait()


Writer = RunWriter | NullWriter
