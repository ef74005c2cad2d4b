"""Codes of images: where the encoder puts them."""

from collections.abc import Callable

import torch

from vaex.data.dataset import Images
from vaex.evaluation.bound import ToFloat, evaluating, fixed_noise
from vaex.model import Autoencoder, Posterior


def codes(
    model: Autoencoder,
    images: Images,
    to_float: ToFloat,
    *,
    batch_size: int = 500,
    poll: Callable[[], None] = lambda: None,
) -> Posterior:
    """q(z|x) of every image, [N, latent_dim] on the CPU. `poll` is called before each batch, and may raise to stop."""
    parts = []
    with evaluating(model), fixed_noise(model.device):
        for start in range(0, len(images), batch_size):
            poll()
            part = images[start : start + batch_size].to(model.device)
            parts.append(model.encode(to_float(part.pixels), part.labels))
    return Posterior(torch.cat([part.mean for part in parts]).cpu(), torch.cat([part.log_var for part in parts]).cpu())
