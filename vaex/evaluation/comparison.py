"""Which runs' numbers mean the same thing, according to the description in results.json. Imports no torch.

`vaex train` and `vaex eval` write a `Description`; tables and reports read it back and derive nothing from names or
configs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from vaex.evaluation.metric import Comparison, Metric, Results

PREFIX = "about/"  # of a description's keys in results.json
COLLAPSED_RATE = 0.1  # nats


@dataclass(frozen=True)
class Description:
    """What the test numbers of a run describe.

    Attributes:
        dataset: option of the group.
        image_shape: channels, height, width.
        test_images: images in the test split.
        test_sha256: hash of the test split's pixels.
        binarize, dequantize: the dataset's options.
        conditional: whether the model is given the labels.
        stochastic: whether there is a posterior distribution.
        likelihood: option of the group.
        scale: option of the scale rule; None where the likelihood has none.
        likelihood_settings: every setting of the likelihood on which its log-probability depends, as text.
        kind: density, mass or pseudo.
        support: the values that an image may take.
        beta: weight of the rate; None where the objective has none.
        prior, posterior: options of the groups.
        rate: where the rate comes from: its closed form, or samples of z.
    """

    dataset: str
    image_shape: tuple[int, int, int]
    test_images: int
    test_sha256: str
    binarize: str
    dequantize: str
    conditional: bool
    stochastic: bool
    likelihood: str
    scale: str | None
    likelihood_settings: str
    kind: Literal["density", "mass", "pseudo"]
    support: str
    beta: float | None
    prior: str = "standard"  # older results have none of these
    posterior: str = "diagonal"
    rate: str = "closed form"

    @classmethod
    def read(cls, results: Results) -> Description | None:
        """None where results.json has no description, or an incomplete or damaged one."""
        about = {key.removeprefix(PREFIX): value for key, value in results.items() if key.startswith(PREFIX)}
        match about:
            case {
                "image_shape": [int(), int(), int()],
                "test_images": int(),
                "conditional": bool(),
                "stochastic": bool(),
                "kind": "density" | "mass" | "pseudo",
                "scale": str() | None,
                "beta": int() | float() | None,
            }:
                texts = (
                    "dataset",
                    "test_sha256",
                    "binarize",
                    "dequantize",
                    "likelihood",
                    "likelihood_settings",
                    "support",
                )
                if all(isinstance(about.get(name), str) for name in texts):
                    values = {field.name: about.get(field.name, field.default) for field in fields(cls)}
                    return cls(**values | {"image_shape": tuple(values["image_shape"])})
        return None

    def to_results(self) -> dict[str, Any]:
        values = asdict(self) | {"image_shape": list(self.image_shape)}
        return {PREFIX + name: value for name, value in values.items()}

    @property
    def likelihood_name(self) -> str:
        """The likelihood and its scale rule: `laplace/shared`."""
        return self.likelihood + (f"/{self.scale}" if self.scale else "")

    @property
    def images(self) -> str:
        """The images, for people: `mnist, 10,000 test images of 1 × 28 × 28, binarize=static`."""
        size = " × ".join(map(str, self.image_shape))
        parts = [self.dataset, f"{self.test_images:,} test images of {size}"]
        parts += [f"binarize={self.binarize}"] * (self.binarize != "none")
        parts += ["given the label"] * self.conditional
        return ", ".join(parts)


def recorded_identity(results: Results) -> dict[str, Any]:
    """What results.json records of the identity of the run's splits, under the keys of `Dataset.identity`."""
    return {key.removeprefix(PREFIX): value for key, value in results.items() if key.startswith(PREFIX)}


