"""Jobs of a sweep that are trained together: one process, one step for all of them (see vaex.training.stacked).

Each job is the generator that trains it, as alone, up to its next step. It validates, draws and saves in its own
folder, and writes its own log. A job that fails or ends leaves the others.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig

from vaex.data.feed import ResidentFeed
from vaex.errors import UserError
from vaex.runs.folder import LOG
from vaex.sweeps.job import folder_of_job, training_of_job
from vaex.sweeps.plan import PlannedJob
from vaex.sweeps.stopping import stop_with_sweep
from vaex.sweeps.worker import Outcome, run_task
from vaex.training.capture import CapturedStep, compile_stacked
from vaex.training.loop import Training, run_to_end
from vaex.training.session import Session
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
        except UserError as error:
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
                self.outcome = Outcome(value=run_to_end(self.training, (self.session, self.index)))
            except (Exception, KeyboardInterrupt) as error:
                self.outcome = Outcome.of(error)


class _Output:
    """Within this context, what is logged and printed goes to the log of a job. It is entered once in every step."""

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
        required: whether jobs that cannot share a step fail; otherwise they are trained one after another.
    """
    stop_with_sweep()
    jobs = [_Job(config, loader, job) for job in planned]
    while len(active := [job for job in jobs if not job.outcome]) > 1:
        try:
            step = _Step(active)
        except UserError as error:
            _report(active, f"not trained together with {len(active) - 1} other runs: {error}")
            if required:
                for job in active:
                    job.fail(UserError(f"sweep.together=true: {error}; set it to auto or false"))
            break
        _report(active, f"trained together with {len(active) - 1} other runs")
        _train(active, step)
    for job in jobs:
        if not job.outcome:
            job.run_alone()
    outcomes = [job.outcome for job in jobs]
    return [outcome for outcome in outcomes if outcome]


def _train(jobs: Sequence[_Job], step: "_Step") -> None:
    """Train until half of the jobs have ended, so that a smaller step can serve the others."""
    active = list(jobs)
    while 2 * len(active) > len(jobs):
        try:
            step.stacked.set_learning_rates([rate for job in jobs for rate in job.session.rates])
            step.take(torch.stack([job.index for job in jobs]))
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
    """A StackedStep as it is called: compiled and captured as the settings of its runs say."""

    def __init__(self, jobs: Sequence[_Job]) -> None:
        sessions = [job.session for job in jobs]
        trainer, first = sessions[0].settings.trainer, sessions[0]
        if not all(isinstance(session.feed, ResidentFeed) for session in sessions):
            raise UserError("their images are streamed to the device")
        index = torch.stack([job.index for job in jobs])
        generators = [session.take_generator() for session in sessions]
        self.stacked = StackedStep([session.step for session in sessions], generators, first.settings.batch_size)
        self.stacked.check(index)
        for session in sessions[1:]:
            session.feed.images = first.feed.images  # the same, as the check has shown; this frees the copies
        self.take: Callable[[torch.Tensor], None] = self.stacked
        if trainer.compile == "true":
            compile_stacked(self.stacked)
        if trainer.capture == "true" and all(step.update.fused for step in self.stacked.steps):
            self.take = CapturedStep(self.stacked, index.shape, generators)


def _report(jobs: Sequence[_Job], text: str) -> None:
    for job in jobs:
        with job.output:
            log.info(text)
