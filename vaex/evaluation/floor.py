"""What the limit on how narrow a likelihood may be costs on the training images: its floor, cap or bound."""

import torch

from vaex.data.dataset import Images
from vaex.evaluation.measure import Measurement
from vaex.evaluation.metric import Metric
from vaex.evaluation.split import ToFloat, batches, evenly_spaced, images_at_once
from vaex.model import Autoencoder

IMAGES = 2_000


def floor_cost(model: Autoencoder, train: Images, to_float: ToFloat) -> dict[str, float]:
    """Means over training images, channels and pixels, with one sample of z for each image.

    Returns:
        train/floor_share, the share at the limit (`Likelihood.at_floor`); and train/floor_bits, an upper bound on what
        that costs in bits/dim: the share times the cost on a pixel whose level is known. Nothing without a limit.
    """
    subset = evenly_spaced(train, IMAGES)
    share = torch.zeros((), dtype=torch.float64, device=model.device)
    batch_size = images_at_once(train.pixels.shape[1:])
    for batch in batches(model, train, to_float, batch_size=batch_size, subset=subset):
        z = model.encode(batch.x, batch.labels).rsample(1)[0]
        at_floor = model.likelihood.at_floor(model.decode(z, batch.labels))
        if at_floor is None:
            return {}
        share += at_floor.double().mean() * len(batch) / len(subset)
    bits = model.likelihood.floor_bits()
    return {"train/floor_share": share.item()} | ({} if bits is None else {"train/floor_bits": share.item() * bits})


FLOOR = Measurement(
    lambda evaluation: floor_cost(evaluation.model, evaluation.dataset.train, evaluation.dataset.to_float),
    (
        Metric("train/floor_share", "at the floor", column=""),
        Metric("train/floor_bits", "cost of the floor", "bits/dim", column=""),
    ),
)
