"""Codes of images: where the encoder puts them."""

import torch

from vaex.data.dataset import Images
from vaex.evaluation.bound import ToFloat, evaluating, fixed_noise
from vaex.model import Autoencoder, Posterior


def codes(model: Autoencoder, images: Images, to_float: ToFloat, count: int, batch_size: int = 500) -> Posterior:
    """q(z|x) of the first `count` images, [N, latent_dim] on the CPU."""
    parts = []
    with evaluating(model), fixed_noise(model.device):
        for start in range(0, min(count, len(images)), batch_size):
            part = images[start : min(start + batch_size, count)].to(model.device)
            parts.append(model.encode(to_float(part.pixels), part.labels))
    return Posterior(torch.cat([part.mean for part in parts]).cpu(), torch.cat([part.log_var for part in parts]).cpu())
