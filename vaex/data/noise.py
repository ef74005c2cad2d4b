"""Random numbers for the images of a batch: from torch's generator, or, in an evaluation, from the images themselves.

Within `noise_of(rows)` the noise of an image depends on a seed, on the row of the image and on how many draws came
before, and on nothing else: not on the batch size, the other images, the number of processes or the device, except for
the rounding of normal numbers. Within `given_noise` it was drawn beforehand. Everywhere else, as in training, it comes
from torch's default generator.

The generator is SplitMix64 (Steele et al. 2014), split twice: for the image, and for the draw. It needs no state beyond
a counter, so that a chunk of many samples of z costs no more than its own numbers.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

NOISE_SEED = 1
WORD = 2**32

# As signed integers, because torch has no arithmetic of unsigned ones; products and sums are modulo 2^64.
GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - 2**64
FIRST_FACTOR, SECOND_FACTOR = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


def mix(state: Tensor) -> Tensor:
    """The output of SplitMix64 for its states, int64 -> int64. It is a bijection of the 64-bit integers."""
    state = (state ^ _shifted(state, 30)) * FIRST_FACTOR
    state = (state ^ _shifted(state, 27)) * SECOND_FACTOR
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, bits: int) -> Tensor:
    """Shifted to the right as an unsigned integer: torch repeats the sign, which is masked here."""
    shifted: Tensor = (state >> bits) & (2 ** (64 - bits) - 1)
    return shifted


class ImageNoise:
    """The noise of some images.

    Args:
        rows: which images, int64 [B].
        seed: of all noise.

    Attributes:
        draws: number of draws so far. `samples` samples at once are as many draws.
    """

    def __init__(self, rows: Tensor, seed: int = NOISE_SEED) -> None:
        self.keys = mix(mix(torch.full_like(rows, seed)) + GOLDEN_GAMMA * rows)
        self.draws = 0

    def __len__(self) -> int:
        return len(self.keys)

    def uniform(self, samples: int, size: int) -> Tensor:
        """Multiples of 2^-24 from U[0, 1), float32 [samples, B, size]."""
        first, second = self._words(samples, size)
        words = torch.cat([first, second], dim=-1)[..., :size]
        return (words >> 8).float() * 2**-24

    def normal(self, samples: int, size: int) -> Tensor:
        """Samples from N(0, 1), float32 [samples, B, size]. Box & Muller 1958."""
        first, second = self._words(samples, size)
        radius = torch.sqrt(-2 * torch.log((first.float() + 0.5) / WORD))
        angle = (2 * math.pi / WORD) * second.float()
        return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)[..., :size]

    def _words(self, samples: int, size: int) -> tuple[Tensor, Tensor]:
        """Twice half as many integers below WORD as there are numbers to make, int64 [samples, B, (size + 1) // 2]."""
        device = self.keys.device
        draws = torch.arange(self.draws, self.draws + samples, device=device)
        self.draws += samples
        keys = mix(self.keys + GOLDEN_GAMMA * draws[:, None])  # [samples, B]
        counters = torch.arange((size + 1) // 2, device=device)
        words = mix(keys[..., None] + GOLDEN_GAMMA * counters)
        return _shifted(words, 32), words & (WORD - 1)


@dataclass(frozen=True)
class Draw:
    """One draw from torch's default generator: N(0, 1) if `normal`, else U[0, 1); float32 of this shape."""

    normal: bool
    shape: tuple[int, ...]

    def fill(self, out: Tensor, generator: torch.Generator) -> None:
        """Make the same draw from another generator."""
        if self.normal:
            out.normal_(generator=generator)
        else:
            out.uniform_(generator=generator)


_images: ImageNoise | None = None  # those of the innermost `noise_of`
_recorded: list[Draw] | None = None  # by the innermost `recorded_noise`
_given: Iterator[Tensor] | None = None  # to the innermost `given_noise`


@contextmanager
def noise_of(rows: Tensor) -> Iterator[None]:
    """Within the body, noise for len(rows) images belongs to the images with these rows, int64 [B]."""
    global _images
    outer, _images = _images, ImageNoise(rows)
    try:
        yield
    finally:
        _images = outer


@contextmanager
def recorded_noise() -> Iterator[list[Draw]]:
    """The draws that the body makes from torch's default generator, in their order."""
    global _recorded
    outer, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = outer


@contextmanager
def given_noise(values: Iterable[Tensor]) -> Iterator[None]:
    """Within the body, these are the draws. The body must make as many, in this order and of these shapes."""
    global _given
    outer, _given = _given, iter(values)
    try:
        yield
    finally:
        _given = outer


def _draw(*, normal: bool, shape: tuple[int, ...], device: torch.device) -> Tensor:
    if _given is not None:
        value = next(_given)
        if value.shape != shape:
            raise ValueError(f"noise of shape {list(value.shape)} was given, and {list(shape)} is needed")
        return value
    if _recorded is not None:
        _recorded.append(Draw(normal, shape))
    return (torch.randn if normal else torch.rand)(shape, device=device)


def uniform_like(x: Tensor) -> Tensor:
    """Samples from U[0, 1) for images x [B, ...], of the shape and on the device of x, float32."""
    if _images is None or len(_images) != len(x):
        return _draw(normal=False, shape=tuple(x.shape), device=x.device)
    return _images.uniform(1, x.shape[1:].numel()).view(x.shape)


def normal_like(x: Tensor) -> Tensor:
    """Samples from N(0, 1) for images x [B, ...], of the shape and on the device of x, float32."""
    if _images is None or len(_images) != len(x):
        return _draw(normal=True, shape=tuple(x.shape), device=x.device)
    return _images.normal(1, x.shape[1:].numel()).view(x.shape)


def normal(samples: int, images: int, size: int, *, device: torch.device) -> Tensor:
    """`samples` samples from N(0, 1) for each of the images, [samples, images, size]."""
    if _images is None or len(_images) != images:
        return _draw(normal=True, shape=(samples, images, size), device=device)
    return _images.normal(samples, size)
