"""Loss spikes: a step whose loss stands out far above what is usual for the run."""

import math

MEMORY = 0.9  # share of the past in the running numbers
PATIENCE = 5  # intervals before any is called a spike
FACTOR = 10.0  # times the usual distance of the highest loss from the mean


def spike(state: dict[str, float], mean: float, peak: float) -> bool:
    """Whether the highest loss of an interval is a spike beside the intervals before; takes the interval in.

    Args:
        state: of the detector, updated in place; starts empty.
        mean, peak: the mean and the highest loss of the interval's steps.
    """
    count, usual, distance = state.get("count", 0), state.get("mean", mean), state.get("distance", peak - mean)
    least = 1e-3 * max(1.0, abs(usual))  # where losses hardly vary, rounding is no spike
    found = count >= PATIENCE and peak - usual > FACTOR * max(distance, least) and math.isfinite(peak)
    if not found:  # a spike says nothing of what is usual
        state["mean"] = MEMORY * usual + (1 - MEMORY) * mean if count else mean
        state["distance"] = MEMORY * distance + (1 - MEMORY) * (peak - mean)
    state["count"] = count + 1
    return found
