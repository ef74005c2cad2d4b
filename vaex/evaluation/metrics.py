"""The measurements and metrics of vaex, and what results.json says besides them: scores and a description of the run.

To add a metric, write a function of an `Evaluation` with its `Measurement`, and add it to MEASUREMENTS.
"""

import json
from collections.abc import Mapping
from typing import Any

from vaex.config.schema import Config
from vaex.data.dataset import Dataset
from vaex.evaluation.aggregate import AGGREGATE
from vaex.evaluation.bits import PROBABILITY, image_scores
from vaex.evaluation.bound import BOUND
from vaex.evaluation.calibration import CALIBRATION
from vaex.evaluation.comparison import PREFIX, Description
from vaex.evaluation.disentanglement import DISENTANGLEMENT
from vaex.evaluation.floor import FLOOR
from vaex.evaluation.generation import GENERATION
from vaex.evaluation.metric import Metric
from vaex.evaluation.pretrained import LPIPS
from vaex.evaluation.reconstruction import RECONSTRUCTION
from vaex.model import Autoencoder

# In the order in which `vaex eval` runs them.
MEASUREMENTS = (BOUND, RECONSTRUCTION, LPIPS, GENERATION, DISENTANGLEMENT, CALIBRATION, PROBABILITY, AGGREGATE, FLOOR)

# Those of `vaex train`, in the order of the summary after training.
HEADLINES: tuple[Metric, ...] = BOUND.metrics

# All, in the order of tables: scores first.
METRICS: tuple[Metric, ...] = tuple(
    dict.fromkeys(
        metric
        for measurement in (PROBABILITY, RECONSTRUCTION, BOUND, CALIBRATION, *MEASUREMENTS)
        for metric in measurement.metrics
    )
)


def describe(
    results: Mapping[str, Any], model: Autoencoder, dataset: Dataset, config: Config, choices: Mapping[str, str]
) -> dict[str, Any]:
    """Add the scores of the image that follow from the results, and the `Description` of what they describe.

    Args:
        results: what `vaex train` or `vaex eval` has measured.
        config: the run's config.
        choices: the option chosen in each config group.
    """
    settings = dict(config.likelihood)
    if isinstance(scale := settings.get("scale"), Mapping):
        # Where a learned scale starts changes no probability.
        settings["scale"] = {name: value for name, value in scale.items() if name != "init"}
    description = Description(
        dataset=choices["dataset"],
        image_shape=dataset.image_shape,
        test_images=len(dataset.test),
        test_sha256=str(dataset.test.identity["sha256"]),
        binarize=dataset.binarize,
        dequantize=dataset.dequantize,
        conditional=model.classes > 0,
        stochastic=model.stochastic,
        likelihood=choices["likelihood"],
        scale=choices.get("likelihood/scale"),
        likelihood_settings=json.dumps(settings, sort_keys=True),
        kind=model.likelihood.kind,
        support=model.likelihood.support,
        beta=config.beta if "beta" in config.objective else None,
        prior=choices.get("prior", "standard"),
        posterior="hierarchical" if model.posterior.runs_decoder else choices.get("posterior", "diagonal"),
        rate="samples of z" if model.estimates_rate else "closed form",
    )
    identity = {PREFIX + key: value for key, value in dataset.identity("test").items()}
    return {**results, **image_scores(results, model.likelihood, dataset), **description.to_results(), **identity}
