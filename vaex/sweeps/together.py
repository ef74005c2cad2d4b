"""Jobs of a sweep that are trained together: one process, one step for all of them (see vaex.training.stacked).

Each job is the generator that trains it as it would be trained alone, up to its next step. It validates, draws and
saves in its own folder, and writes its own log. A job that fails or ends does not stop the others.
"""

import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig

from vaex.data.dataset import Images
from vaex.data.feed import ResidentFeed
from vaex.errors import UserError, first_line
from vaex.runs.folder import LOG
from vaex.sweeps.job import folder_of_job, training_of_job
from vaex.sweeps.plan import PlannedJob
from vaex.sweeps.stopping import stop_with_sweep
from vaex.sweeps.worker import Outcome, run_task
from vaex.training.capture import CapturedStep, compile_stacked
from vaex.training.loop import Training, run_to_end
from vaex.training.memory import ran_out
from vaex.training.session import Session
from vaex.training.signals import stop_on_signals
from vaex.training.stacked import StackedStep

log = logging.getLogger("vaex")


class _Job:
    """A job, up to its next step.

    Attributes:
        outcome: once the job has ended.
    """

    session: Session
    index: torch.Tensor

    def __init__(self, config: DictConfig, loader: ConfigLoader, job: PlannedJob) -> None:
        self.outcome: Outcome | None = None
        try:
            run_task(config, loader, job, self._begin)
        except Exception as error:
            self.outcome = Outcome.of(error)

    def _begin(self, composed: DictConfig) -> None:
        self.output = _Output(folder_of_job().path / LOG)
        self.training: Training = training_of_job(composed)
        self.advance()
        if not self.outcome:
            self.session.take_generator()

    def advance(self) -> None:
        """Go on to the next step, or to the end."""
        with self.output:
            try:
                self.session, self.index = next(self.training)
            except StopIteration as end:
                self.outcome = Outcome(value=end.value)
            except (Exception, KeyboardInterrupt) as error:
                self.outcome = Outcome.of(error)
        self.waits_since = time.perf_counter()

    def fail(self, error: BaseException) -> None:
        """End the job with this error."""
        with self.output:
            try:
                self.training.throw(error)
            except (Exception, KeyboardInterrupt) as raised:
                self.outcome = Outcome.of(raised)

    def run_alone(self) -> None:
        """Train the job to its end by steps of its own."""
        with self.output:
            try:
                self.session.return_generator()
                self.session.set_learning_rate()
                self.session.started += time.perf_counter() - self.waits_since  # its time does not count the others'
                self.outcome = Outcome(value=run_to_end(self.training, (self.session, self.index)))
            except (Exception, KeyboardInterrupt) as error:
                self.outcome = Outcome.of(error)


class _Output:
    """Within this context, what is logged and printed goes to the log of a job.

    A job enters it before every step, so that entering must be cheap.
    """

    def __init__(self, log_file: Path) -> None:
        self.file = open(log_file, "a", buffering=1)
        # Hydra closes its own handlers when it sets up the log of the next job.
        self.handlers: list[logging.Handler] = []
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.FileHandler):
                own = logging.FileHandler(handler.baseFilename)
                own.setFormatter(handler.formatter)
                self.handlers.append(own)

    def __enter__(self) -> None:
        root = logging.getLogger()
        self.before = root.handlers, sys.stdout, sys.stderr
        root.handlers, sys.stdout, sys.stderr = self.handlers, self.file, self.file

    def __exit__(self, *_: object) -> None:
        logging.getLogger().handlers, sys.stdout, sys.stderr = self.before


def train_together(
    config: DictConfig, loader: ConfigLoader, planned: Sequence[PlannedJob], *, required: bool
) -> list[Outcome]:
    """Train jobs of a sweep in this process.

    Args:
        planned: the jobs, as `plan_groups` divides them.
        required: if True, jobs that cannot share a step fail before their first step; otherwise they are trained one
            after another.
    """
    stop_with_sweep()
    jobs, outcomes = [], {}
    with stop_on_signals() as stop:
        for job in planned:
            if stop.number:
                outcomes[job.number] = Outcome(error="not started, because the sweep was asked to stop")
            else:
                jobs.append((job.number, _Job(config, loader, job)))
        _train_all([job for _, job in jobs], required)
    outcomes |= {number: job.outcome for number, job in jobs if job.outcome}
    return [outcomes[job.number] for job in planned]


