"""A run in training: what it works with, and its state, which checkpoints save and restore."""

import logging
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from vaex.config.schema import FiguresConfig, TrainerConfig
from vaex.data.feed import Feed, images_on_device, make_feed
from vaex.errors import Interrupted, UserError, first_line
from vaex.experiment import Experiment
from vaex.training.capture import CapturedStep, compile_step
from vaex.training.checkpoint import State, random_state, restore_random_state
from vaex.training.distributed import Processes
from vaex.training.signals import StopFlag
from vaex.training.step import TrainingStep
from vaex.training.writer import Writer

log = logging.getLogger("vaex")


@dataclass(frozen=True)
class Settings:
    """The values of the config that training uses; conf/train.yaml describes them."""

    batch_size: int
    seed: int
    trainer: TrainerConfig  # with `compile` and `capture` "true" or "false"
    figures: FiguresConfig


@dataclass
class Progress:
    """How far a run has come: what a checkpoint holds besides the state of the step and the random state."""

    step: int = 0  # steps taken so far
    stage: str = ""  # due before the next step: "validate" and then drawing, only "draw", or nothing
    interval: int = 0  # steps since training metrics were last logged
    epoch_steps: int = 0  # steps since the last epoch ended, without skipped ones
    skipped: int = 0  # steps in which some value was not finite
    spikes: dict[str, float] = field(default_factory=dict)  # state of the spike detector
    epoch_sums: dict[str, float] = field(default_factory=dict)  # of each metric over `epoch_steps`
    best_step: int | None = None  # step with the lowest validation loss
    best_loss: float = math.inf
    validations_since_best: int = 0
    monitored: float | None = None  # validation ELBO of the weights that would be exported now
    seconds: float = 0.0  # time spent on the run
    step_seconds: float = 0.0  # time spent in training steps


class Session:
    """An experiment in training: its step, its images and its progress.

    Args:
        writer: writes the run folder; a NullWriter in all processes but rank 0.
        processes: the processes that share each batch.
        stop_flag: set by a signal.
        checkpoint: the state to resume from; None to start at step 0.

    Raises:
        UserError: the checkpoint belongs to another model.

    Attributes:
        step: the training step.
        take_step: the training step as it is called, captured or not; takes row indices [B].
        feed: the training images, and the rows of each step.
        validation: the validation images, on the device if they fit there.
    """

    def __init__(
        self,
        experiment: Experiment,
        settings: Settings,
        writer: Writer,
        processes: Processes,
        stop_flag: StopFlag,
        checkpoint: State | None = None,
    ) -> None:
        self.experiment, self.settings, self.writer = experiment, settings, writer
        self.processes, self.stop_flag = processes, stop_flag
        dataset, device, trainer = experiment.dataset, experiment.device, settings.trainer
        self.feed: Feed = make_feed(dataset.train, settings.batch_size, settings.seed, device, dataset.resident)
        self.validation = images_on_device(dataset.validation, device, dataset.resident)
        steps_of_epoch = math.ceil(len(dataset.train) / settings.batch_size)  # the sums are read after each epoch, too
        unread_steps = min(trainer.log_every, steps_of_epoch)
        self.step = TrainingStep(
            experiment,
            self.feed.images,
            trainer.clip_norm,
            processes,
            unread_steps,
            skip_norm=trainer.skip_norm,
            ema=trainer.ema,
        )
        self.take_step: Callable[[Tensor], None] = self.step
        if trainer.compile == "true":
            compile_step(self.step)
        if trainer.capture == "true" and self.step.update.fused:
            self.take_step = CapturedStep(self.step, (settings.batch_size,))
        elif trainer.capture == "true":
            log.warning("the step is not captured: optimizer.fused is false, or this optimizer has no such option")
        self.generator: torch.Generator | None = None  # of the noise; None for the default one
        self.progress = Progress()
        if checkpoint is not None:
            self._restore(checkpoint)
        self.started = time.perf_counter() - self.progress.seconds

    @property
    def images_seen(self) -> int:
        return self.progress.step * self.settings.batch_size

    @property
    def epoch(self) -> float:
        return self.images_seen / len(self.experiment.dataset.train)

    @property
    def is_last_step(self) -> bool:
        return self.progress.step == self.experiment.steps or self.ran_out_of_patience

    @property
    def ran_out_of_patience(self) -> bool:
        """Whether so many validations in a row had no lower loss that training stops."""
        patience = self.settings.trainer.patience
        return patience is not None and self.progress.validations_since_best >= patience

    @property
    def epoch_ended(self) -> bool:
        """Whether the latest step completed an epoch or the run."""
        size, seen = len(self.experiment.dataset.train), self.images_seen
        return self.is_last_step or seen // size > (seen - self.settings.batch_size) // size

    def poll(self) -> None:
        """Raise Interrupted, in every process, if any process received a signal."""
        if number := self.processes.maximum(self.stop_flag.number):
            raise Interrupted(number, f"stopped by signal {number}")

    def averaged_weights(self) -> AbstractContextManager[None]:
        """A context in which the model has the average weights, if there are any."""
        average = self.step.average
        return average.in_place() if average else nullcontext()

    def set_learning_rate(self) -> float:
        """Set the learning rates of the next step, and return that of the networks."""
        factor = self.experiment.schedule(self.progress.step)
        self.rates = [rate * factor for rate in self.experiment.learning_rates]
        if self.generator is None:  # else the step of several runs sets those of all
            for group, rate in zip(self.experiment.optimizer.param_groups, self.rates, strict=True):
                group["lr"].fill_(rate)
        return self.rates[0]

    def save(self, *, required: bool = False) -> None:
        """Save a checkpoint of the state as it is now. It is written in the background."""
        self.progress.seconds = time.perf_counter() - self.started
        state = self.step.state_dict() | {"random": self.random_state()}
        state["progress"] = asdict(self.progress)
        if self.settings.trainer.patience is None:
            del state["progress"]["validations_since_best"]  # an older version can continue the run
        self.writer.save(self.progress.step, state, self.progress.best_step, required)

    def take_generator(self) -> torch.Generator:
        """Have the noise of this run's steps drawn from a generator of its own, which continues the default one."""
        if self.generator is None:
            device = self.experiment.device
            self._random = random_state(device)
            self.generator = torch.Generator(device)
            self.generator.set_state(self._random[device.type])
        return self.generator

    def return_generator(self) -> None:
        """Have the noise drawn from the default generator again."""
        restore_random_state(self.random_state(), self.experiment.device)
        self.generator = None

    def random_state(self) -> dict[str, Tensor]:
        """The state of every random number generator that this run's steps use."""
        device = self.experiment.device
        if self.generator is None:
            return random_state(device)
        return self._random | {device.type: self.generator.get_state()}

    def _restore(self, state: State) -> None:
        try:
            self.step.load_state_dict(state)
        except (RuntimeError, ValueError) as error:
            path = self.writer.path / "checkpoints" / f"step-{state['step']}.pt"
            reason = first_line(error)
            raise UserError(f"{path}: does not belong to the model in config.yaml ({reason})") from error
        restore_random_state(state["random"], self.experiment.device)
        self.progress = Progress(**state["progress"])
