"""The training loop, and what is due at the end of an epoch."""

import logging
import time
from collections.abc import Generator, Mapping
from contextlib import closing, nullcontext
from typing import Any

from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from vaex.data.dataset import Images
from vaex.errors import Interrupted, UserError
from vaex.evaluation.bound import Numbers, evaluate
from vaex.evaluation.measure import Evaluation
from vaex.figures.figure import Files, Subject
from vaex.figures.kinds import FIGURES
from vaex.runs.folder import METRICS
from vaex.training.checkpoint import State
from vaex.training.intervals import log_epoch, log_interval
from vaex.training.session import Session

log = logging.getLogger("vaex")


Training = Generator[tuple[Session, Tensor], None, float | None]


def run_to_end(training: Training, pending: tuple[Session, Tensor] | None = None) -> float | None:
    """Take every step that a run asks for, first the one that is `pending`, and return what the run returns."""
    while True:
        try:
            session, index = pending or next(training)
        except StopIteration as end:
            value: float | None = end.value
            return value
        pending = None
        started = time.perf_counter()
        try:
            session.take_step(index)
            session.progress.step_seconds += time.perf_counter() - started
        except BaseException as error:  # the run records why it failed
            training.throw(error)


def train(session: Session) -> Generator[tuple[Session, Tensor], None, None]:
    """Train to the last step. The model then has the weights that are to be exported.

    Yields:
        The session and the rows of the next step, [B], before each step. Whoever iterates takes the step.

    Raises:
        Interrupted: a signal asked the run to stop; a checkpoint was saved.
        UserError: training diverged, or a run can't draw one of the figures.
    """
    experiment, trainer, progress = session.experiment, session.settings.trainer, session.progress
    kinds = [name for name, kind in FIGURES.items() if not kind.on_request]
    if unknown := [kind for kind in session.settings.figures.kinds if kind not in kinds]:
        raise UserError(f"figures.kinds={unknown[0]}: a run can't draw this; it can draw {', '.join(kinds)}")
    if progress.step:
        log.info(f"continuing from step {progress.step} of {experiment.steps}")
    experiment.model.train()
    bar = tqdm(
        total=experiment.steps,
        initial=progress.step,
        unit=" steps",
        disable=None if session.writer.writes else True,  # None shows the bar only on a terminal
        leave=False,
        dynamic_ncols=True,
    )
    try:
        with closing(session.feed), bar, nullcontext() if bar.disable else logging_redirect_tqdm():
            finish_epoch(session)  # if the run was stopped before it had finished this
            while not session.is_last_step:
                started = time.perf_counter()
                learning_rate = session.set_learning_rate()
                index = session.feed.index(progress.step)
                progress.step_seconds += time.perf_counter() - started
                yield session, index  # whoever takes the step adds its time
                started = time.perf_counter()
                progress.step += 1
                progress.interval += 1
                if session.epoch_ended:
                    progress.stage = "validate"
                if session.epoch_ended or progress.step % trainer.log_every == 0:
                    bar.set_postfix(_terms(log_interval(session, learning_rate)), refresh=False)
                if session.epoch_ended:
                    log_epoch(session)
                progress.step_seconds += time.perf_counter() - started
                finish_epoch(session)
                if not session.is_last_step and progress.step % session.processes.poll_every == 0:
                    session.poll()
                bar.update()
    except Interrupted as interrupted:
        session.save(required=True)
        session.writer.wait()
        raise Interrupted(
            interrupted.signal_number,
            f"stopped at step {progress.step} of {experiment.steps}; to continue: "
            f"vaex train resume={session.writer.path}",
        ) from None
    session.writer.wait()
    if session.step.average:
        session.step.average.replace_weights()
    if trainer.weights == "best" and progress.best_step is not None:
        experiment.model.load_state_dict(session.processes.broadcast_from_rank0(lambda: _best_weights(session)))


def finish_epoch(session: Session) -> None:
    """Validate, draw and save after an epoch, whichever is due. A resumed run continues at the stage it had reached."""
    progress, trainer, figures = session.progress, session.settings.trainer, session.settings.figures
    if not progress.stage:
        return
    epochs = int(session.epoch)
    if progress.stage == "validate":
        if session.is_last_step or epochs % trainer.validate_every == 0:
            with session.averaged_weights():
                validate(session)
        progress.stage = "draw"
    is_last = session.is_last_step  # which a validation may have decided
    if is_last or epochs % figures.every == 0:
        with session.averaged_weights():
            draw(session)
    progress.stage = ""
    if is_last or progress.best_step == progress.step or epochs % trainer.checkpoint_every == 0:
        session.save()


def validate(session: Session) -> None:
    """Evaluate the validation split, log its metrics, and note whether this is the lowest loss so far."""
    progress, experiment = session.progress, session.experiment
    last_epoch = experiment.steps * session.settings.batch_size / len(experiment.dataset.train)
    epoch = " of ".join(f"{n:.3g}" if n < 999.5 else f"{n:.0f}" for n in (session.epoch, last_epoch))
    if not len(session.validation):
        log.info(f"epoch {epoch}")
        return
    numbers = evaluate_split(session, session.validation)
    session.writer.numbers(progress.step, session.epoch, {f"validation/{k}": v for k, v in numbers.items()})
    terms = "  ".join(f"{name} {text}" for name, text in _terms(numbers).items())
    log.info(f"epoch {epoch}  validation: {terms}  mse {numbers['mse']:.5f}")
    loss, distortion, rate = numbers["loss"], numbers["distortion"], numbers.get("rate", 0.0)
    assert isinstance(loss, float) and isinstance(distortion, float) and isinstance(rate, float)
    improved = loss < progress.best_loss
    progress.validations_since_best += 1
    if improved:
        progress.best_loss, progress.best_step, progress.validations_since_best = loss, progress.step, 0
    if improved or session.settings.trainer.weights == "last":
        progress.monitored = -distortion - rate
    if session.ran_out_of_patience:
        log.info(
            f"stopped at step {progress.step} of {experiment.steps}: the validation loss was lowest at step "
            f"{progress.best_step}, {progress.validations_since_best} validations ago"
        )


def evaluate_split(session: Session, images: Images | None = None) -> Numbers:
    """The metrics of these images (of the test split if None), with the batches divided among the run's processes.

    Raises:
        Interrupted: on a signal.
    """
    experiment = session.experiment
    evaluation = Evaluation(
        experiment.model, experiment.objective, experiment.dataset, experiment.corruption, poll=session.poll
    )
    return evaluate(evaluation, images, share=session.processes.share)


def draw(session: Session) -> None:
    """Draw the requested kinds of figures that apply to this run: all of them, or none if the run is to stop."""
    experiment, settings, writer = session.experiment, session.settings.figures, session.writer
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
        session.poll()
        if writer.writes and not FIGURES[name].why_not(subject):
            files |= FIGURES[name].draw(subject)
    writer.pictures(session.progress.step, files)


def _terms(numbers: Mapping[str, Any]) -> dict[str, str]:
    """The ELBO and its two terms as text, as far as the objective has them."""
    return {name: f"{numbers[name]:.1f}" for name in ("elbo", "distortion", "rate") if name in numbers}


def _best_weights(session: Session) -> State:
    """The weights with the lowest validation loss. Only rank 0 may call this."""
    assert session.progress.best_step is not None
    try:
        state = session.writer.load(session.progress.best_step)
    except UserError as error:
        raise UserError(
            f"trainer.weights=best: {error}; to export the weights of the last step: "
            f"vaex train resume={session.writer.path} trainer.weights=last"
        ) from error
    weights: State = state["model"] | state.get("average", {})
    return weights
