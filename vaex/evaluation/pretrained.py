"""Comparisons of images in networks that others have trained, as papers report them: Inception-v3 and LPIPS.

Both come with the extra `pretrained`. Their weights are downloaded on first use, into the folder of torch.hub.
"""

import hashlib
from collections.abc import Callable
from functools import cache
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vaex.errors import UserError, first_line
from vaex.evaluation.fid import FeatureStatistics, frechet_distance
from vaex.evaluation.measure import Evaluation, Measurement
from vaex.evaluation.metric import Metric

INCEPTION_FEATURES = 2048
SMALLEST_IMAGE = 32  # pixels on a side; the pooling layers of AlexNet leave nothing of smaller ones


@cache
def inception() -> nn.Module:
    """Inception-v3 with the weights of the FID's authors: uint8 [N, 3, H, W] -> features [N, 2048].

    It resizes images to 299 × 299 bilinearly, like TensorFlow 1, without a crop or anti-aliasing. On the CPU.

    Raises:
        UserError: if its weights are missing and cannot be downloaded.
        ModuleNotFoundError: if the extra `pretrained` is not installed.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = _with_weights(lambda: FrechetInceptionDistance(feature=INCEPTION_FEATURES, antialias=False), "--inception")
    network: nn.Module = metric.inception
    return network


@cache
def lpips_network() -> nn.Module:
    """LPIPS with AlexNet, version 0.1 (Zhang et al. 2018): two batches [N, 3, H, W] in [-1, 1] -> [N, 1, 1, 1].

    It sees images in their own size. On the CPU.

    Raises:
        UserError: if its weights are missing and cannot be downloaded.
        ModuleNotFoundError: if the extra `pretrained` is not installed.
    """
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    metric = _with_weights(lambda: LearnedPerceptualImagePatchSimilarity(net_type="alex"), "--lpips")
    network: nn.Module = metric.net
    return network


def _with_weights(create: Callable[[], Any], option: str) -> Any:
    try:
        return create()
    except (URLError, ConnectionError, TimeoutError) as error:
        folder = torch.hub.get_dir() + "/checkpoints"
        raise UserError(
            f"{option}: the weights cannot be downloaded ({first_line(error)}); copy their file into {folder} from a "
            f"computer that has used them, or leave {option} out"
        ) from error


def weights_hash(network: nn.Module) -> str:
    """SHA-256 of names and values of all weights, whatever file they come from."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def inception_distances(
    real: Tensor, generated: dict[str, Tensor], device: torch.device, batch_size: int = 100
) -> dict[str, Any]:
    """Fréchet distances between real and generated images in the features of Inception-v3, and what they depend on.

    Args:
        real: uint8 [N, C, H, W].
        generated: as many images for each key, uint8.
        device: where the network runs.

    Returns:
        the distance of each key; and fid_inception_features, the SHA-256 of the weights.

    Raises:
        ValueError: if there are no more images than features, or if they have neither 1 nor 3 channels.
    """
    if len(real) <= INCEPTION_FEATURES:
        raise ValueError(
            f"--inception: the covariance of {INCEPTION_FEATURES:,} features needs more test images than that, got "
            f"{len(real):,}"
        )
    network = inception().to(device)

    images = (len(generated) + 1) * len(real)
    with tqdm(total=images, desc="Inception-v3", unit=" images", disable=None, leave=False) as progress:

        def statistics(pixels: Tensor) -> FeatureStatistics:
            features = []
            for part in torch.split(pixels, batch_size):
                features.append(network(_in_color(part.to(device))).cpu())
                progress.update(len(part))
            return FeatureStatistics.of(torch.cat(features))

        of_real = statistics(real)
        distances = {key: frechet_distance(of_real, statistics(pixels)) for key, pixels in generated.items()}
    return {**distances, "fid_inception_features": weights_hash(network)}


def lpips(evaluation: Evaluation) -> dict[str, Any]:
    """LPIPS of reconstructions, the mean over images; lower is more similar. Zhang et al. 2018, eq. 1.

    Raises:
        ValueError: if the images are too small, or have another number of channels than 1 or 3.
    """
    _, height, width = evaluation.dataset.image_shape
    if min(height, width) < SMALLEST_IMAGE:
        raise ValueError(f"--lpips: needs images of at least 32 × 32 pixels, got {height} × {width}")
    network = lpips_network().to(evaluation.model.device)
    total = torch.zeros((), dtype=torch.float64, device=evaluation.model.device)
    for batch in evaluation.batches():
        mean = evaluation.model.reconstruct(batch.x, batch.labels).clamp(0, 1)
        total += network(2 * _in_color(mean) - 1, 2 * _in_color(batch.x) - 1).double().sum()
    return {
        "test/lpips": float(total) / len(evaluation.images),
        "test/lpips_network": weights_hash(network),
    }


def _in_color(images: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, 3, H, W]."""
    if images.shape[1] not in (1, 3):
        raise ValueError(f"networks of photographs need images of 1 or 3 channels, got {images.shape[1]}")
    return images.expand(-1, 3, -1, -1)


LPIPS = Measurement(
    lpips,
    (Metric("test/lpips", "LPIPS", digits=3, better="lower"),),
    lambda evaluation: None if evaluation.lpips else "",
    remedy="leave --lpips out",
)