def _train_all(jobs: Sequence[_Job], required: bool) -> None:
    """Train the jobs to their ends: together as long as they can share a step, then one after another."""
    while len(active := [job for job in jobs if not job.outcome]) > 1:
        try:
            _train(active)
        except UserError as error:
            _report(active, f"not trained together with {len(active) - 1} other runs: {error}")
            for job in active if required else ():
                if not job.session.progress.step:
                    job.fail(UserError(f"sweep.together=true: {error}; set it to auto or false"))
            break
    for job in jobs:
        if not job.outcome:
            job.run_alone()


def _train(jobs: Sequence[_Job]) -> None:
    """Train until half of the jobs have ended, so that a smaller step can serve the others.

    Raises:
        UserError: the jobs cannot share a step. None of them has taken one that it would not have taken alone.
    """
    step = _Step(jobs)
    _report(jobs, f"trained together with {len(jobs) - 1} other runs")
    active = list(jobs)
    while 2 * len(active) > len(jobs):
        try:
            step(jobs)
        except UserError:
            raise
        except Exception as error:
            for job in active:
                job.fail(error)
            return
        for job in list(active):
            job.advance()
            if job.outcome:
                active.remove(job)
                step.stacked.leave(job.session.step)


class _Step:
    """A StackedStep as it is called: compiled and captured as the settings of its runs say.

    Raises:
        UserError: the runs cannot share a step.
    """

    FIRST = 5  # steps in which it is compiled and captured

    def __init__(self, jobs: Sequence[_Job]) -> None:
        sessions = [job.session for job in jobs]
        settings, first = [session.settings for session in sessions], sessions[0]
        if not all(isinstance(session.feed, ResidentFeed) for session in sessions):
            raise UserError("their images are streamed to the device")
        for session in sessions[1:]:
            if not _same_images(session.feed.images, first.feed.images):
                raise UserError("their training images differ")
        for name, values in (
            ("batch_size", {each.batch_size for each in settings}),
            ("trainer.log_every", {each.trainer.log_every for each in settings}),
            ("optimizer.fused", {session.step.update.fused for session in sessions}),
        ):
            if len(values) > 1:
                raise UserError(f"{name} differs: {', '.join(map(str, values))}")
        index = torch.stack([job.index for job in jobs])
        self.generators = [session.take_generator() for session in sessions]
        self.stacked = StackedStep([session.step for session in sessions], self.generators, settings[0].batch_size)
        self.stacked.check(index)
        for session in sessions[1:]:  # this frees the copies
            session.feed.images = session.step.images = first.feed.images
            if _same_images(session.validation, first.validation):
                session.validation = first.validation
        self.take: Callable[[torch.Tensor], None] = self.stacked
        if any(each.trainer.compile == "true" for each in settings):
            compile_stacked(self.stacked)
        if settings[0].trainer.capture == "true" and first.step.update.fused:
            self.take = CapturedStep(self.stacked, index.shape, self.generators)
        self.steps = 0

    def __call__(self, jobs: Sequence[_Job]) -> None:
        """Take the next step of each job.

        Raises:
            UserError: one of the first steps cannot be compiled or captured, or lacks memory; nothing is changed.
        """
        started = time.perf_counter()
        states = [generator.get_state() for generator in self.generators] if self.steps < self.FIRST else None
        self.stacked.set_learning_rates([rate for job in jobs for rate in job.session.rates])
        try:
            self.take(torch.stack([job.index for job in jobs]))
        except Exception as error:
            if states is None:
                raise
            for generator, state in zip(self.generators, states, strict=True):
                generator.set_state(state)
            reason = first_line(error)
            if ran_out(error):
                reason = "out of memory with so many runs in one step"
            raise UserError(reason) from error
        self.steps += 1
        for job in jobs:
            job.session.progress.step_seconds += time.perf_counter() - started


def _same_images(one: Images, other: Images) -> bool:
    return torch.equal(one.pixels, other.pixels) and torch.equal(one.labels, other.labels)


def _report(jobs: Sequence[_Job], text: str) -> None:
    for job in jobs:
        with job.output:
            log.info(text)
