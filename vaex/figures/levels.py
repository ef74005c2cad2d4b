"""What the groups of latents of a hierarchical model add to an image, and what each of them costs."""

from __future__ import annotations

import torch

from vaex.figures.figure import FigureKind, Files, Subject, needs_prior
from vaex.figures.plot import GRAY, needs_matplotlib, render, styled_figure
from vaex.figures.sheet import framed, grid
from vaex.runs.reading import read_metrics

TEMPERATURES = (0.7, 0.8, 0.9, 1.0)
KEY = "validation/rate_per_group"


def levels(subject: Subject, columns: int = 12) -> Files:
    """Test images, and below them what their first groups of latents determine, from the coarsest group on.

    In the first sheet the other latents are at the prior's mean, and its last row is the reconstruction. In the second
    they are sampled from the prior, with the same noise in each row, and its first row has samples of all groups.
    """
    images = subject.encode(slice(subject.count or columns))
    groups = subject.model.posterior.groups
    sampled = subject.model.latent_prior().sample(len(images.z), generator=torch.Generator().manual_seed(0))
    sheets: Files = {}
    for name, others, first in (("levels", torch.zeros_like(images.z), 1), ("levels_sampled", sampled, 0)):
        rows, names = [images.x.cpu()], ["image"]
        for count in range(first, len(groups) + 1):
            end = sum(groups[:count])
            z = torch.cat([images.z[:, :end], others[:, end:]], dim=1)
            rows.append(subject.decode(z, images.labels))
            names.append(f"{count} of {len(groups)} groups")
        sheets[f"{name}.png"] = framed(grid(torch.stack(rows), rows=names))
    return sheets


def needs_groups(subject: Subject) -> str | None:
    return (
        None if len(subject.model.posterior.groups) > 1 else "needs architecture=ladder with several groups of latents"
    )


def temperatures(subject: Subject, columns: int = 12) -> Files:
    """Samples of z from the prior at several temperatures, with the same noise in each column."""
    model, count = subject.model, subject.count or columns
    labels = torch.arange(count, device=model.device) % max(1, model.classes)
    prior = model.latent_prior()
    seed = int(torch.randint(2**31, ()))
    rows = []
    for temperature in TEMPERATURES:
        z = prior.sample(count, temperature=temperature, generator=torch.Generator().manual_seed(seed))
        rows.append(subject.decode(z, labels))
    names = [f"temperature {temperature:g}" for temperature in TEMPERATURES]
    return {"temperatures.png": framed(grid(torch.stack(rows), rows=names))}


def group_rates(subject: Subject, bars: int = 12) -> Files:
    """The rate of each group on the validation split, after up to `bars` epochs of the run."""
    assert subject.metrics is not None  # as `needs_group_rates` has checked
    rates = {line["step"]: line[KEY] for line in read_metrics(subject.metrics) if KEY in line}
    steps = list(rates)
    chosen = sorted({steps[round(n * (len(steps) - 1) / max(1, bars - 1))] for n in range(bars)})
    with styled_figure(7.5, 3.8) as figure:
        axis = figure.subplots()
        below = torch.zeros(len(chosen))
        for group in range(len(rates[chosen[0]])):
            values = torch.tensor([rates[step][group] for step in chosen])
            axis.bar([f"{step:,}" for step in chosen], values, bottom=below, width=0.8, label=f"{group + 1}")
            below = below + values
        axis.set(xlabel="step", ylabel="rate, nats per image")
        axis.tick_params(axis="x", labelsize=8, rotation=30)
        axis.grid(axis="y", color=GRAY, alpha=0.15)
        handles, labels = axis.get_legend_handles_labels()
        axis.legend(handles[::-1], labels[::-1], title="group", fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        return {"group_rates.png": render(figure)}


def needs_group_rates(subject: Subject) -> str | None:
    if reason := needs_groups(subject) or needs_matplotlib():
        return reason
    if subject.metrics is None or not subject.metrics.is_file():
        return f"needs {subject.metrics or 'metrics.jsonl'}, which does not exist"
    return (
        None if any(KEY in line for line in read_metrics(subject.metrics)) else "needs an epoch with a validation split"
    )


LEVELS = FigureKind("levels", levels, needs_groups)
TEMPERATURE_SAMPLES = FigureKind("temperatures", temperatures, needs_prior)
GROUP_RATES = FigureKind("group_rates", group_rates, needs_group_rates)
