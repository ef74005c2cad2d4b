"""Write the run folder: rank 0 writes everything, the other processes of a run write nothing."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor
from torch.utils._pytree import tree_map_only

from vaex.config.schema import Config
from vaex.errors import UserError
from vaex.runs.folder import RESULTS, STATUS, WEIGHTS, WEIGHTS_HASH, RunFolder, weights_hash
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
        config: the run's config, with which checkpoints of other runs are refused; None to refuse none.

    Attributes:
        writes: whether the process writes anything; if not, it draws no figures.
        opened: whether the run has begun to train, or to resume.
    """

    writes = True
    opened = False

    def __init__(self, folder: RunFolder, *, stop: bool, config: Config | None = None) -> None:
        self.folder, self.path = folder, folder.path
        self.policy = WritePolicy(folder.path, stop=stop)
        self._status_before: dict[str, Any] = {}
        self.lock, self.set_status, self.write_config = folder.lock, folder.set_status, folder.write_config
        self.checkpoints = Checkpoints(folder.path / "checkpoints", self.policy, config)
        self.check_space, self.load = self.checkpoints.check_space, self.checkpoints.load
        self.load_newest = self.checkpoints.load_newest

    def begin(self) -> None:
        """Record that a process is at work on the run."""
        with suppress(UserError):  # a new run has no status
            self._status_before = self.folder.read_status()
        self.set_status("running")

    def refuse(self, reason: str) -> None:
        """Record that the run could not be resumed: it is as complete as before, and can still be resumed."""
        if self._status_before.get("status") == "completed":
            self.folder.write_json(STATUS, self._status_before)
        else:
            self.set_status("interrupted", reason=reason)

    def write_results(self, results: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Write model.safetensors, then results.json."""
        content = save({name: tensor.contiguous() for name, tensor in weights.items()})
        self.folder.write(WEIGHTS, content)
        self.folder.write_json(RESULTS, results | {WEIGHTS_HASH: weights_hash(content)})

    @contextmanager
    def open(self, from_step: int, about: Callable[[], dict[str, Any]] = dict) -> Iterator[None]:
        """Open the logs and the background thread.

        Args:
            from_step: the step that the run resumes from, or 0.
            about: returns facts about the run that every checkpoint includes. It is called in the background, since
                hashing a large dataset takes seconds.
        """
        self.about, self.opened = about, True
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
        state = tree_map_only(Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), state)
        self.background.submit(lambda: self.checkpoints.save(step, {**state, **self.about()}, best_step, required))

    def wait(self) -> None:
        """Wait until everything is written. Raises WriteFailed if a write failed."""
        self.background.wait()


Writer = RunWriter | NullWriter
