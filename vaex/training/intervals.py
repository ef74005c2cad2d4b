"""Log the training metrics of an interval and of an epoch, and detect steps that went wrong."""

import logging
import math
from typing import NoReturn

from vaex.errors import UserError
from vaex.training.session import Session

log = logging.getLogger("vaex")

# The detector of loss spikes
DECAY = 0.9  # of the running means
PATIENCE = 5  # intervals before the first spike
FACTOR = 10.0  # how many times higher than usual the highest loss of a spike lies above the mean


def log_interval(session: Session, learning_rate: float) -> dict[str, float]:
    """Log and return the means of the training metrics over the steps since the last call.

    Raises:
        UserError: a value was not finite, and trainer.on_nonfinite is stop or every step was skipped.
    """
    progress, step = session.progress, session.step
    interval = step.sums.take()
    steps = progress.interval - interval.skipped
    progress.interval = 0
    progress.skipped += interval.skipped
    if interval.skipped:
        if session.settings.trainer.on_nonfinite == "stop" or not steps:
            _stop_diverged(session, interval.skipped)
        first, nonfinite = step.sums.take_nonfinite()
        log.warning(
            f"step {progress.step}: {interval.skipped} of the last {steps + interval.skipped} steps skipped; in the "
            f"first, step {first}, these were not finite: {', '.join(nonfinite)}"
        )
    for name, total in interval.sums.items():
        progress.epoch_sums[name] = progress.epoch_sums.get(name, 0.0) + total
    progress.epoch_steps += steps
    means = {name: total / steps for name, total in interval.sums.items()}
    if is_spike(progress.spikes, means["loss"], interval.peak_loss):
        log.warning(
            f"step {progress.step}: the loss reached {interval.peak_loss:.1f} in the last {steps} steps; their mean is "
            f"{means['loss']:.1f}"
        )
    numbers = means | {"learning_rate": learning_rate, "skipped": float(interval.skipped)}
    session.writer.numbers(progress.step, session.epoch, {f"train/{name}": value for name, value in numbers.items()})
    return means


def log_epoch(session: Session) -> None:
    """Log the means of the training metrics over the epoch that has ended."""
    progress = session.progress
    means = {f"train_epoch/{name}": total / progress.epoch_steps for name, total in progress.epoch_sums.items()}
    progress.epoch_sums, progress.epoch_steps = {}, 0
    session.writer.numbers(progress.step, session.epoch, means)


def _stop_diverged(session: Session, skipped: int) -> NoReturn:
    """Save the weights, which no step with a value that is not finite has changed, and stop the run.

    Args:
        skipped: number of such steps since the last interval, the latest of which may not be the last one.
    """
    first, nonfinite = session.step.sums.take_nonfinite()
    last = session.progress.step
    session.save(required=True)
    session.writer.wait()
    path = session.writer.path / "checkpoints" / f"step-{last}.pt"
    steps = f"step {first}" if first == last else f"{skipped} of the {last - first + 1} steps from {first} to {last}"
    raise UserError(
        f"training diverged at step {first}: {', '.join(nonfinite)} not finite; {_remedy(set(nonfinite))}. The run "
        f"skipped {steps}, where it looked (trainer.log_every={session.settings.trainer.log_every}): the last finite "
        f"weights are in {path}; trainer.on_nonfinite=skip skips such steps without stopping"
    )


def _remedy(nonfinite: set[str]) -> str:
    """What usually helps when these metrics are not finite."""
    decoder, encoder = {"distortion", "likelihood_scale"} & nonfinite, {"rate", "posterior_std"} & nonfinite
    if decoder and not encoder:
        return "raise likelihood.scale.floor if there is one, or lower optimizer.lr"
    if encoder and not decoder:
        return "lower optimizer.lr, or let beta grow from 0 with objective.warmup"
    return "lower optimizer.lr, or set trainer.clip_norm"


def is_spike(state: dict[str, float], mean: float, peak: float) -> bool:
    """Whether the highest loss of an interval lies far above those of the intervals before it.

    Args:
        state: the detector's running means, updated in place; empty at the start of a run.
        mean: mean loss of the interval's steps.
        peak: highest loss of the interval's steps.
    """
    count, usual, distance = state.get("count", 0), state.get("mean", mean), state.get("distance", peak - mean)
    least = 1e-3 * max(1.0, abs(usual))  # where losses hardly vary, rounding is not a spike
    spike = count >= PATIENCE and peak - usual > FACTOR * max(distance, least) and math.isfinite(peak)
    if not spike:  # a spike says nothing about the usual loss
        state["mean"] = DECAY * usual + (1 - DECAY) * mean if count else mean
        state["distance"] = DECAY * distance + (1 - DECAY) * (peak - mean)
    state["count"] = count + 1
    return spike
