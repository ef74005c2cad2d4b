"""How well each latent represents one factor of the images: MIG, SAP, FactorVAE score and DCI.

All take codes [N, latent_dim], the posterior means of N images, and their factors, int64 [N, F]. Higher is better, up
to 1 unless a function says otherwise. The scores do not change if latents are permuted, shifted, or scaled by a factor
of either sign, except that a latent with a standard deviation below COLLAPSED has no vote in the FactorVAE score.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vaex.data.dataset import Factor
from vaex.evaluation.measure import Evaluation, Measurement
from vaex.evaluation.metric import Metric
from vaex.evaluation.split import evenly_spaced
from vaex.latents.posterior import DiagonalGaussian
from vaex.objectives.latents import aggregate_log_prob

# MIG and FactorVAE settings of Locatello et al. 2019 (disentanglement_lib, unsupervised_study_v1).
BINS = 20
SHARED = 64  # L, the number of images that share a factor's value
TRAIN_VOTES, EVALUATION_VOTES = 10_000, 5000
COLLAPSED = 0.05  # standard deviation below which a latent has collapsed to the prior, whose deviation is 1

# Forests of Eastwood & Williams 2018: ten trees, with the depth that is best for each factor on validation images.
TREES = 10
DEPTHS = (2, 4, 8, 16)
FEWEST = 10  # images, so that one is left to choose the depth and one to give the error
SEED = 0  # of the split, the forests and the samples of z
SAMPLED = 4000  # images whose samples of z give mig_samples


def disentanglement(codes: Tensor, factors: Tensor | None, declarations: Sequence[Factor]) -> dict[str, float]:
    """Every score, as the mean over factors. A factor with a single value in these images is left out.

    Args:
        codes: posterior means, [N, latent_dim].
        factors: the index of each factor's value, int64 [N, F]; None if they are unknown.
        declarations: what the F columns of `factors` are.

    Raises:
        ValueError: if there are no factors or too few images, or the codes are not finite.
        ModuleNotFoundError: if scikit-learn is not installed.
    """
    if factors is None or not declarations:
        raise ValueError("this dataset has no known factors to compare the latents with; only dataset=sprites has some")
    if len(codes) < FEWEST:
        raise ValueError(f"disentanglement needs at least {FEWEST} test images, got {len(codes)}")
    codes, factors = codes.detach().double().cpu(), factors.cpu()
    if not codes.isfinite().all():
        raise ValueError(f"{int((~codes.isfinite()).any(1).sum())} of {len(codes)} codes are NaN or infinite")
    varying = factors.amax(0) > factors.amin(0)
    if not varying.any():
        raise ValueError(f"all {len(codes)} images have the same factors; disentanglement needs some that differ")
    factors = factors[:, varying]
    ordered = [factor.ordered for factor, varies in zip(declarations, varying.tolist(), strict=True) if varies]
    importances, informativeness = forest_importances(codes, factors, ordered)
    return {
        "mig": mutual_information_gap(codes, factors),
        "sap": separated_attribute_predictability(codes, factors, ordered),
        "factor_vae": factor_vae_score(codes, factors),
        "dci_disentanglement": dci_disentanglement(importances),
        "dci_completeness": dci_completeness(importances),
        "dci_informativeness": float(informativeness.mean()),
    }


def mutual_information(codes: Tensor, factors: Tensor) -> Tensor:
    """I(z_j; v_k) in nats, [latent_dim, F]. Each latent is cut into BINS bins of equal width over its range."""
    bins = (_to_unit_range(codes) * BINS).long().clamp(max=BINS - 1)
    values = int(factors.max()) + 1
    joint = torch.stack(
        [torch.stack([_entropy(latent * values + factor) for factor in factors.unbind(1)]) for latent in bins.unbind(1)]
    )
    of_latents, of_factors = _entropies(bins), _entropies(factors)
    return (of_latents[:, None] + of_factors - joint).clamp(min=0)  # rounding can leave -1e-16


def mutual_information_gap(codes: Tensor, factors: Tensor) -> float:
    """MIG, Chen et al. 2018, eq. 6: the gap of the two highest I(z_j; v_k), divided by H(v_k), mean over k.

    The information is that of binned posterior means, as in Locatello et al. 2019; `mig_of_samples` is the definition
    of Chen et al. A factor with more values than BINS cannot reach 1: of 40 equally
    frequent values a latent holds log 20 of log 40 nats, 0.81.
    """
    return float((_top_two_gap(mutual_information(codes, factors)) / _entropies(factors)).mean())


def mig_of_samples(posterior: DiagonalGaussian, z: Tensor, factors: Tensor) -> float:
    """MIG, Chen et al. 2018, eq. 6, with the information of samples of q(z|x), as there.

    The entropies of z_j, and of z_j among the images with a value of the factor, are means of -log of the exact
    aggregate density at the samples.

    Args:
        posterior: q(z|x) of N images.
        z: a sample of each, [N, latent_dim].
        factors: int64 [N, F], each with at least two values.
    """

    def entropies(rows: Tensor) -> Tensor:
        """H(z_j) among these images, [latent_dim]."""
        some = DiagonalGaussian(posterior.mean[rows], posterior.log_var[rows])
        return -aggregate_log_prob(some, z[rows])[1].double().mean(0)

    of_all = entropies(torch.arange(len(z), device=z.device))
    information = []
    for factor in factors.unbind(1):
        groups = [(factor == value).nonzero()[:, 0].to(z.device) for value in torch.unique(factor)]
        within = sum((entropies(rows) * (len(rows) / len(z)) for rows in groups), torch.zeros_like(of_all))
        information.append((of_all - within).cpu())
    return float((_top_two_gap(torch.stack(information, dim=1)) / _entropies(factors)).mean())


def separated_attribute_predictability(codes: Tensor, factors: Tensor, ordered: Sequence[bool]) -> float:
    """SAP, Kumar et al. 2018, section 3: the gap of the two latents that predict a factor best, mean over factors.

    A prediction is scored on the images it is fitted to: by the R² of a line for an ordered factor, by the balanced
    accuracy of the best thresholds for an unordered one, and as 0 for a constant latent. The paper does not normalize
    the accuracy, which is 1 / C for a latent that is independent of C classes, so that the largest gap is 1 - 1 / C.
    """
    scores = torch.zeros(codes.shape[1], factors.shape[1], dtype=torch.float64)
    for j in (codes.amax(0) > codes.amin(0)).nonzero()[:, 0].tolist():
        for k, in_order in enumerate(ordered):
            scores[j, k] = (squared_correlation if in_order else threshold_accuracy)(codes[:, j], factors[:, k])
    return float(_top_two_gap(scores).mean())


def squared_correlation(code: Tensor, factor: Tensor) -> float:
    """R² of the line that predicts the factor from a latent that is not constant; both [N]."""
    return float(torch.corrcoef(torch.stack([code, factor.double()]))[0, 1].square())


def threshold_accuracy(code: Tensor, factor: Tensor) -> float:
    """Balanced accuracy of the classifier with the best C - 1 thresholds on a latent; both [N].

    The classifier assigns one class to each interval between thresholds. The optimum is exact, by dynamic programming:
    for the first n images in the order of the latent and each class of the last interval, with one more threshold in
    each round. Balanced accuracy is the mean over classes of the fraction that is classified correctly.
    """
    order = code.argsort(stable=True)
    code, hits = code[order], torch.nn.functional.one_hot(factor[order]).double()
    hits = hits[:, hits.any(0)]  # [N, C]: classes that occur
    hits = hits / hits.sum(0) / hits.shape[1]
    one_class = torch.cat([torch.zeros_like(hits[:1]), hits.cumsum(0)])  # [N + 1, C]: the first n assigned to class c
    may_cut = torch.ones(len(one_class), dtype=torch.bool)
    may_cut[1:-1] = code[1:] > code[:-1]  # no threshold separates equal codes
    best = one_class
    for _ in range(hits.shape[1] - 1):
        before = torch.where(may_cut, best.amax(1), -torch.inf)[:, None]
        best = one_class + (before - one_class).cummax(0).values
    return float(best[-1].max())


def factor_vae_score(codes: Tensor, factors: Tensor, *, seed: int = 0) -> float:
    """Kim & Mnih 2018, section 4: how often the latent that varies least tells which factor was held fixed.

    For each vote, a factor is chosen, one of its values by its frequency, and SHARED images with that value. The vote
    goes to the latent with the lowest variance, relative to its variance over all images. The majority of TRAIN_VOTES
    assigns a factor to each latent, and the score is the fraction of EVALUATION_VOTES that agree: about 1 / F by
    chance, and 0 if all latents have collapsed.

    Raises:
        ValueError: if no two images share a factor's value.
    """
    codes = codes[:, codes.std(0) >= COLLAPSED]
    if not codes.shape[1]:
        return 0.0
    codes = codes / codes.std(0)
    count = factors.shape[1]
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.randint(count, (TRAIN_VOTES + EVALUATION_VOTES,), generator=generator)
    lowest = torch.empty_like(fixed)
    for k in range(count):
        votes = (fixed == k).nonzero()[:, 0]
        sizes = factors[:, k].bincount()
        frequency = sizes * (sizes > 1)  # a single image has no variance
        if not frequency.any():
            raise ValueError(
                f"no two of {len(codes)} images share a factor's value; the FactorVAE score needs more images"
            )
        value = torch.multinomial(frequency.double(), len(votes), replacement=True, generator=generator)
        uniform = torch.rand(len(votes), SHARED, dtype=torch.float64, generator=generator)
        ranks = (sizes.cumsum(0) - sizes)[value, None] + (uniform * sizes[value, None]).long()
        rows = factors[:, k].argsort(stable=True)[ranks]  # [votes, SHARED]
        lowest[votes] = torch.cat([codes[part].var(dim=1).argmin(1) for part in torch.split(rows, 500)])
    pairs = lowest * count + fixed
    table = pairs[:TRAIN_VOTES].bincount(minlength=codes.shape[1] * count).view(-1, count)
    predicted = table.argmax(1)[lowest[TRAIN_VOTES:]]
    return float((predicted == fixed[TRAIN_VOTES:]).double().mean())


def forest_importances(codes: Tensor, factors: Tensor, ordered: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """R [latent_dim, F] and informativeness [F] of Eastwood & Williams 2018, section 2, by random forests.

    R_jk is how much latent j lowers the impurity of the forest that predicts factor k. Columns sum to 1, or are 0 if
    no tree could split. As in the paper, a forest regresses an ordered factor; for an unordered factor, which the paper
    does not have, it classifies. 80 % of the images train, 10 % choose the depth, and 10 % give the error. Another seed
    changes the scores by about 0.01 with 10,000 images, and by 0.05 with 2000.

    Informativeness is 1 minus the paper's error: the root mean square error over the factor's standard deviation, or
    the misclassified fraction over that of always guessing the most frequent class. So 0 is a guess without the codes
    (a forest can be a little worse) and 1 is perfect.
    """
    shuffled = torch.randperm(len(codes), generator=torch.Generator().manual_seed(SEED))
    tenth = len(codes) // 10
    parts = torch.split(shuffled, [len(codes) - 2 * tenth, tenth, tenth])
    codes = _to_unit_range(codes)  # scikit-learn's trees treat values within 1e-7 as equal
    columns, scores = zip(
        *(_forest(codes, factors[:, k], ordered[k], parts) for k in range(factors.shape[1])), strict=True
    )
    return torch.stack(columns, dim=1), torch.tensor(scores)


def _forest(codes: Tensor, factor: Tensor, ordered: bool, parts: Sequence[Tensor]) -> tuple[Tensor, float]:
    """Importances [latent_dim] and informativeness of one factor."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    train, choose, test = parts
    forests = [
        # Every split sees every latent, for a classifier too.
        (RandomForestRegressor if ordered else RandomForestClassifier)(
            n_estimators=TREES, max_depth=depth, max_features=1.0, n_jobs=1, random_state=SEED
        ).fit(codes[train].numpy(), factor[train].numpy())
        for depth in DEPTHS
    ]

    def error(forest: Any, rows: Tensor) -> float:
        wrong = torch.from_numpy(forest.predict(codes[rows].numpy())) - factor[rows]
        if ordered:
            return float(wrong.square().mean().sqrt() / factor.double().std(correction=0))
        return float((wrong != 0).double().mean() / (1 - factor.bincount().max() / len(factor)))

    best = min(forests, key=lambda forest: error(forest, choose))
    return torch.from_numpy(best.feature_importances_), 1 - error(best, test)


