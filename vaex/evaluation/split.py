"""One pass over a split, in batches on the model's device: what every measurement and `vaex train` iterate over."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from vaex.data.dataset import Images
from vaex.data.noise import NOISE_SEED, noise_of
from vaex.model import Autoencoder

ToFloat = Callable[[Tensor], Tensor]  # uint8 [B, C, H, W] -> float32 [B, C, H, W]
Totals = dict[str, Tensor]  # float64, sums over images


@dataclass(frozen=True)
class Share:
    """The batches of one of `size` processes: every size-th batch, starting with batch number `rank`.

    `add_up` replaces the totals of this process by the sums over all processes. A process without any batch has none.
    """

    rank: int = 0
    size: int = 1
    add_up: Callable[[Totals], Totals] = lambda totals: totals


ALL = Share()


@dataclass(frozen=True)
class SplitBatch:
    """Images of a split: their rows within it, x [B, C, H, W] float32 in [0, 1] and labels [B] int64."""

    rows: slice
    x: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.x)


def batches(
    model: Autoencoder,
    images: Images,
    to_float: ToFloat,
    *,
    batch_size: int = 1000,
    subset: Tensor | None = None,
    poll: Callable[[], None] = lambda: None,
    share: Share = ALL,
) -> Iterator[SplitBatch]:
    """Every image once, in batches on the model's device.

    The body of the loop runs in evaluation mode, without gradients and with noise that is the same in every call. Noise
    from vaex.data.noise, such as that of x and z, belongs to the image: no batch size or share changes it. Torch's own
    generator is seeded for each batch by its first row. The model's mode and the random state are restored when the
    loop ends, also by `break` or by an exception.

    Args:
        batch_size: images in a batch; the last batch may be smaller.
        subset: indices of the images to use, in this order; None for all. A batch's `rows` are then rows of `subset`.
        poll: called before each batch, equally often in all processes of `share`. It may raise to stop.
        share: the batches of this process.
    """
    device = model.device
    starts = range(0, len(images) if subset is None else len(subset), batch_size)
    indices = torch.arange(len(images), device=images.pixels.device) if subset is None else subset
    with evaluating(model):
        for number in range(share.rank, len(starts) + share.rank, share.size):
            poll()
            if number >= len(starts):
                continue  # in the last round only some processes have a batch
            rows = slice(starts[number], starts[number] + batch_size)
            batch = images[rows if subset is None else subset[rows]].to(device)
            with fixed_noise(device, NOISE_SEED + rows.start), noise_of(indices[rows].to(device)):
                yield SplitBatch(rows, to_float(batch.pixels), batch.labels)


def images_at_once(image_shape: tuple[int, ...]) -> int:
    """Images in a batch of an evaluation: 1,000 small images, or fewer large ones, whose activations need memory."""
    return max(16, min(1000, 2**20 // math.prod(image_shape)))


def evenly_spaced(images: Images, most: int) -> Tensor:
    """Indices of about `most` images, or of all of them if there are fewer, on the device of the images."""
    return torch.arange(0, len(images), max(1, len(images) // most), device=images.pixels.device)


@contextmanager
def fixed_noise(device: torch.device, seed: int = NOISE_SEED) -> Iterator[None]:
    """Seed the random state for the body; afterwards restore the state from before."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def evaluating(model: Autoencoder) -> Iterator[None]:
    """Evaluation mode without gradients for the body; afterwards restore the model's mode."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
