"""The order in which training images are used: one random permutation after another."""

import torch
from torch import Tensor


class IndexStream:
    """Batches of row indices. Each epoch is a permutation of all images; all batches have the same size.

    A batch may straddle two epochs, so no image is dropped and the shapes in a training step never change. The indices
    are a function of (size, batch_size, seed, step), so resuming a run needs no saved state.

    Args:
        size: number of training images.
        batch_size: indices in a batch, at most `size`.
        seed: of the permutations.
        device: the device of the indices.
    """

    def __init__(self, size: int, batch_size: int, seed: int, device: torch.device) -> None:
        self.size, self.batch_size, self.seed, self.device = size, batch_size, seed, device
        self._epoch = -1
        self._next = torch.empty(0, dtype=torch.int64)  # the permutation of the epoch after `_epoch`
        self._window = torch.empty(0, dtype=torch.int64)

    def batch(self, step: int) -> Tensor:
        """Row indices, int64 [B], of a step counted from 0."""
        epoch, start = divmod(step * self.batch_size, self.size)
        if epoch != self._epoch:
            current = self._next if epoch == self._epoch + 1 > 0 else self._permutation(epoch)
            self._epoch, self._next = epoch, self._permutation(epoch + 1)
            self._window = torch.cat([current, self._next]).to(self.device, non_blocking=True)
        return self._window[start : start + self.batch_size]

    def _permutation(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.size, generator=generator)
