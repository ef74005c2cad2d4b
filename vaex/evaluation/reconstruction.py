"""Errors of a reconstruction, the decoder's mean at the posterior's mean, for x in [0, 1]: MSE, PSNR, SSIM."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vaex.data.dataset import Images
from vaex.evaluation.bound import ToFloat, evaluating, fixed_noise
from vaex.model import Autoencoder

# Wang et al. 2004, section III.B
WINDOW, WINDOW_STD, K1, K2 = 11, 1.5, 0.01, 0.03  # pixels, pixels, and fractions of the data range
EXACT = 1e-10  # an MSE below this counts as this, 100 dB, so that one perfect image doesn't make the mean infinite


@dataclass(frozen=True)
class ReconstructionErrors:
    """Means over the images of the split.

    PSNR is taken of each image's own MSE and then averaged, in dB. The PSNR of the mean MSE would be lower.
    """

    mse: float
    psnr: float
    ssim: float


def reconstruction_errors(
    model: Autoencoder,
    images: Images,
    to_float: ToFloat,
    *,
    batch_size: int = 1000,
    poll: Callable[[], None] = lambda: None,
) -> ReconstructionErrors:
    """Every image of the split once. `poll` is called before each batch, and may raise to stop."""
    device = model.device
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    with evaluating(model), fixed_noise(device):
        for start in range(0, len(images), batch_size):
            poll()
            batch = images[start : start + batch_size].to(device)
            x = to_float(batch.pixels)
            mean = model.reconstruct(x, batch.labels)
            mse = mean_squared_error(mean, x)
            totals += torch.stack([mse.sum(), psnr(mse).sum(), ssim(mean, x).sum()])
    return ReconstructionErrors(*(totals / len(images)).tolist())


def mean_squared_error(a: Tensor, b: Tensor) -> Tensor:
    """[B, C, H, W] twice -> [B], float64."""
    return (a - b).double().square().mean(dim=(1, 2, 3))


def psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image's MSE, for a data range of 1: [B] -> [B]."""
    return -10 * torch.log10(mse.clamp(min=EXACT))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity, Wang et al. 2004, eq. 13, for a data range of 1: [B, C, H, W] twice -> [B], float64.

    The mean over channels and over the places where the 11 × 11 window lies wholly inside the image; images smaller
    than that get the largest odd window that fits. Local variances are E[a²] - E[a]² under the window.
    """
    size = min(WINDOW, *a.shape[-2:])
    size -= 1 - size % 2
    offsets = torch.arange(size, dtype=torch.float64, device=a.device) - size // 2
    window = torch.exp(-0.5 * (offsets / WINDOW_STD).square())
    window = window / window.sum()

    def local_mean(values: Tensor) -> Tensor:
        flat = values.flatten(0, 1).unsqueeze(1)  # [B·C, 1, H, W]
        rows = F.conv2d(flat, window.view(1, 1, -1, 1))
        return F.conv2d(rows, window.view(1, 1, 1, -1)).view(*values.shape[:2], -1)

    a, b = a.double(), b.double()  # E[a²] - E[a]² cancels, and a GPU may round float32 convolutions to TF32
    mean_a, mean_b = local_mean(a), local_mean(b)
    variance_a = local_mean(a * a) - mean_a.square()
    variance_b = local_mean(b * b) - mean_b.square()
    covariance = local_mean(a * b) - mean_a * mean_b
    c1, c2 = K1**2, K2**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    contrast_structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return (luminance * contrast_structure).mean(dim=(1, 2))
