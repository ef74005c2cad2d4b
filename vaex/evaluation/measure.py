"""What a measurement is: a function of a trained model on its test split, with the declarations of its metrics.

`vaex eval` runs those of vaex (vaex.evaluation.metrics) and those that the user names with `--metric`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from torch import Tensor

from vaex.data.dataset import Dataset, Images
from vaex.data.feed import images_on_device
from vaex.errors import UserError
from vaex.evaluation.metric import Metric
from vaex.evaluation.split import SplitBatch, ToFloat, batches, images_at_once
from vaex.model import Autoencoder
from vaex.objectives import Objective
from vaex.runs.reading import check_results


@dataclass(frozen=True)
class Evaluation:
    """A trained model, its test split, and the options of `vaex eval`.

    Attributes:
        model: the model, on its device.
        objective, dataset, corruption: those of the run; the corruption is the identity if the run has none.
        samples: samples of z for each image in the importance-weighted NLL; 0 to use the ELBO alone; None for the
            default of the posterior.
        posterior: what these are drawn from, the encoder's q(z|x) or one that is fitted to each image; None for the
            default, which is `fitted` for binary images and posterior=diagonal unless `samples` is given.
        images_per_batch: images, or images times samples of z, that are decoded at once; None for `images_at_once`.
        fid: how generated images are made, or none; None for the default, means where the images have labels.
        latent: where z of generated images comes from.
        inception: whether to compute FIDs in Inception's features too.
        lpips: whether to compute the LPIPS of reconstructions.
        disentanglement: whether to compare latents with the factors of the images.
        title: text on the progress bar.
        poll: called before each batch; may raise to stop.
        results: results of the measurements so far.
    """

    model: Autoencoder
    objective: Objective
    dataset: Dataset
    corruption: Callable[[Tensor], Tensor] = lambda x: x
    samples: int | None = None
    posterior: Literal["encoder", "fitted"] | None = None
    images_per_batch: int | None = None
    fid: Literal["means", "noise", "none"] | None = None
    latent: Literal["prior", "mixture"] = "prior"
    inception: bool = False
    lpips: bool = False
    disentanglement: bool = False
    title: str | None = None
    poll: Callable[[], None] = lambda: None
    results: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def images(self) -> Images:
        """The test split, on the model's device if it fits there."""
        return images_on_device(self.dataset.test, self.model.device, self.dataset.resident)

    @property
    def batch_size(self) -> int:
        return self.images_per_batch or images_at_once(self.dataset.image_shape)

    def batches(self, to_float: ToFloat | None = None) -> Iterator[SplitBatch]:
        """The test split in batches, in evaluation mode and with the same noise in every call.

        Args:
            to_float: converts uint8 images to x; None for the run's own conversion.
        """
        to_float = to_float or self.dataset.to_float
        return batches(self.model, self.images, to_float, batch_size=self.batch_size, poll=self.poll)


@dataclass(frozen=True)
class Measurement:
    """Some metrics, and the function that computes them.

    To add a metric to vaex, write the function with its declaration and add it to `MEASUREMENTS` in
    vaex.evaluation.metrics. A user names one of another package: `vaex eval RUN --metric mypackage.SHARPNESS`.

    Attributes:
        function: returns values under keys of results.json. It raises ValueError if the run can't have such numbers.
        metrics: the metrics that tables and reports show.
        why_not: the reason why a run has no such numbers, which is shown below the table unless it is empty; None to
            measure the run.
        requested: whether the user asked for these numbers. A ValueError of the function is then the command's one-line
            error. Otherwise the run has all its other numbers, and the reason is shown below the table.
        remedy: what the user can do about a ValueError of the function.
    """

    function: Callable[[Evaluation], dict[str, Any]]
    metrics: tuple[Metric, ...]
    why_not: Callable[[Evaluation], str | None] = lambda evaluation: None
    requested: Callable[[Evaluation], bool] = lambda evaluation: True
    remedy: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.metrics, Metric):  # a tuple of one is easily written without its comma
            object.__setattr__(self, "metrics", (self.metrics,))


def measure(evaluation: Evaluation, measurements: Iterable[Measurement]) -> tuple[dict[str, Any], list[str]]:
    """Run the measurements that apply; return the results of all, and the reasons why some were left out.

    Raises:
        UserError: if a requested measurement raises a ValueError, or any returns what results.json cannot hold.
    """
    reasons = []
    for measurement in measurements:
        reason = measurement.why_not(evaluation)
        if reason is not None:
            reasons += [reason] if reason else []
            continue
        try:
            values = measurement.function(evaluation)
        except ValueError as error:
            if not measurement.requested(evaluation):
                reasons.append(f"no {measurement.metrics[0].title}: {error}")
                continue
            raise UserError(f"{error}{measurement.remedy and '; ' + measurement.remedy}") from error
        if not isinstance(values, dict):
            name, kind = measurement.function.__name__, type(values).__name__
            raise UserError(f"{name}: returns a {kind}; a measurement returns a dict of keys and values")
        for key, value in values.items():
            if key in evaluation.results:
                raise UserError(f"{key}: two measurements return it; rename one")
            if not isinstance(value, int | float | str | list):
                raise UserError(f"{key}: is a {type(value).__name__}; a measurement returns numbers, texts and lists")
            try:
                check_results({key: value})  # or no command could read results.json again
            except ValueError as error:
                raise UserError(f"{error}; a measurement returns it under another key, such as text/NAME") from error
        evaluation.results.update(values)
    return evaluation.results, reasons
