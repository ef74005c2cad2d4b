"""`vaex describe`: the options that a config is made of, its layers, and what a training step costs.

Imports torch only after the config is known to be good.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from hydra import compose, initialize_config_dir

from vaex.config.errors import one_line
from vaex.config.help import config_dirs, group_lines
from vaex.config.schema import Config, check, config_dir
from vaex.errors import UserError

if TYPE_CHECKING:
    from vaex.cost import Layer, StepCost
    from vaex.data.dataset import Images
    from vaex.experiment import Experiment

WIDTH = 100  # columns

HELP = """\
vaex describe [GROUP=OPTION …] [KEY=VALUE …]

Prints what `vaex train` with the same overrides would run, without running it: the options of each
group, the model's layers with their parameters and FLOPs, and the FLOPs and the memory of a
training step.

  --config-dir FOLDER    your own options, as for vaex train
  --help                 this text; `vaex train --help` lists all options and values"""


def main(arguments: list[str]) -> None:
    """Compose, build, count and print.

    Raises:
        UserError: an argument, or a config that can't be built.
    """
    if {"--help", "-h"} & set(arguments):
        print(HELP)
        return
    folders, overrides = config_dirs(arguments)
    config, choices = _composed(folders, overrides)
    if config.resume:
        raise UserError(f"resume={config.resume}: vaex describe takes no run; give the overrides that it was made with")

    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

    from vaex.build import build
    from vaex.config.targets import trusting
    from vaex.cost import layers, step_cost
    from vaex.training.memory import ran_out

    try:
        with trusting(folders):
            experiment = build(config)
        rows = layers(experiment.model, experiment.dataset.image_shape)
        cost = step_cost(experiment, config)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise UserError(
            f"a part of the step looks at values ({error}); it can't be counted without running it"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise UserError("out of memory for the weights alone; lower the sizes in architecture") from error
    parts = [
        ["Options: GROUP=OPTION, with a * at those of this config"],
        group_lines([config_dir(), *folders], choices, WIDTH),
        ["", *_layer_lines(rows, experiment.dataset.image_shape)],
        ["", *_step_lines(cost, experiment, config)],
    ]
    print("\n".join(line for part in parts for line in part))


def _composed(folders: Sequence[Path], overrides: list[str]) -> tuple[Config, dict[str, str]]:
    """The config, and the option chosen in each group."""
    for override in overrides:
        if override.startswith("-"):
            raise UserError(f"{override}: vaex describe takes GROUP=OPTION, KEY=VALUE and --config-dir FOLDER")
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--config-dir={folder}: no such folder")
    quoted = ["'file://" + str(folder.resolve()).replace("'", "\\'") + "'" for folder in folders]
    paths = [f"hydra.searchpath=[{','.join(quoted)}]"] if folders else []
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            composed = compose("train", [*paths, *overrides], return_hydra_config=True)
    except Exception as error:
        message = one_line(error, overrides, started=False)
        if message is None:
            raise
        raise UserError(message) from error
    chosen = {str(group): str(option) for group, option in composed.hydra.runtime.choices.items()}
    del composed.hydra
    return check(composed), chosen


def human(value: float, unit: str = "") -> str:
    """Three digits and a decimal prefix: 1,360,697 -> 1.36 M."""
    prefixes = iter(("", "k", "M", "G", "T", "P", "E"))
    prefix = next(prefixes)
    if value < 1000 and value == int(value):
        return f"{int(value)} {unit}".rstrip()
    while float(f"{value:.3g}") >= 1000:
        value, prefix = value / 1000, next(prefixes)
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {prefix}{unit}".rstrip()


@dataclass
class _Blocks:
    """Like blocks in a row, `path.number.…`, and the layers of each; no numbers: layers that are in no block."""

    path: str
    numbers: list[int]
    inside: list[Layer]  # with paths from the block


def merged(rows: Iterable[Layer]) -> list[Layer]:
    """Layers of like blocks in a row as one: blocks.0.norm and blocks.1.norm as blocks.0–1.norm, with its sums."""
    found: list[_Blocks] = []
    for (path, number), group in groupby(rows, key=lambda row: _split(row.path)[:2]):
        inside = [replace(row, path=_split(row.path)[2]) for row in group]
        latest = found[-1] if found else None
        if number is not None and latest and (latest.path, latest.inside) == (path, inside):
            latest.numbers.append(number)
        else:
            found.append(_Blocks(path, [] if number is None else [number], inside))
    return [_sum(blocks, row) for blocks in found for row in blocks.inside]


def _sum(blocks: _Blocks, row: Layer) -> Layer:
    """Of the layer in each of the blocks."""
    numbers, count = blocks.numbers, max(1, len(blocks.numbers))
    between = "" if not numbers else f"{numbers[0]}" if count == 1 else f"{numbers[0]}–{numbers[-1]}"
    return replace(
        row,
        path=".".join(name for name in (blocks.path, between, row.path) if name),
        kind=row.kind if count == 1 else f"{count} × {row.kind}",
        parameters=count * row.parameters,
        flops=count * row.flops,
    )


def _split(path: str) -> tuple[str, int | None, str]:
    """`a.3.b` -> a, 3, b; a path without a number is all in its first part."""
    names = path.split(".")
    for n, name in enumerate(names):
        if name.isdigit():
            return ".".join(names[:n]), int(name), ".".join(names[n + 1 :])
    return path, None, ""


def _layer_lines(rows: list[Layer], image_shape: tuple[int, int, int]) -> list[str]:
    def row(*start: str, inside: Iterable[Layer]) -> tuple[str, ...]:
        inside = list(inside)
        parameters, flops = sum(layer.parameters for layer in inside), sum(layer.flops for layer in inside)
        return (*start, _count(parameters), _count(flops, "FLOP"))

    table = [row(layer.path, layer.kind, _shape(layer.shape), inside=[layer]) for layer in merged(rows)]
    sums = [
        row(part, "", "", inside=(layer for layer in rows if layer.path.split(".")[0] == part))
        for part in ("encoder", "decoder", "likelihood")
    ]
    head = ("layer", "type", "output", "parameters", "forward")
    return [
        f"Model, and the forward pass of one image, {_shape(image_shape)} (channels × height × width), and one z",
        "",
        *_aligned("llrrr", [head], table, [*sums, row("all", "", "", inside=rows)]),
        "",
        f"  {sum(layer.parameters for layer in rows):,} parameters. FLOP: multiplications and additions in products of",
        "  matrices, convolutions and attention; elementwise work isn't counted.",
    ]


def _aligned(sides: str, *blocks: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns in WIDTH, each to the left or the right, with rules between blocks of rows.

    Where that is too wide, the first column loses its start.
    """
    rows = [row for block in blocks for row in block]
    widths = [max(len(row[n]) for row in rows) for n in range(len(sides))]
    widths[0] = min(widths[0], WIDTH - sum(widths[1:]) - 2 * len(widths))
    lines: list[str] = []
    for block in blocks:
        if lines:
            lines.append("  " + "─" * (sum(widths) + 2 * len(widths) - 2))
        for first, *others in block:
            fits = first if len(first) <= widths[0] else "…" + first[1 - widths[0] :]
            cells = [
                cell.rjust(width) if side == "r" else cell.ljust(width)
                for cell, side, width in zip((fits, *others), sides, widths, strict=True)
            ]
            lines.append("  " + "  ".join(cells).rstrip())
    return lines


