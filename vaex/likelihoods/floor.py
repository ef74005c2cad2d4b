"""One statement from which every floor of a scale, cap of a concentration and bound of a logit follows.

A pixel whose level k is known is x = (k+u)/256 with u uniform on [0, 1] for a density, and the level itself for a mass.
The best a likelihood can do for such a pixel is a constant narrow distribution. A limit on how narrow it may be costs
at most `MOST_BITS` above that, averaged over u, at every level. The statement is relative to the best, because the
best differs: a Gaussian needs 0.25 bits/dim for a known level, a Laplace 0.44, and a mass none.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

MOST_BITS = {"density": 0.05, "mass": 0.01}  # bits/dim

# log scale [N], float64 -> bits/dim of a pixel whose level is known, [N]. It has one minimum, or decreases throughout.
LevelBits = Callable[[Tensor], Tensor]

LOWEST, HIGHEST = math.log(1e-6), math.log(10.0)  # log scales of the search
POINTS = 101  # of a grid, which is narrowed to the two intervals around the solution in each round
ROUNDS = 5
AT_FLOOR = 1.05  # a scale below this multiple of its floor counts as being at it


def highest_floor(level_bits: LevelBits, most_bits: float) -> float:
    """The highest floor that costs at most `most_bits`, rounded down to three digits, the same on every machine.

    Raises:
        ValueError: there is none, since the bits are not finite.
    """
    low, best = _minimum(level_bits)
    high = HIGHEST
    for _ in range(ROUNDS):
        grid = torch.linspace(low, high, POINTS, dtype=torch.float64)
        within = int((level_bits(grid) - best <= most_bits).long().cumprod(0).sum())
        if not 0 < within < POINTS:
            raise ValueError(
                f"likelihood.scale.floor=null: no floor costs {most_bits} bits/dim on a pixel whose level is known; "
                "set likelihood.scale.floor to a number"
            )
        low, high = grid[within - 1].item(), grid[within].item()
    exponent = math.floor(low / math.log(10)) - 2
    return float(f"{math.floor(math.exp(low) / 10.0**exponent)}e{exponent}")


def cost_of_floor(level_bits: LevelBits, floor: float) -> float:
    """Bits/dim that a floor costs on a pixel whose level is known; 0 if it is below the best scale."""
    log_scale, best = _minimum(level_bits)
    return level_bits(torch.tensor([max(math.log(floor), log_scale)], dtype=torch.float64)).item() - best


def _minimum(level_bits: LevelBits) -> tuple[float, float]:
    """The log scale of the fewest bits, and those."""
    low, high = LOWEST, HIGHEST
    for _ in range(ROUNDS):
        grid = torch.linspace(low, high, POINTS, dtype=torch.float64)
        bits = level_bits(grid)
        best = int(bits.argmin())
        low, high = grid[max(best - 1, 0)].item(), grid[min(best + 1, POINTS - 1)].item()
    return grid[best].item(), bits[best].item()
