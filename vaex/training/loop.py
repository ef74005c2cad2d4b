"""The training loop: `train(experiment, settings, run)`, and what is due at the end of an epoch."""

import logging
import time
from contextlib import closing
from functools import partial
from typing import NoReturn

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from vaex.data.dataset import Images
from vaex.errors import Interrupted, UserError
from vaex.evaluation.bound import Numbers, evaluate
from vaex.experiment import Experiment
from vaex.figures.figure import Files, Subject
from vaex.figures.kinds import FIGURES
from vaex.runs.folder import METRICS
from vaex.training.checkpoint import State
from vaex.training.intervals import log_epoch, log_interval
from vaex.training.run import Run, Settings, StopRequested
from vaex.training.session import Progress, Session

log = logging.getLogger("vaex")


def train(experiment: Experiment, settings: Settings, run: Run) -> Progress:
    """Train to the last step. The model then has the weights that are to be exported.

    Raises:
        Interrupted: a signal asked the run to stop; a checkpoint was saved.
        UserError: training diverged, or the run's checkpoint belongs to another model.
    """
    check_kinds(settings)
    session = Session(experiment, settings, run)
    progress = session.progress
    if progress.step:
        log.info(f"continuing from step {progress.step} of {experiment.steps}")
    experiment.model.train()
    hidden = None if run.writer.writes else True  # None: shown if there is a terminal
    bar = tqdm(
        total=experiment.steps, initial=progress.step, unit=" steps", disable=hidden, leave=False, dynamic_ncols=True
    )
    try:
        with closing(session.feed), bar, logging_redirect_tqdm():
            finish_epoch(session)  # if the run was stopped in the middle of that
            while not session.is_last_step:
                started = time.perf_counter()
                learning_rate = session.set_learning_rate()
                session.take_step(session.feed.index(progress.step))
                progress.step += 1
                progress.interval += 1
                if session.epoch_ended or progress.step % settings.trainer.log_every == 0:
                    means = log_interval(session, learning_rate)
                    shown: dict[str, object] = {
                        name: f"{means[name]:.1f}" for name in ("elbo", "distortion", "rate") if name in means
                    }
                    bar.set_postfix(shown, refresh=False)
                if session.epoch_ended:
                    log_epoch(session)
                    progress.stage = "validate"
                progress.step_seconds += time.perf_counter() - started
                finish_epoch(session)
                if not session.is_last_step and progress.step % run.processes.poll_every == 0:
                    run.poll()
                bar.update()
    except StopRequested as request:
        stop(session, request)
    run.writer.wait()
    if settings.trainer.weights == "best" and progress.best_step is not None:
        weights = run.processes.broadcast_from_rank0(partial(_load_best, run, progress.best_step))
        experiment.model.load_state_dict(weights)
    return progress


def finish_epoch(session: Session) -> None:
    """Validate, draw and save after an epoch, if that is due. A resumed run does what it had not finished."""
    progress, trainer, figures = session.progress, session.settings.trainer, session.settings.figures
    if not progress.stage:
        return
    epochs, is_last = int(session.epoch), session.is_last_step
    if progress.stage == "validate":
        if is_last or epochs % trainer.validate_every == 0:
            validate(session)
        progress.stage = "draw"
    if is_last or epochs % figures.every == 0:
        draw(session)
    progress.stage = ""
    if is_last or progress.best_step == progress.step or epochs % trainer.checkpoint_every == 0:
        session.save()


def stop(session: Session, request: StopRequested) -> NoReturn:
    """Save a checkpoint and raise Interrupted."""
    session.save(required=True)
    session.run.writer.wait()
    raise Interrupted(
        request.signal_number,
        f"stopped at step {session.progress.step} of {session.experiment.steps}; to continue: "
        f"vaex train resume={session.run.writer.path}",
    )


def validate(session: Session) -> None:
    """Evaluate the validation split, log its metrics, and note whether this is the lowest loss so far."""
    progress, experiment = session.progress, session.experiment
    last_epoch = experiment.steps * session.settings.batch_size / len(experiment.dataset.train)
    epoch = " of ".join(f"{n:.3g}" if n < 999.5 else f"{n:.0f}" for n in (session.epoch, last_epoch))
    if not len(session.validation):
        log.info(f"epoch {epoch}")
        return
    numbers = evaluate_split(experiment, session.validation, session.run)
    session.run.writer.numbers(progress.step, session.epoch, {f"validation/{k}": v for k, v in numbers.items()})
    shown = "  ".join(f"{k} {numbers[k]:.1f}" for k in ("elbo", "distortion", "rate") if k in numbers)
    log.info(f"epoch {epoch}  validation: {shown}  mse {numbers['mse']:.5f}")
    loss, distortion, rate = numbers["loss"], numbers["distortion"], numbers.get("rate", 0.0)
    assert isinstance(loss, float) and isinstance(distortion, float) and isinstance(rate, float)
    improved = loss < progress.best_loss
    if improved:
        progress.best_loss, progress.best_step = loss, progress.step
    if improved or session.settings.trainer.weights == "last":
        progress.monitored = -distortion - rate


def evaluate_split(experiment: Experiment, images: Images, run: Run) -> Numbers:
    """The metrics of a split, with the batches divided among the run's processes. Raises StopRequested."""
    return evaluate(
        experiment.model,
        experiment.objective,
        images,
        experiment.dataset.to_float,
        corruption=experiment.corruption,
        poll=run.poll,
        share=run.processes.share,
    )


def draw(session: Session) -> None:
    """Draw the requested kinds of figures that apply to this run: all of them, or none if the run is to stop."""
    experiment, settings, writer = session.experiment, session.settings.figures, session.run.writer
    subject = Subject(
        model=experiment.model,
        dataset=experiment.dataset,
        corruption=experiment.corruption,
        metrics=writer.path / METRICS,
        grid=settings.images,
        parameter=settings.parameter,
    )
    files: Files = {}
    for name in settings.kinds:
        session.run.poll()
        if writer.writes and not FIGURES[name].why_not(subject):
            files |= FIGURES[name].draw(subject)
    writer.pictures(session.progress.step, files)


def check_kinds(settings: Settings) -> None:
    """Raises UserError for a kind of figure that a run can't draw."""
    kinds = [name for name, kind in FIGURES.items() if not kind.on_request]
    if unknown := [kind for kind in settings.figures.kinds if kind not in kinds]:
        raise UserError(f"figures.kinds={unknown[0]}: a run can't draw this; it can draw {', '.join(kinds)}")


def _load_best(run: Run, step: int) -> State:
    """The weights with the lowest validation loss. Only rank 0 may call this."""
    try:
        weights: State = run.writer.load(step)["model"]
    except UserError as error:
        raise UserError(
            f"trainer.weights=best: {error}; to export the weights of the last step: "
            f"vaex train resume={run.writer.path} trainer.weights=last"
        ) from error
    return weights
