"""Metrics in the features of pretrained networks: Fréchet distances in those of Inception-v3, and LPIPS.

Both networks come with the extra `pretrained`. Their weights are downloaded on first use, into the folder of torch.hub.
"""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vaex.errors import UserError, first_line
from vaex.evaluation.fid import FeatureStatistics, frechet_distance
from vaex.evaluation.measure import Evaluation, Measurement
from vaex.evaluation.metric import Metric

INCEPTION_FEATURES = 2048
INCEPTION_FILE, ALEXNET_FILE = "weights-inception-2015-12-05-6726825d.pth", "alexnet-owt-7be5be79.pth"
SMALLEST_IMAGE = 31  # pixels on a side; the pooling layers of AlexNet leave nothing of smaller ones


@cache
def inception() -> nn.Module:
    """Inception-v3 with the weights of the FID's authors: uint8 [N, 3, H, W] -> features [N, 2048].

    It resizes images to 299 × 299 bilinearly, like TensorFlow 1, without a crop or anti-aliasing. On the CPU.

    Raises:
        UserError: if its weights are missing and cannot be downloaded, or are damaged.
        ModuleNotFoundError: if the extra `pretrained` is not installed.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = _with_weights(
        lambda: FrechetInceptionDistance(feature=INCEPTION_FEATURES, antialias=False), "--inception", INCEPTION_FILE
    )
    network: nn.Module = metric.inception
    return network


@cache
def lpips_network() -> nn.Module:
    """LPIPS with AlexNet, version 0.1 (Zhang et al. 2018): two batches [N, 3, H, W] in [-1, 1] -> [N, 1, 1, 1].

    Images are not resized. On the CPU.

    Raises:
        UserError: if its weights are missing and cannot be downloaded, or are damaged.
        ModuleNotFoundError: if the extra `pretrained` is not installed.
    """
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    metric = _with_weights(lambda: LearnedPerceptualImagePatchSimilarity(net_type="alex"), "--lpips", ALEXNET_FILE)
    network: nn.Module = metric.net
    return network


def _with_weights(create: Callable[[], Any], option: str, name: str) -> Any:
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    try:
        return create()
    except Exception as error:  # of the network, of the file system, or one of many kinds that a damaged file causes
        reason = first_line(error)
        if path.exists():
            raise UserError(f"{option}: {path}: cannot be read ({reason}); delete it to download it again") from error
        raise UserError(
            f"{option}: {name} cannot be downloaded ({reason}); copy it to {path.parent} from another computer, or "
            f"leave {option} out"
        ) from error


def check_images(option: str, image_shape: tuple[int, int, int], count: int) -> None:
    """Raises UserError if the networks cannot compare so many test images of this shape.

    Args:
        option: --inception or --lpips.
        image_shape: (C, H, W).
        count: number of test images.
    """
    channels, height, width = image_shape
    if channels not in (1, 3):
        raise UserError(f"{option}: needs images of 1 or 3 channels, got {channels}; leave it out")
    if option == "--inception" and count <= INCEPTION_FEATURES:
        raise UserError(
            f"--inception: the covariance of {INCEPTION_FEATURES:,} features needs more than {INCEPTION_FEATURES:,} "
            f"test images, got {count:,}; leave it out"
        )
    if option == "--lpips" and min(height, width) < SMALLEST_IMAGE:
        raise UserError(
            f"--lpips: needs images of at least {SMALLEST_IMAGE} × {SMALLEST_IMAGE} pixels, got {height} × {width}; "
            "leave it out"
        )


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
        UserError: see `check_images`.
    """
    channels, height, width = real.shape[1:]
    check_images("--inception", (channels, height, width), len(real))
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
        UserError: see `check_images`.
    """
    check_images("--lpips", evaluation.dataset.image_shape, len(evaluation.images))
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
    """[N, 1 or 3, H, W] -> [N, 3, H, W]."""
    return images.expand(-1, 3, -1, -1)


LPIPS = Measurement(
    lpips,
    (Metric("test/lpips", "LPIPS", digits=3, better="lower", comparable="lpips"),),
    lambda evaluation: None if evaluation.lpips else "",
)
