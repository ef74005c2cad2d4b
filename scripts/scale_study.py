"""The effect of a scale on the loss, in four plots: docs/scale_study.png.

    python scripts/scale_study.py

The plots show the negative log-likelihood of a Gaussian and a Laplace against their scale, with the minimum at √MSE and
MAE; the gradient at a pixel as its error shrinks, for squared, absolute and log-mean-squared errors; and the
log-normalizer and the mean of the continuous Bernoulli. All curves are computed by vaex's own likelihoods. This script
needs matplotlib: `pip install -e '.[plots]'`.
"""

import argparse
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

from vaex.likelihoods.continuous_bernoulli import ContinuousBernoulli, log_normalizer
from vaex.likelihoods.gaussian import Gaussian
from vaex.likelihoods.laplace import Laplace
from vaex.likelihoods.location_scale import LocationScale, LocationScaleDistribution
from vaex.likelihoods.scale import Fixed, Optimal

PIXELS = (1, 1, 64)


def nll_against_scale(family: type[LocationScale], x: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Nats per pixel of an image `x` whose mean is 0, for each of the scales."""
    log_scale = scales.log()[:, None, None, None]
    distribution = LocationScaleDistribution(torch.zeros(len(scales), *PIXELS), log_scale, family.standard)
    return -distribution.log_prob(x) / math.prod(PIXELS)


def plot_nll(axes: Axes) -> dict[str, float]:
    """Returns, for each curve, the ratio of the scale at its lowest point to the closed form."""
    torch.manual_seed(0)
    scales = torch.logspace(-3.5, 0.5, 2001)
    ratios = {}
    for spread, color in ((0.005, "C0"), (0.05, "C1"), (0.3, "C2")):
        x = spread * torch.randn(PIXELS)
        for family, style, best in (
            (Gaussian, "-", x.square().mean().sqrt()),
            (Laplace, "--", x.abs().mean()),
        ):
            nll = nll_against_scale(family, x, scales)
            axes.plot(scales, nll, style, color=color, label=f"{family.__name__}, RMSE {x.square().mean().sqrt():.2g}")
            axes.plot(best, nll.min(), "o", color=color, markersize=5)
            ratios[f"{family.__name__} {spread}"] = (scales[nll.argmin()] / best).item()
    axes.set(xscale="log", ylim=(-6, 8), xlabel="scale", ylabel="nats per pixel")
    axes.set_title("Negative log-likelihood; dots at √MSE and MAE")
    axes.legend(fontsize=7)
    return ratios


def plot_gradients(axes: Axes) -> None:
    """|d loss / d mean| at one pixel whose error shrinks; the other 63 errors stay at 0.1 or shrink, too."""
    errors = torch.logspace(-4, 0, 50)

    def gradient(likelihood: LocationScale, error: float, others: float) -> float:
        h = torch.zeros(PIXELS, requires_grad=True)
        x = torch.full(PIXELS, others)
        x[0, 0, 0] = error
        loss = -likelihood(h, x).log_prob(x)
        return torch.autograd.grad(loss, h)[0][0, 0, 0].abs().item()

    def curve(family: type[LocationScale], optimal: bool, others: float | None) -> list[float]:
        rule = Optimal(image_shape=PIXELS, floor=1e-8) if optimal else Fixed(image_shape=PIXELS, value=1.0)
        likelihood = family(image_shape=PIXELS, scale=rule, bounded_mean=False)
        return [gradient(likelihood, e, e if others is None else others) for e in errors.tolist()]

    for label, color, style, values in (
        ("squared error, sigma 1: shrinks", "C0", "-", curve(Gaussian, False, 0.1)),
        ("absolute error, b 1: constant", "C1", "-", curve(Laplace, False, 0.1)),
        ("log MSE (optimal sigma), other errors stay: shrinks", "C2", "-", curve(Gaussian, True, 0.1)),
        ("log MSE, all errors shrink together: grows", "C2", "--", curve(Gaussian, True, None)),
        ("log MAE (optimal b), all errors shrink together: grows equally", "C3", ":", curve(Laplace, True, None)),
    ):
        axes.plot(errors, values, style, color=color, label=label, linewidth=2)
    axes.set(xscale="log", yscale="log", xlabel="error of the pixel", ylabel="|gradient| at its mean")
    axes.invert_xaxis()
    axes.set_title("Gradient as the error shrinks")
    axes.legend(fontsize=7)


def plot_continuous_bernoulli(normalizer: Axes, mean: Axes) -> None:
    theta = torch.linspace(1e-4, 1 - 1e-4, 2001, dtype=torch.float64)
    eta = torch.logit(theta)
    # The density is C(θ) θ^x (1-θ)^(1-x), so log C = -log((e^η - 1)/η) - log(1 - θ).
    normalizer.plot(theta, -log_normalizer(eta) - torch.log1p(-theta))
    normalizer.set(xlabel="θ", ylabel="log C(θ), nats")
    normalizer.set_title("Continuous Bernoulli: log-normalizer, minimum log 2 at θ = ½")
    normalizer.axhline(math.log(2), color="gray", linewidth=0.5)

    likelihood = ContinuousBernoulli(image_shape=(1, 1, 1), bound=1e9)
    logits = torch.linspace(-100, 100, 4001)
    distribution = likelihood(logits[:, None, None, None])
    mean.plot(logits, distribution.mean.flatten(), label="mean")
    mean.plot(logits, distribution.parameter.flatten(), "--", label="parameter θ, which is often shown instead")
    mean.plot(math.log(0.9999 / 0.0001), 0.8915, "o", color="C0", markersize=5)
    mean.annotate("θ = 0.9999: mean 0.8915", (9.21, 0.8915), (30, 0.75), fontsize=8, arrowprops={"arrowstyle": "-"})
    mean.set(xlabel="logit η", ylabel="gray")
    mean.set_title("Continuous Bernoulli: the mean is not the parameter")
    mean.legend(fontsize=7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/scale_study.png"))
    out: Path = parser.parse_args().out
    figure, axes = plt.subplots(2, 2, figsize=(12, 8.5), constrained_layout=True)
    ratios = plot_nll(axes[0, 0])
    plot_gradients(axes[0, 1])
    plot_continuous_bernoulli(axes[1, 0], axes[1, 1])
    figure.savefig(out, dpi=110)
    print(
        "scale at the lowest point, relative to its closed form:",
        {name: round(ratio, 3) for name, ratio in ratios.items()},
    )
    print(out)


if __name__ == "__main__":
    main()
