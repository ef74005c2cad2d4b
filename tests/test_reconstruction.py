"""PSNR and SSIM against references in float64, and over a split."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.signal import convolve2d
from torch import Tensor, nn

from vaex.data.dataset import Dataset, Images, Source
from vaex.evaluation.measure import Evaluation
from vaex.evaluation.reconstruction import image_mse, psnr, reconstruction_errors, ssim
from vaex.likelihoods.gaussian import Gaussian
from vaex.likelihoods.scale import Fixed
from vaex.model import Autoencoder
from vaex.objectives import AE

Array = NDArray[np.float64]


def reference_ssim(a: Array, b: Array, size: int = 11) -> float:
    """One channel, window by window: Wang et al. 2004, eqs. 13 to 16, with moments about the weighted mean."""
    offsets = np.arange(size) - size // 2
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for top in range(a.shape[0] - size + 1):
        for left in range(a.shape[1] - size + 1):
            p, q = (image[top : top + size, left : left + size] for image in (a, b))
            mean_p, mean_q = (window * p).sum(), (window * q).sum()
            variance_p, variance_q = (window * (p - mean_p) ** 2).sum(), (window * (q - mean_q) ** 2).sum()
            covariance = (window * (p - mean_p) * (q - mean_q)).sum()
            numerator = (2 * mean_p * mean_q + 0.01**2) * (2 * covariance + 0.03**2)
            values.append(numerator / ((mean_p**2 + mean_q**2 + 0.01**2) * (variance_p + variance_q + 0.03**2)))
    return float(np.mean(values))


def pairs(*shape: int) -> tuple[Tensor, Tensor]:
    """Smooth images and noisy versions of them."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(*shape, generator=generator).double().numpy()
    kernel = np.ones((5, 5)) / 25
    smooth = np.stack([[convolve2d(c, kernel, mode="same") for c in image] for image in noise])
    a = torch.from_numpy(smooth).float()
    return a, (a + 0.1 * torch.randn(*shape, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize(
    "shape, size", [((2, 3, 17, 14), 11), ((2, 1, 11, 30), 11), ((3, 1, 8, 10), 7), ((1, 2, 5, 9), 5)]
)
def test_ssim_is_the_papers(shape: tuple[int, int, int, int], size: int) -> None:
    a, b = pairs(*shape)
    expected = [
        np.mean([reference_ssim(p.double().numpy(), q.double().numpy(), size) for p, q in zip(x, y, strict=True)])
        for x, y in zip(a, b, strict=True)
    ]
    assert 0.1 < min(expected) < 0.95
    np.testing.assert_allclose(ssim(a, b).numpy(), expected, rtol=1e-9)


def test_ssim_of_an_image_with_itself_is_one_and_with_its_negative_is_negative() -> None:
    a, _ = pairs(2, 1, 16, 16)
    torch.testing.assert_close(ssim(a, a), torch.ones(2, dtype=torch.float64))
    assert (ssim(a, a.mean() * 2 - a) < 0).all()


def test_ssim_of_flat_images_is_their_luminance_term() -> None:
    a, b = torch.full((1, 1, 12, 12), 0.2), torch.full((1, 1, 12, 12), 0.6)
    assert ssim(a, b).item() == pytest.approx((2 * 0.2 * 0.6 + 1e-4) / (0.04 + 0.36 + 1e-4), rel=1e-6)


def test_psnr_of_known_errors() -> None:
    assert psnr(torch.tensor([0.01, 1.0, 1e-4], dtype=torch.float64)).tolist() == pytest.approx([20.0, 0.0, 40.0])
    assert psnr(torch.zeros(1)).item() == pytest.approx(100.0)  # exact: as an MSE of 1e-10


class Constant(nn.Module):
    """Encodes nothing and decodes a flat image."""

    def __init__(self, features: int, value: float, *shape: int) -> None:
        super().__init__()
        self.features, self.value, self.shape = features, value, shape

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return torch.full((len(x), *(self.shape or (self.features,))), self.value)


def test_over_a_split_psnr_is_averaged_over_images_and_nothing_is_dropped() -> None:
    shape = (1, 12, 12)
    likelihood = Gaussian(image_shape=shape, scale=Fixed(image_shape=shape, value=0.1), bounded_mean=False)
    model = Autoencoder(encoder=Constant(4, 0.0), decoder=Constant(0, 0.5, *shape), likelihood=likelihood, latent_dim=2)
    levels = torch.tensor([0, 51, 102, 204, 255], dtype=torch.uint8)
    images = Images(levels.view(5, 1, 1, 1).repeat(1, *shape), torch.zeros(5, dtype=torch.int64))
    mse = [(k / 255 - 0.5) ** 2 for k in levels.tolist()]
    x = images.pixels / 255
    dataset = Dataset(source=Source(images, images, 1), validation=0, binarize="none", dequantize="none")
    for batch_size in (2, 5):
        errors = reconstruction_errors(Evaluation(model, AE(), dataset, images_per_batch=batch_size))
        assert errors["test/psnr"] == pytest.approx(-10 * sum(map(math.log10, mse)) / 5, rel=1e-6)
        assert errors["test/ssim"] == pytest.approx(ssim(torch.full_like(x, 0.5), x).mean().item(), rel=1e-9)
    assert image_mse(0.5 - x).tolist() == pytest.approx(mse, rel=1e-6)
