"""The training loop: when to log, validate, draw and save."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor
from torch.utils._pytree import tree_map_only
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from vaex.config.schema import Config
from vaex.data.dataset import Images
from vaex.data.feed import Feed, images_on_device, make_feed
from vaex.errors import Interrupted, UserError
from vaex.evaluation.bound import Numbers, evaluate
from vaex.experiment import Experiment
from vaex.figures.kinds import KINDS, Files, Subject
from vaex.runs.folder import METRICS
from vaex.runs.provenance import versions
from vaex.training.background import Background
from vaex.training.checkpoint import Checkpoints, random_state, restore_random_state
from vaex.training.distributed import Ranks
from vaex.training.signals import StopFlag
from vaex.training.spikes import spike
from vaex.training.step import CapturedStep, TrainingStep
from vaex.training.writer import NoRecord, Record

log = logging.getLogger("vaex")


class _Asked(Exception):
    """A signal asks to stop."""

    def __init__(self, number: int) -> None:
        self.number = number


@dataclass
class Progress:
    """What a checkpoint holds of the loop, beside the step's own state."""

    step: int = 0  # taken so far
    stage: str = ""  # of what is due after this step: validate, draw; nothing if empty
    interval: int = 0  # steps since the training numbers were last logged
    epoch_steps: int = 0  # steps since the last epoch ended that weren't skipped
    skipped: int = 0  # steps in which something wasn't finite
    spikes: dict[str, float] = field(default_factory=dict)  # state of the detector
    epoch_sums: dict[str, float] = field(default_factory=dict)
    best_step: int | None = None  # with the lowest validation loss
    best_loss: float = math.inf
    monitored: float | None = None  # validation ELBO of the weights that would be exported now
    seconds: float = 0.0  # spent so far, all told
    step_seconds: float = 0.0  # of these in training steps