def dci_disentanglement(importances: Tensor) -> float:
    """1 minus the entropy, base F, of each latent's row of R [latent_dim, F], weighted by its share of the sum of R."""
    weights = importances.sum(1)
    return float((_concentration(importances) * weights).sum() / weights.sum().clamp(min=1e-12))


def dci_completeness(importances: Tensor) -> float:
    """1 minus the entropy, base latent_dim, of each factor's column of R [latent_dim, F], mean over factors."""
    return float(_concentration(importances.T).mean())


def _concentration(importances: Tensor) -> Tensor:
    """1 for a row with one entry that is not 0, 0 for one of equal entries or of zeros; [rows, columns] -> [rows].

    A row of a single entry is 1.
    """
    total = importances.sum(1, keepdim=True)
    shares = importances / torch.where(total > 0, total, 1)
    entropy = torch.special.entr(shares).sum(1) / math.log(max(2, importances.shape[1]))
    return torch.where(total[:, 0] > 0, 1 - entropy, 0)


def _top_two_gap(scores: Tensor) -> Tensor:
    """For each factor, the score of the best latent minus that of the second (0 if none); [latent_dim, F] -> [F]."""
    best: Tensor = torch.cat([scores, torch.zeros_like(scores[:1])]).topk(2, dim=0).values
    return best[0] - best[1]


