"""Freezing scales that are computed from the error: a scale that depends on the test image would give no bound."""

import torch

from vaex.data.dataset import Images
from vaex.evaluation.split import ToFloat, batches, evenly_spaced
from vaex.likelihoods.location_scale import DiscretizedDistribution, LocationScaleDistribution
from vaex.model import Autoencoder

IMAGES = 10_000  # the relative error of the scale is then below 1e-3, and the images' errors fit in memory


def freeze_scales(model: Autoencoder, train: Images, to_float: ToFloat, batch_size: int = 1000) -> None:
    """Set a scale that depends on x to its evaluation value, from training images with one sample of z each.

    Other scales stay as they are. `train` may be on any device.
    """
    if not model.likelihood.depends_on_x:
        return
    errors = []
    for batch in batches(model, train, to_float, batch_size=batch_size, subset=evenly_spaced(train, IMAGES)):
        z = model.encode(batch.x, batch.labels).rsample(1)[0]
        distribution = model.decode(z, batch.labels)
        assert isinstance(distribution, LocationScaleDistribution | DiscretizedDistribution)
        errors.append(batch.x - distribution.loc)
    model.likelihood.freeze(torch.cat(errors))
