"""The pass over a split: every image once, fixed noise, shares of processes, and nothing changed afterwards."""

import pytest
import torch
from torch import Tensor, nn

from vaex.data.dataset import Images
from vaex.data.noise import uniform_like
from vaex.evaluation.split import Share, SplitBatch, batches, evenly_spaced
from vaex.likelihoods.gaussian import Gaussian
from vaex.likelihoods.scale import Fixed
from vaex.model import Autoencoder

SHAPE = (1, 2, 2)
IMAGES = Images(torch.arange(23 * 4, dtype=torch.uint8).view(23, *SHAPE), torch.arange(23))


def model() -> Autoencoder:
    likelihood = Gaussian(image_shape=SHAPE, scale=Fixed(image_shape=SHAPE, value=1.0), bounded_mean=False)
    return Autoencoder(encoder=nn.Linear(4, 2), decoder=nn.Identity(), likelihood=likelihood, latent_dim=1)


def noisy(pixels: Tensor) -> Tensor:
    return pixels / 255 + uniform_like(pixels / 255)


def noise(batch: SplitBatch) -> Tensor:
    return batch.x - IMAGES.pixels[batch.rows] / 255


def test_every_image_once_without_gradients_and_with_the_same_noise_in_every_call() -> None:
    autoencoder = model()
    for mode in (True, False):
        autoencoder.train(mode)
        state = torch.get_rng_state()
        passes = []
        for _ in range(2):
            passes.append([])
            for batch in batches(autoencoder, IMAGES, noisy, batch_size=10):
                assert not autoencoder.training and not torch.is_grad_enabled()
                passes[-1].append(batch)
        first, again = passes
        assert [len(batch) for batch in first] == [10, 10, 3]
        assert torch.equal(torch.cat([batch.labels for batch in first]), IMAGES.labels)
        assert all(torch.equal(a.x, b.x) for a, b in zip(first, again, strict=True))
        assert not torch.allclose(noise(first[0]), noise(first[1]))
        assert autoencoder.training == mode and torch.is_grad_enabled() and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("how", ["break", "raise", "poll"])
def test_the_mode_and_the_random_state_are_restored_however_the_loop_ends(how: str) -> None:
    autoencoder = model().train()
    state = torch.get_rng_state()

    def poll() -> None:
        if how == "poll":
            raise InterruptedError

    def loop() -> None:
        for _ in batches(autoencoder, IMAGES, noisy, batch_size=10, poll=poll):
            if how == "raise":
                raise InterruptedError
            break

    if how == "break":
        loop()
    else:
        with pytest.raises(InterruptedError):
            loop()
    assert autoencoder.training and torch.is_grad_enabled() and torch.equal(torch.get_rng_state(), state)


def test_shares_cover_all_batches_with_the_noise_of_a_single_process_and_equally_many_polls() -> None:
    whole = {batch.rows.start: batch.x for batch in batches(model(), IMAGES, noisy, batch_size=5)}
    shared: dict[int, Tensor] = {}
    for rank in range(3):
        polls: list[int] = []
        split = batches(
            model(),
            IMAGES,
            noisy,
            batch_size=5,
            poll=lambda polls=polls: polls.append(1),
            share=Share(rank, 3),
        )
        shared |= {batch.rows.start: batch.x for batch in split}
        assert len(polls) == 2  # five batches for three processes
    assert shared.keys() == whole.keys()
    assert all(torch.equal(shared[start], whole[start]) for start in whole)


def test_the_noise_of_an_image_depends_on_its_row_alone() -> None:
    (whole,) = batches(model(), IMAGES, noisy, batch_size=100)
    for batch_size in (1, 4, 22):
        parts = list(batches(model(), IMAGES, noisy, batch_size=batch_size))
        assert torch.equal(torch.cat([batch.x for batch in parts]), whole.x)
    subset = torch.tensor([22, 3, 7])
    for batch_size in (1, 2, 3):
        parts = list(batches(model(), IMAGES, noisy, batch_size=batch_size, subset=subset))
        assert torch.equal(torch.cat([batch.x for batch in parts]), whole.x[subset])


def test_noise_from_torch_is_seeded_for_each_batch_by_its_first_row() -> None:
    def torchs(pixels: Tensor) -> Tensor:
        return torch.rand(pixels.shape)

    by_row = {batch.rows.start: batch.x for batch in batches(model(), IMAGES, torchs, batch_size=6)}
    (first, second) = batches(model(), IMAGES, torchs, batch_size=12)
    assert torch.equal(by_row[0], first.x[:6]) and torch.equal(by_row[12], second.x[:6])
    assert not torch.equal(by_row[0], by_row[6])


def test_a_subset_is_used_in_its_order() -> None:
    subset = torch.tensor([22, 3, 7])
    first, second = batches(model(), IMAGES, noisy, batch_size=2, subset=subset)
    assert first.labels.tolist() == [22, 3] and second.labels.tolist() == [7]
    assert second.rows == slice(2, 4)
    assert evenly_spaced(IMAGES, 5).tolist() == [0, 4, 8, 12, 16, 20]
    assert evenly_spaced(IMAGES, 100).tolist() == list(range(23))