class Loop:
    """Trains an experiment from where its checkpoints left off.

    Args:
        experiment: what to train.
        config: its settings.
        folder: of the run.
        checkpoints: of the run.
        record: where numbers and pictures go.
        background: does the writing.
        stop: looked at after every step and before every batch of an evaluation.
        ranks: the processes that train together; None for this one alone. Only the first writes.
    """

    def __init__(
        self,
        experiment: Experiment,
        config: Config,
        folder: Path,
        checkpoints: Checkpoints,
        record: Record | NoRecord,
        background: Background,
        stop: StopFlag,
        ranks: Ranks | None = None,
    ) -> None:
        self.experiment, self.config, self.folder, self.checkpoints = experiment, config, folder, checkpoints
        self.about = {"config": asdict(replace(config, resume=None)), "versions": versions()}
        self.record, self.background, self.stop, self.ranks = record, background, stop, ranks or Ranks()
        kinds = [name for name, kind in KINDS.items() if not kind.on_request]
        if unknown := [kind for kind in config.figures.kinds if kind not in kinds]:
            raise UserError(f"figures.kinds={unknown[0]}: is none that a run can draw; there are {', '.join(kinds)}")
        self.progress = Progress()
        dataset, device = experiment.dataset, experiment.device
        self.feed: Feed = make_feed(dataset.train, config.batch_size, config.seed, device, dataset.resident)
        self.validation = images_on_device(dataset.validation, device, dataset.resident)
        self.training_step = TrainingStep(
            model=experiment.model,
            objective=experiment.objective,
            images=self.feed.images,
            to_float=dataset.to_float,
            corruption=experiment.corruption,
            optimizer=experiment.optimizer,
            clip_norm=config.trainer.clip_norm,
            compiled=config.trainer.compile == "true",
            ranks=self.ranks,
        )
        self.take_step: Callable[[Tensor], None] = self.training_step
        if config.trainer.capture == "true" and not self.training_step.update.fused:
            log.warning("the step is not captured: optimizer.fused is false, or this optimizer has no such option")
        elif config.trainer.capture == "true":
            self.take_step = CapturedStep(self.training_step, config.batch_size)
        self.latest: dict[str, float] = {}  # what the progress bar shows

    def run(self) -> None:
        """Raises Interrupted, after a checkpoint, when asked to stop; UserError when training diverged."""
        steps = self.experiment.steps
        self.started = time.perf_counter() - self.progress.seconds
        self.experiment.model.train()
        bar = tqdm(
            total=steps,
            initial=self.progress.step,
            unit=" steps",
            disable=None if self.ranks.first else True,  # None: if there is no terminal
            leave=False,
            dynamic_ncols=True,
        )
        with bar, logging_redirect_tqdm():
            self._after_step()  # of a run that was stopped in the middle of it
            while self.progress.step < steps:
                self._one_step()
                bar.update()
                if self.latest:
                    bar.set_postfix({name: f"{value:.1f}" for name, value in self.latest.items()}, refresh=False)
                    self.latest = {}
        self.background.wait()

    def _one_step(self) -> None:
        experiment, progress, trainer = self.experiment, self.progress, self.config.trainer
        started = time.perf_counter()
        factor = experiment.schedule(progress.step)
        for group in experiment.optimizer.param_groups:
            group["lr"].fill_(experiment.learning_rate * factor)
        images_before = progress.step * self.config.batch_size
        self.take_step(self.feed.index(progress.step))
        progress.step += 1
        progress.interval += 1

        size = len(experiment.dataset.train)
        epochs_before, epochs = images_before // size, self.images_seen // size
        ended, last = epochs > epochs_before, progress.step == experiment.steps
        if ended or last or progress.step % trainer.log_every == 0:
            self._log_training(experiment.learning_rate * factor)
        if ended or last:
            self._log_epoch()
        progress.step_seconds += time.perf_counter() - started
        if ended or last:
            progress.stage = "validate"
            self._after_step()
        if not last and progress.step % self.ranks.poll_every == 0:
            try:
                self._poll()
            except _Asked as asked:
                self._stop(asked.number)

    def _after_step(self) -> None:
        """Validate, draw and save where that is due. What a signal cut short is done when the run goes on."""
        progress, trainer = self.progress, self.config.trainer
        if not progress.stage:
            return
        epochs, last = int(self.epoch), progress.step == self.experiment.steps
        try:
            if progress.stage == "validate":
                if last or epochs % trainer.validate_every == 0:
                    self._validate()
                progress.stage = "draw"
            if last or epochs % self.config.figures.every == 0:
                self.draw()
        except _Asked as asked:
            self._stop(asked.number)
        progress.stage = ""
        if last or progress.best_step == progress.step or epochs % trainer.checkpoint_every == 0:
            self.save()

    def _stop(self, number: int) -> NoReturn:
        self.save(must=True)
        self.background.wait()
        steps = f"step {self.progress.step} of {self.experiment.steps}"
        raise Interrupted(number, f"stopped at {steps}; resume={self.folder} goes on")

    def _poll(self) -> None:
        if number := self.ranks.agreed(self.stop.number):
            raise _Asked(number)

    @property
    def images_seen(self) -> int:
        return self.progress.step * self.config.batch_size

    @property
    def epoch(self) -> float:
        return self.images_seen / len(self.experiment.dataset.train)

    def _log_training(self, learning_rate: float) -> None:
        progress = self.progress
        sums = self.training_step.take_sums()
        peak = self.training_step.take_peak()
        skipped = round(sums.pop("skipped"))
        steps = progress.interval - skipped
        progress.interval = 0
        progress.skipped += skipped
        if skipped and (self.config.trainer.on_nonfinite == "stop" or not steps):
            self._diverged()
        for name, total in sums.items():
            progress.epoch_sums[name] = progress.epoch_sums.get(name, 0.0) + total
        progress.epoch_steps += steps
        means = {name: total / steps for name, total in sums.items()}
        if skipped:
            first, bad = self.training_step.take_bad()
            log.warning(
                f"step {progress.step}: {skipped} of the last {steps + skipped} steps skipped, the first at {first}, "
                f"where {', '.join(bad)} wasn't finite"
            )
        if spike(progress.spikes, means["loss"], peak):
            log.warning(
                f"step {progress.step}: a loss of {peak:.1f} in the last {steps} steps, usual is {means['loss']:.1f}"
            )
        extra = {"train/learning_rate": learning_rate, "train/skipped": float(skipped)}
        self.record.numbers(progress.step, self.epoch, {f"train/{k}": v for k, v in means.items()} | extra)
        self.latest = {name: means[name] for name in ("elbo", "distortion", "rate") if name in means}

    def _diverged(self) -> NoReturn:
        """No step with a number that isn't finite has touched the weights: they are saved as they are."""
        first, bad = self.training_step.take_bad()
        path = self.save(must=True)
        self.background.wait()
        raise UserError(
            f"training diverged at step {first}: {', '.join(bad)} not finite; {_remedy(set(bad))}. The last good "
            f"weights are in {path}; trainer.on_nonfinite=skip leaves such steps out"
        )

    def _log_epoch(self) -> None:
        progress = self.progress
        means = {f"train_epoch/{name}": total / progress.epoch_steps for name, total in progress.epoch_sums.items()}
        progress.epoch_sums, progress.epoch_steps = {}, 0
        self.record.numbers(progress.step, self.epoch, means)

    def _validate(self) -> bool:
        """Returns whether this is the lowest validation loss so far."""
        progress = self.progress
        total = self.experiment.steps * self.config.batch_size / len(self.experiment.dataset.train)
        at = " of ".join(f"{number:.3g}" if number < 999.5 else f"{number:.0f}" for number in (self.epoch, total))
        if not len(self.validation):
            log.info(f"epoch {at}")
            return False
        numbers = self._evaluate(self.validation)
        self.record.numbers(progress.step, self.epoch, {f"validation/{k}": v for k, v in numbers.items()})
        shown = "  ".join(f"{k} {numbers[k]:.1f}" for k in ("elbo", "distortion", "rate") if k in numbers)
        log.info(f"epoch {at}  validation: {shown}  mse {numbers['mse']:.5f}")
        loss = numbers["loss"]
        assert isinstance(loss, float)
        improved = loss < progress.best_loss
        if improved:
            progress.best_loss, progress.best_step = loss, progress.step
        if improved or self.config.trainer.weights == "last":
            distortion, rate = numbers["distortion"], numbers.get("rate", 0.0)
            assert isinstance(distortion, float) and isinstance(rate, float)
            progress.monitored = -distortion - rate
        return improved

    def test(self, images: Images) -> Numbers:
        """Raises Interrupted when asked to stop: the checkpoint of the last step is there."""
        try:
            return self._evaluate(images)
        except _Asked as asked:
            message = f"stopped while testing; resume={self.folder} goes on"
            raise Interrupted(asked.number, message) from None

    def _evaluate(self, images: Images) -> Numbers:
        experiment = self.experiment
        return evaluate(
            experiment.model,
            experiment.objective,
            images,
            experiment.dataset.to_float,
            corruption=experiment.corruption,
            poll=self._poll,
            share=self.ranks.share,
        )

    def draw(self) -> None:
        """The kinds asked for that have a meaning for this run, as PNG and GIF, and in TensorBoard.

        A copy of each keeps this step's number.
        """
        experiment, settings, step = self.experiment, self.config.figures, self.progress.step
        subject = Subject(
            model=experiment.model,
            dataset=experiment.dataset,
            corruption=experiment.corruption,
            metrics=self.folder / METRICS,
            grid=settings.images,
            parameter=settings.parameter,
        )
        folder = self.folder / "figures"
        files: Files = {}
        for kind in map(KINDS.__getitem__, settings.kinds):
            self._poll()
            if self.ranks.first and not kind.why_not(subject):
                files |= kind.draw(subject)
        for name, content in files.items():  # all of them or, when asked to stop, none
            path = folder / name
            paths = (path, folder / "steps" / f"{path.stem}-{step}{path.suffix}")
            self.background.submit(self.record.picture, step, path.stem, content, *paths)

    def save(self, must: bool = False) -> Path:
        """Take the state as it is now; it is written behind the next steps, and `must` be before the run ends."""
        progress, path = self.progress, self.checkpoints.path(self.progress.step)
        if not self.ranks.first:
            return path
        progress.seconds = time.perf_counter() - self.started
        state = {
            "model": self.experiment.model.state_dict(),
            "optimizer": self.experiment.optimizer.state_dict(),
            "sums": {
                "names": list(self.training_step.names),
                "totals": self.training_step.totals,
                "peak": self.training_step.peak,
                "bad": self.training_step.bad,
            },
            "random": random_state(self.experiment.device),
            "progress": asdict(progress),
            **self.about,
        }
        snapshot = tree_map_only(Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), state)
        self.background.submit(self.checkpoints.save, progress.step, snapshot, progress.best_step, must)
        return path

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint. Raises UserError when it is another model's."""
        try:
            self.experiment.model.load_state_dict(state["model"])
            self.experiment.optimizer.load_state_dict(state["optimizer"])
            for group in self.experiment.optimizer.param_groups:
                group["lr"] = group["lr"].to(self.experiment.device)
        except (RuntimeError, ValueError) as error:
            path = self.checkpoints.path(state["step"])
            raise UserError(f"{path}: not of the model in config.yaml ({str(error).splitlines()[0]})") from error
        restore_random_state(state["random"], self.experiment.device)
        self.progress = Progress(**state["progress"])
        self.training_step.step.fill_(self.progress.step)
        self.training_step.names = tuple(state["sums"]["names"])
        for name in ("totals", "peak", "bad"):
            getattr(self.training_step, name).copy_(state["sums"][name])

    def use_best_weights(self) -> None:
        """Put the weights with the lowest validation loss into the model. Raises UserError when they are damaged."""
        if self.progress.best_step is not None:
            self.experiment.model.load_state_dict(
                self.ranks.broadcast_from_rank0(partial(self._weights, self.progress.best_step))
            )

    def _weights(self, step: int) -> dict[str, Tensor]:
        try:
            weights: dict[str, Tensor] = self.checkpoints.load(step)["model"]
        except UserError as error:
            raise UserError(
                f"trainer.weights=best: {error}; trainer.weights=last takes those of the last step: "
                f"vaex train resume={self.folder} trainer.weights=last"
            ) from error
        return weights


def _remedy(bad: set[str]) -> str:
    """What usually helps when these aren't finite."""
    decoder, encoder = {"distortion", "likelihood_scale"} & bad, {"rate", "posterior_std"} & bad
    if decoder and not encoder:
        return "raise likelihood.scale.floor where there is one, or lower optimizer.lr"
    if encoder and not decoder:
        return "lower optimizer.lr, or give beta a start with objective.warmup"
    return "lower optimizer.lr, or set trainer.clip_norm"
