"""What each run's numbers are of, so that only numbers of the same thing share a column, an axis or a rank."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any
from zlib import crc32

from vaex.errors import UserError
from vaex.evaluation.ranking import Row, group_of
from vaex.report.axes import as_number, shown
from vaex.report.collect import Run

# Of a dataset's values those that change no test image.
NOT_OF_THE_TEST_SPLIT = ("dataset.validation", "dataset.resident", "dataset.dequantize")
NOT_OF_THE_UNIT = ("likelihood.scale.init",)  # where a learned scale starts


@dataclass(frozen=True)
class Scale:
    """What a number is of. Numbers of equal scales may be compared, and share an axis.

    Attributes:
        title: for people.
        reason: one sentence: what may be compared, and why with nothing else.
        key: what tells it from others.
        likelihoods: whether runs of different likelihoods can be on it.
        order: of columns.
    """

    title: str
    reason: str
    key: tuple[object, ...]
    likelihoods: bool
    order: int = 0


@dataclass(frozen=True)
class Scored:
    """A completed run and what its numbers are of.

    Attributes:
        own: of its likelihood alone.
        images: tells test images apart, as the model is shown them.
        shown: the same for people.
        ranked: whether there is a bound on the probability of its images.
    """

    run: Run
    row: Row
    own: Scale
    images: tuple[object, ...]
    shown: str
    ranked: bool


def scored(runs: Iterable[Run]) -> list[Scored]:
    """The completed runs."""
    return [_scored(run) for run in runs if run.complete]


def _scored(run: Run) -> Scored:
    assert run.image_shape is not None
    channels, height, width = run.image_shape
    kind, support = _kind(_likelihood_json(run), run.image_shape)
    binarize, dequantize = (str(run.config.get(f"dataset.{key}", "none")) for key in ("binarize", "dequantize"))
    conditional = run.config.get("conditional") is True
    finite = {name: value for name, value in run.results.items() if value is not None}
    results = _with_score(
        finite,
        kind,
        binary=support == "binary" or binarize != "none",
        dequantized=dequantize == "uniform",
        dimensions=channels * height * width,
    )
    test_split = {k: v for k, v in run.config.items() if k.startswith("dataset.") and k not in NOT_OF_THE_TEST_SPLIT}
    crc = crc32(json.dumps(test_split, sort_keys=True).encode())
    dataset = f"{run.choices.get('dataset', 'images')} {channels} × {height} × {width}"
    row = Row(
        run=run.name,
        likelihood=run.choices.get("likelihood", "likelihood"),
        kind=kind,
        scale=run.choices.get("likelihood/scale"),
        beta=as_number(run.config.get("objective.beta")),
        dimensions=channels * height * width,
        group=group_of(
            kind=kind,
            stochastic="test/rate" in results,
            scored_pixels=results.get("test/scored_pixels"),
            conditional=conditional,
            dataset=dataset,
            binarize=binarize,
            crc=crc,
        ),
        results=results,
    )
    own = _own_scale(run, row, dequantize)
    ranked = row.group.score is not None and "test/bits_per_dim" in results
    variants = ["binarized"] * (binarize != "none") + ["dequantized"] * (dequantize != "none")
    shown_images = ", ".join([dataset, *variants, *["given the label"] * conditional])
    return Scored(run, row, own, (crc, binarize, dequantize, conditional), shown_images, ranked)


def _with_score(
    results: dict[str, Any], kind: str, *, binary: bool, dequantized: bool, dimensions: int
) -> dict[str, Any]:
    """Bits/dim from the ELBO of `vaex train`, where that bounds the probability of an image already."""
    elbo = results.get("test/elbo")
    if "test/bits_per_dim" in results or elbo is None:
        return results
    bits = -elbo / (dimensions * math.log(2))
    if kind == "density" and dequantized:  # as evaluation.bits has it
        score = {"test/scored_pixels": "(k+u)/256", "test/bits_per_dim": bits + 8}
        score |= {"test/elbo_dequantized": elbo, "test/rate_dequantized": results["test/rate"]}
    elif kind == "mass":
        score = {"test/scored_pixels": "binary" if binary else "k/255", "test/bits_per_dim": bits}
    else:
        return results
    return results | score | {"test/bits_per_dim_from": "elbo"}


def _own_scale(run: Run, row: Row, dequantize: str) -> Scale:
    """Of numbers that compare with nothing but the same likelihood on the same pixels."""
    values = {k: v for k, v in run.config.items() if k.startswith("likelihood.") and k not in NOT_OF_THE_UNIT}
    name = row.likelihood + (f"/{row.scale}" if row.scale else "")
    binarize = run.config.get("dataset.binarize", "none")
    if "test/rate" not in row.results or row.kind == "pseudo":
        title, reason = name + ", a pseudo-likelihood" * (row.kind == "pseudo"), row.group.reason
    elif row.kind == "density" and binarize == "none":
        title = f"{name}, a density of the levels k/255"
        reason = (
            "Compared within this one likelihood only, as a held-out log-density and not as a probability: a density "
            "of the levels k/255 bounds the probability of no image, and grows without bound as its scale shrinks."
        )
    elif row.kind == "density":
        title, reason = f"{name}, a density of binary images", row.group.reason
    else:
        title = name
        reason = (
            "Compared with nothing else: its likelihood can't be made here, so what it is a probability of isn't known."
        )
    key = ("own", row.group.split, name, dequantize, *sorted((k, shown(v)) for k, v in values.items()))
    return Scale(title, reason, key, likelihoods=False, order=9)


def home(item: Scored) -> Scale:
    """Of the run as a whole: what it may be compared with."""
    if "test/rate" in item.row.results:
        return score_scale(item) or item.own
    group = item.row.group
    return Scale(group.title.partition(":")[0], group.reason, ("code", group.split), likelihoods=True, order=8)


def score_scale(item: Scored) -> Scale | None:
    """Of bits/dim or of the NLL: bounds of one kind, importance-weighted with as many draws, of the same images."""
    if not item.ranked:
        return None
    group, results = item.row.group, item.row.results
    samples = results.get("test/nll_samples") if results.get("test/bits_per_dim_from") == "importance" else None
    how = f"importance-weighted, {samples:,} draws of z" if samples else "from the ELBO, the looser bound"
    title = group.title.partition(": by ")[0]
    return Scale(f"{title}, {how}", group.reason, (group.order, group.split, samples), True, group.order)


def elbo_scale(item: Scored) -> Scale | None:
    """Of the ELBO, the rate and the distortion."""
    if "test/rate" not in item.row.results:
        return None
    if not item.ranked:
        return item.own
    group = item.row.group
    return Scale(group.title.partition(": by ")[0], group.reason, (group.order, group.split), True, group.order)


def error_scale(item: Scored) -> Scale | None:
    """Of the error of reconstructions of the same images, whatever the likelihood."""
    reason = (
        "Of pictures, so likelihoods may be compared; but it says nothing of how probable an image is, and a small "
        "beta or a large z lowers it by itself."
    )
    return Scale(f"reconstructions of {item.shown}", reason, ("error", item.images), True, order=6)


def distance_scale(item: Scored) -> Scale | None:
    """Of the Fréchet distance of pictures made alike."""
    results = item.row.results
    if "test/fid" not in results:
        return None
    images, draws, latent = (results.get(f"test/fid_{name}") for name in ("images", "draws", "latent"))
    reason = (
        "Of generated pictures, so likelihoods may be compared; but it says nothing of how probable an image is. By "
        "vaex's own classifier: not comparable with Inception's."
    )
    made = f"{images:,} {draws}, z from the {latent}" if isinstance(images, int) else "generated pictures"
    crc, binarize, *_ = item.images
    key = ("distance", crc, binarize, images, draws, latent, results.get("test/fid_classifier"))
    return Scale(f"{made}, against {item.shown}", reason, key, True, order=5)


def _likelihood_json(run: Run) -> str:
    """The likelihood's part of the config, as one string that a cache can hold."""
    nested: dict[str, Any] = {}
    for key, value in run.config.items():
        parts = key.split(".")
        if parts[0] == "likelihood":
            inner = nested
            for part in parts[1:-1]:
                inner = inner.setdefault(part, {})
            inner[parts[-1]] = value
    return json.dumps(nested)


@cache
def _kind(likelihood: str, image_shape: tuple[int, int, int]) -> tuple[str, str]:
    """Kind and support, as the likelihood itself says; unknown where it can't be made here."""
    from vaex.config.create import create  # and torch

    group = json.loads(likelihood)
    given = {}
    try:
        if "scale" in group:
            given["scale"] = create("likelihood.scale", group.pop("scale"), image_shape=image_shape)
        made = create("likelihood", group, image_shape=image_shape, **given)
        return str(made.kind), str(made.support)
    except (UserError, AttributeError):
        return "unknown", "unknown"
