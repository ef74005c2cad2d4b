"""What the encoder of a denoising autoencoder sees."""

import pytest
import torch

from vaex.data.corruption import GaussianNoise, Masking, SaltAndPepper

X = torch.full((400, 3, 20, 20), 0.25)


def test_masking_blackens_whole_pixels_at_the_given_rate() -> None:
    torch.manual_seed(0)
    seen = Masking(fraction=0.3)(X)
    assert ((seen == 0) | (seen == 0.25)).all()
    assert (seen == seen[:, :1]).all()
    assert (seen[:, 0] == 0).float().mean().item() == pytest.approx(0.3, abs=0.005)


def test_salt_and_pepper_are_equally_many() -> None:
    torch.manual_seed(0)
    seen = SaltAndPepper(fraction=0.2)(X)[:, 0]
    for value, share in ((0.0, 0.1), (1.0, 0.1), (0.25, 0.8)):
        assert (seen == value).float().mean().item() == pytest.approx(share, abs=0.005)


def test_gaussian_noise_has_its_moments_in_every_channel() -> None:
    torch.manual_seed(0)
    error = GaussianNoise(std=0.3)(X) - X
    assert error.mean().item() == pytest.approx(0, abs=0.003) and error.std().item() == pytest.approx(0.3, rel=0.01)
    assert torch.corrcoef(error.transpose(0, 1).flatten(1))[0, 1].abs() < 0.02


def test_nothing_is_done_at_zero_and_all_at_one() -> None:
    for corruption in (Masking(fraction=0.0), SaltAndPepper(fraction=0.0), GaussianNoise(std=0.0)):
        torch.testing.assert_close(corruption(X), X, rtol=0, atol=0)
    assert (Masking(fraction=1.0)(X) == 0).all()
    assert not (SaltAndPepper(fraction=1.0)(X) == 0.25).any()


@pytest.mark.parametrize("make", [lambda v: Masking(fraction=v), lambda v: SaltAndPepper(fraction=v)])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_fraction_that_is_none_is_refused(make, value: float) -> None:
    with pytest.raises(ValueError, match="corruption.fraction="):
        make(value)


def test_a_negative_std_is_refused() -> None:
    with pytest.raises(ValueError, match="corruption.std=-1"):
        GaussianNoise(std=-1.0)