@dataclass(frozen=True)
class ComparisonGroup:
    """Runs whose numbers mean the same thing. Groups with equal keys are one group.

    Attributes:
        title: what the numbers describe.
        name: the same in a few words, for the titles of plots.
        reason: one or two sentences: why these may be compared, and why with no others.
        key: what tells this group from others.
        order: position of the group in tables and reports.
        across_likelihoods: whether runs of different likelihoods can be in it.
        ranked_by: key in results.json of the score that ranks the runs, lower is better; None if they are not ranked.
    """

    title: str = field(compare=False)
    name: str = field(compare=False)
    reason: str = field(compare=False)
    key: tuple[object, ...]
    order: int = field(compare=False)
    across_likelihoods: bool = field(compare=False)
    ranked_by: str | None = field(default=None, compare=False)


def comparison_group(metric: Metric, results: Results) -> ComparisonGroup | None:
    """The group in which a run's number may be compared; None where it may not, or where the run has no such number."""
    about = Description.read(results)
    if about is None or metric.comparable is None or metric.value(results) is None:
        return None
    return _GROUPS[metric.comparable](about, results)


def ranking_group(results: Results) -> ComparisonGroup:
    """The group of a run as a whole: where it is ranked, or the reason why it is not.

    Raises:
        ValueError: the results have no description.
    """
    about = Description.read(results)
    if about is None:
        raise ValueError("these results do not say what they describe; vaex eval adds it")
    return _probability(about, results) or _own(about, results)


def collapsed(results: Results) -> str | None:
    """A note if the posterior contains almost no information about the image, so that every image is decoded alike."""
    units, rate = results.get("test/active_units"), results.get("test/rate")
    if units is None or rate is None:
        return None
    # A learned prior gives z no scale, and so none to the variance of its means.
    is_active = units > 0 or results.get(f"{PREFIX}prior", "standard") != "standard"
    if is_active and rate >= COLLAPSED_RATE:
        return None
    return (
        f"the posterior has collapsed ({units} active units, rate {rate:.3g} nats): z is not used; "
        "lower beta, warm it up (objective.warmup), or give free bits (objective.free_bits)"
    )


def _same_images(about: Description) -> tuple[object, ...]:
    # The hash alone doesn't tell a dynamic binarization, which is drawn anew for every batch.
    return about.test_sha256, about.binarize, about.conditional


def _probability(about: Description, results: Results) -> ComparisonGroup | None:
    """Bounds on the probability of the same images, importance-weighted with equally many samples of the same kind."""
    if "test/bits_per_dim" not in results or not about.stochastic:
        return None
    samples = results.get("test/nll_samples") if results.get("test/bits_per_dim_from") == "importance" else None
    posterior = results.get("test/nll_posterior", "encoder") if samples else None
    how = f"importance-weighted with {samples:,} samples of z" if samples else "from the ELBO, a looser bound"
    how += " from a fitted posterior" if posterior == "fitted" else ""
    if _is_binary(results):
        title, order, score = "Binary images", 1, "test/nll_bound"
        reason = (
            "These are probabilities of one-bit images. Another dataset, another binarization and gray images are "
            "other data."
        )
    else:
        title, order, score = "8-bit images", 0, "test/bits_per_dim"
        reason = (
            "Densities of (k+u)/256, whatever pixels a run was trained on, and masses of the 256 levels all bound the "
            "probability of the same 8-bit images. Other images and one-bit images are other data."
        )
    key = ("probability", order, *_same_images(about), samples, posterior)
    name = f"{title} (binarize={about.binarize})" if about.binarize != "none" else title
    return ComparisonGroup(f"{title}: {about.images}; {how}", name, reason, key, order, True, score)


def _is_binary(results: Results) -> bool:
    return results.get("test/scored_pixels") == "binary"


def _elbo(about: Description, results: Results) -> ComparisonGroup | None:
    """ELBO, rate and distortion: on one scale where they bound the probability of an image, else per likelihood."""
    if not about.stochastic:
        return None
    ranked = _probability(about, results)
    if ranked is None:
        return _own(about, results)
    title = f"{'Binary' if _is_binary(results) else '8-bit'} images: {about.images}"
    key = ("elbo", _is_binary(results), *_same_images(about))
    return ComparisonGroup(title, ranked.name, ranked.reason, key, ranked.order, True)


