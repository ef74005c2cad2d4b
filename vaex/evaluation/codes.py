"""Codes of images: the posterior of each."""

from collections.abc import Callable

import torch

from vaex.data.dataset import Images
from vaex.evaluation.split import ToFloat, batches
from vaex.model import Autoencoder, Posterior


def codes(
    model: Autoencoder,
    images: Images,
    to_float: ToFloat,
    *,
    batch_size: int = 500,
    poll: Callable[[], None] = lambda: None,
) -> Posterior:
    """q(z|x) of every image, [N, latent_dim] on the CPU. `poll` is called before each batch and may raise to stop."""
    split = batches(model, images, to_float, batch_size=batch_size, poll=poll)
    parts = [model.encode(batch.x, batch.labels) for batch in split]
    return Posterior(torch.cat([part.mean for part in parts]).cpu(), torch.cat([part.log_var for part in parts]).cpu())