def _to_unit_range(codes: Tensor) -> Tensor:
    """Each latent scaled to [0, 1]; a constant one becomes 0."""
    low, high = codes.amin(0), codes.amax(0)
    return (codes - low) / torch.where(high > low, high - low, 1)


def _entropies(columns: Tensor) -> Tensor:
    """Entropy in nats of each column, int64 [N, columns] -> [columns]."""
    return torch.stack([_entropy(column) for column in columns.unbind(1)])


def _entropy(values: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(values.bincount().double() / len(values)).sum()
    return entropy


def _disentanglement(evaluation: Evaluation) -> dict[str, Any]:
    posteriors = [evaluation.model.encode(batch.x, batch.labels) for batch in evaluation.batches()]
    codes, factors = torch.cat([posterior.mean for posterior in posteriors]), evaluation.images.factors
    scores = disentanglement(codes, factors, evaluation.dataset.source.factors)
    if evaluation.model.stochastic and evaluation.model.posterior.is_diagonal and factors is not None:
        gaussians = [posterior for posterior in posteriors if isinstance(posterior, DiagonalGaussian)]
        rows = evenly_spaced(evaluation.images, SAMPLED)[:SAMPLED]
        posterior = DiagonalGaussian(codes[rows], torch.cat([each.log_var for each in gaussians])[rows])
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(SEED)).to(codes.device)
        factors = factors[rows.to(factors.device)].cpu()
        varying = factors[:, factors.amax(0) > factors.amin(0)]
        scores["mig_samples"] = mig_of_samples(posterior, posterior.at(noise), varying)
    return {f"test/{name}": value for name, value in scores.items()}


DISENTANGLEMENT = Measurement(
    _disentanglement,
    (
        Metric("test/mig", "MIG", better="higher"),
        Metric("test/mig_samples", "MIG of samples", better="higher", column=""),
        Metric("test/dci_disentanglement", "DCI", better="higher"),
        Metric("test/sap", "SAP", better="higher"),
        Metric("test/factor_vae", "FactorVAE", better="higher", column="FVAE"),
    ),
    lambda evaluation: None if evaluation.disentanglement else "",
)