def _own(about: Description, results: Results) -> ComparisonGroup:
    """Runs that are not ranked: compared within one likelihood on the same pixels, or by reconstructions alone."""
    if not about.stochastic:
        reason = (
            "Not ranked: a code without a distribution gives no bound on the probability of an image. Only "
            "reconstruction errors can be compared, and they don't tell how well a model would generate."
        )
        key: tuple[object, ...] = ("autoencoder", *_same_images(about))
        return ComparisonGroup(f"Autoencoders: {about.images}", "autoencoders", reason, key, 3, True)
    name = about.likelihood_name
    if about.kind == "pseudo":
        title, order = "a pseudo-likelihood", 2
        reason = (
            "Not ranked: a pseudo-likelihood is the probability of no image. Its ELBO bounds nothing, and compares "
            "only with the same likelihood on the same pixels."
        )
    elif about.binarize != "none" or about.support == "binary":
        title, order = "a density of binary images", 4
        reason = "Not ranked: the density of values that are only 0 or 1 grows without bound as its scale shrinks."
    else:
        title, order = "a density of the levels k/255", 5
        reason = (
            "Not ranked: a density of the levels k/255 bounds the probability of no image and grows without bound as "
            "its scale shrinks. It compares only within one likelihood, as a held-out log-density."
        )
    key = ("own", *_same_images(about), about.dequantize, name, about.likelihood_settings)
    return ComparisonGroup(f"{name}, {title}: {about.images}", name, reason, key, order, False)


def _images(about: Description, results: Results) -> ComparisonGroup:
    reason = (
        "These numbers describe pictures, so likelihoods may be compared. They don't tell how probable an image is, "
        "and a small beta or a large z lowers an error by itself."
    )
    key = ("images", *_same_images(about), about.dequantize)
    return ComparisonGroup(f"Reconstructions of {about.images}", about.dataset, reason, key, 7, True)


GENERATED = ("images", "draws", "latent")  # what a distance of generated images depends on, beside the network


def _lpips(about: Description, results: Results) -> ComparisonGroup | None:
    if "test/lpips_network" not in results:
        return None
    group = _images(about, results)
    return replace(group, key=(*group.key, results["test/lpips_network"]))


def _samples(about: Description, results: Results) -> ComparisonGroup | None:
    """Numbers in the features of vaex's own classifier."""
    reason = "vaex's own classifier is not comparable with Inception."
    return _generated(about, [results.get(f"test/fid_{name}") for name in (*GENERATED, "classifier")], reason)


def _inception(about: Description, results: Results) -> ComparisonGroup | None:
    reason = "Inception-v3 is not comparable with vaex's own classifier."
    return _generated(about, [results.get(f"test/fid_inception_{name}") for name in (*GENERATED, "features")], reason)


def _generated(about: Description, values: list[Any], which: str) -> ComparisonGroup | None:
    count, draws, latent, network = values
    if count is None:
        return None
    reason = (
        "These numbers describe generated pictures, so likelihoods may be compared. They don't tell how probable an "
        f"image is, and {which}"
    )
    key = ("samples", *_same_images(about), count, draws, latent, network)
    title = f"{count:,} {draws}, z from the {latent}, against {about.images}"
    return ComparisonGroup(title, f"{count:,} {draws}", reason, key, 6, True)


_GROUPS: dict[Comparison, Callable[[Description, Results], ComparisonGroup | None]] = {
    "bits": lambda about, results: None if _is_binary(results) else _probability(about, results),
    "nll": lambda about, results: _probability(about, results) if _is_binary(results) else None,
    "elbo": _elbo,
    "images": _images,
    "lpips": _lpips,
    "samples": _samples,
    "inception": _inception,
}
