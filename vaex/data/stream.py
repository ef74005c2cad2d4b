"""The order in which training images are used: shuffled epochs laid end to end."""

import torch
from torch import Tensor


class IndexStream:
    """Batches of row indices from permutation after permutation, nothing dropped and every batch full.

    A batch may straddle two epochs, so the step's shapes never change. The stream is a pure function of
    (size, seed, step): nothing needs to be saved to resume it exactly.

    Args:
        size: number of training images.
        batch_size: indices in a batch, at most `size`.
        seed: of the permutations.
        device: where the indices live.
    """

    def __init__(self, size: int, batch_size: int, seed: int, device: torch.device) -> None:
        self.size, self.batch_size, self.seed, self.device = size, batch_size, seed, device
        self._epoch = -1
        self._window = torch.empty(0, dtype=torch.int64)

    def batch(self, step: int) -> Tensor:
        """Row indices [B] of the given 0-based step."""
        epoch, start = divmod(step * self.batch_size, self.size)
        if epoch != self._epoch:
            two = torch.cat([self._permutation(epoch), self._permutation(epoch + 1)])
            self._epoch, self._window = epoch, two.to(self.device, non_blocking=True)
        return self._window[start : start + self.batch_size]

    def _permutation(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.size, generator=generator)
