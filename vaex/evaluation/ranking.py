"""Which runs may be ranked against each other, and by what number. Imports no torch."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

Score = Literal["bits/dim", "NLL", None]


@dataclass(frozen=True)
class Group:
    """Runs whose numbers mean the same thing. Equal groups are ranked together, if they have a score at all.

    Attributes:
        order: of the group in a table.
        title: what the numbers are of.
        reason: one sentence: why these are ranked with no others, or not at all.
        score: what ranks them, lower is better; None for no ranking.
        split: tells test splits apart.
    """

    order: int
    title: str
    reason: str
    score: Score
    split: tuple[object, ...]


@dataclass
class Row:
    """One run. `beta` is None where no rate is weighed; `rank` counts from 1, None where nothing is ranked."""

    run: str
    likelihood: str
    kind: str  # density, mass or pseudo
    scale: str | None
    beta: float | None
    dimensions: int  # channels times pixels
    group: Group
    results: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    rank: int | None = None

    @property
    def score(self) -> float | None:
        """Bits/dim or nats, lower is better: of the importance-weighted NLL where there is one, else of the ELBO."""
        if self.group.score is None:
            return None
        if self.group.score == "bits/dim":
            return float(self.results["test/bits_per_dim"])
        return float(self.results.get("test/nll", -self.results["test/elbo"]))

    @property
    def score_stderr(self) -> float | None:
        stderr: float | None = self.results.get("test/nll_stderr")
        if self.group.score is None or stderr is None:
            return None
        return stderr / (self.dimensions * math.log(2)) if self.group.score == "bits/dim" else stderr

    @property
    def elbo(self) -> float | None:
        """Of what the score is of, in nats: for 8-bit images D · log 256 is taken off a density's."""
        if "test/elbo_dequantized" in self.results:
            return float(self.results["test/elbo_dequantized"]) - self.dimensions * math.log(256)
        return self.results.get("test/elbo")

    @property
    def rate(self) -> float | None:
        return self.results.get("test/rate_dequantized", self.results.get("test/rate"))


def group_of(
    *, kind: str, stochastic: bool, scored_pixels: str | None, conditional: bool, dataset: str, binarize: str, crc: int
) -> Group:
    """The group of a run.

    Args:
        kind: of the likelihood: density, mass or pseudo.
        stochastic: whether there is a posterior distribution.
        scored_pixels: as bits.Scoring names them; None where no probability of an image comes out.
        conditional: whether the labels are given to the model.
        dataset: its name and its shape, for people.
        binarize: the dataset's option; the test split alone doesn't tell it when the draw is dynamic.
        crc: checksum of the test split's pixels.
    """
    split = (crc, binarize, conditional)
    given = ", given the label" if conditional else ""
    where = f"{dataset}{given}"
    binary = f"binary images (binarize={binarize})" if binarize != "none" else "binary images"
    if not stochastic:
        return Group(
            3,
            f"Autoencoders, {where}: no rank",
            "Not ranked: a code without a distribution gives no bound on the probability of an image, only "
            "reconstruction errors, and those say nothing about how well the model would generate.",
            None,
            split,
        )
    if kind == "pseudo":
        return Group(
            2,
            f"Pseudo-likelihoods, {where}: no rank",
            "Not ranked: a pseudo-likelihood is the probability of no image; what stands under elbo bounds nothing and "
            "compares with nothing but the same likelihood on the same pixels.",
            None,
            split,
        )
    if scored_pixels is None:
        return Group(
            4,
            f"Densities of {binary}, {where}: no rank",
            "Not ranked: a density of values that are only 0 or 1 grows without bound as its scale shrinks.",
            None,
            split,
        )
    if scored_pixels == "binary":
        return Group(
            1,
            f"{binary[0].upper()}{binary[1:]}, {where}: by NLL, nats per image",
            "Ranked only here: these are probabilities of one-bit images, and another dataset, another binarisation or "
            "grey images are other data.",
            "NLL",
            split,
        )
    return Group(
        0,
        f"8-bit images, {where}: by bits/dim",
        "Ranked together: densities of (k+u)/256, whatever the run was trained on, and masses of the levels all bound "
        "the probability of the same 8-bit images; with no others, since other images and one-bit ones are other data.",
        "bits/dim",
        split,
    )


def grouped(rows: Iterable[Row]) -> list[tuple[Group, list[Row]]]:
    """Rows by group, the best first, with their ranks set; in the order given where nothing is ranked."""
    groups: dict[Group, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    for group, members in groups.items():
        if group.score is None:
            continue
        members.sort(key=lambda row: math.inf if row.score is None or math.isnan(row.score) else row.score)
        for n, row in enumerate(members):
            row.rank = n + 1
    return sorted(groups.items(), key=lambda item: (item[0].order, item[0].title))
