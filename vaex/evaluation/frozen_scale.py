"""Scales that are computed from the error, frozen for evaluation: one that sees the test image gives no bound."""

import torch

from vaex.data.dataset import Images
from vaex.evaluation.bound import ToFloat, evaluating, fixed_noise
from vaex.likelihoods.location_scale import DiscretizedDistribution, LocationScale, LocationScaleDistribution
from vaex.model import Autoencoder

IMAGES = 10_000  # of the training set: the scale's relative error is then below 1e-3, and their errors fit in memory


def freeze_scales(model: Autoencoder, train: Images, to_float: ToFloat, batch_size: int = 1000) -> None:
    """Set an optimal scale's evaluation value from training images, evenly spaced, with one draw of z each.

    Other scales are left alone. `train` may be on any device.
    """
    likelihood = model.likelihood
    if not (isinstance(likelihood, LocationScale) and likelihood.scale.depends_on_x):
        return
    device = model.device
    chosen = torch.arange(0, len(train), max(1, len(train) // IMAGES), device=train.pixels.device)
    errors = []
    with evaluating(model), fixed_noise(device):
        for rows in torch.split(chosen, batch_size):
            batch = train[rows].to(device)
            x, labels = to_float(batch.pixels), batch.labels
            distribution = model.decode(model.encode(x, labels).rsample(1)[0], labels)
            assert isinstance(distribution, LocationScaleDistribution | DiscretizedDistribution)
            errors.append(x - distribution.loc)
    likelihood.freeze(torch.cat(errors))