def _shape(shape: tuple[int, ...] | None) -> str:
    return "–" if shape is None else " × ".join(map(str, shape)) or "1"


def _count(value: int, unit: str = "") -> str:
    return human(value, unit) if value else "–"


def _step_lines(cost: StepCost, experiment: Experiment, config: Config) -> list[str]:
    size, dataset = config.batch_size, experiment.dataset
    if dataset.resident is False:
        images, where = size * _bytes(dataset.train[:1]), "one batch, streamed to the device (dataset.resident=false)"
    else:
        images, where = _bytes(dataset.train) + _bytes(dataset.validation), "training and validation, on the device"
        where += " if they fit" * (experiment.device.type == "cuda" and dataset.resident == "auto")
    memory = [
        ("weights", cost.weights, ""),
        ("gradients", cost.gradients, ""),
        ("optimizer", cost.optimizer or 0, "its state" if cost.optimizer is not None else "not known before it runs"),
        ("activations", cost.activations, f"of {size:,} images, kept for the backward pass"),
        ("images", images, where),
    ]
    total = ("all", human(sum(value for _, value, _ in memory), "B"), "at least; temporary results come on top")
    forward, backward = cost.forward_flops, cost.backward_flops
    work = [
        (name, *(human(flops / images, "FLOP") for flops in (forward, backward, forward + backward)))
        for name, images in (("one image", size), (f"{size:,} images", 1))
    ]
    return [
        f"Training step of {size:,} images in {config.precision} on {experiment.device}, not compiled",
        "",
        *_aligned("lrrr", [("work", "forward", "backward", "both")], work),
        "",
        *_aligned("lrl", [("memory", "", "")], [(n, _count(value, "B"), note) for n, value, note in memory], [total]),
    ]


def _bytes(images: Images) -> int:
    factors = 0 if images.factors is None else images.factors.nbytes
    return images.pixels.nbytes + images.labels.nbytes + factors
