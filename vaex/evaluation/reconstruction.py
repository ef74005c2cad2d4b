"""Errors of reconstructions, the decoder's mean at the posterior's mean, for x in [0, 1]: MSE, PSNR and SSIM."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vaex.evaluation.measure import Evaluation, Measurement
from vaex.evaluation.metric import Metric

# Wang et al. 2004, section III.B: in pixels, in pixels, and as fractions of the data range
WINDOW, WINDOW_STD, K1, K2 = 11, 1.5, 0.01, 0.03
EXACT = 1e-10  # smallest MSE, 100 dB: one perfect image must not make the mean PSNR infinite


def reconstruction_errors(evaluation: Evaluation) -> dict[str, Any]:
    """PSNR and SSIM, each the mean over images; the PSNR of the mean MSE would be lower."""
    totals = torch.zeros(2, dtype=torch.float64, device=evaluation.model.device)
    for batch in evaluation.batches():
        mean = evaluation.model.reconstruct(batch.x, batch.labels)
        mse = image_mse((mean - batch.x).double())
        totals += torch.stack([psnr(mse).sum(), ssim(mean, batch.x).sum()])
    return dict(zip(("test/psnr", "test/ssim"), (totals / len(evaluation.images)).tolist(), strict=True))


def image_mse(error: Tensor) -> Tensor:
    """Mean squared error of each image, [B, C, H, W] -> [B], in the precision of the error."""
    return error.square().mean(dim=(1, 2, 3))


def psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image's MSE, for a data range of 1: [B] -> [B]."""
    return -10 * torch.log10(mse.clamp(min=EXACT))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity, Wang et al. 2004, eq. 13, for a data range of 1: [B, C, H, W] twice -> [B], float64.

    The mean over channels and over the positions at which the 11 × 11 window lies inside the image. Smaller images get
    the largest odd window that fits.
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


MSE = Metric("test/mse", "MSE", digits=5, better="lower")
RECONSTRUCTION = Measurement(
    reconstruction_errors,
    (MSE, Metric("test/psnr", "PSNR", "dB", 1, "higher"), Metric("test/ssim", "SSIM", digits=3, better="higher")),
)
