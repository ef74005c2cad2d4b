"""Loss spikes: steps whose loss lies far above the usual loss of the run."""

import math

DECAY = 0.9  # of the running means
PATIENCE = 5  # intervals before any is called a spike
FACTOR = 10.0  # times the usual distance of the highest loss from the mean


def is_spike(state: dict[str, float], mean: float, peak: float) -> bool:
    """Whether the highest loss of an interval is a spike, compared with the intervals before it.

    Args:
        state: running means of the detector, updated in place; empty at the start of a run.
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
