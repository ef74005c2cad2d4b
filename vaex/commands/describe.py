"""`vaex describe`: the options that a config is made of, the model's layers, and the cost of a training step.

torch is imported only after the config has been checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

from vaex.config.compose import compose, create_hydra
from vaex.config.help import config_dirs, group_lines
from vaex.config.overrides import expand_data, without_plus
from vaex.config.schema import Config, check, config_dir
from vaex.errors import UserError
from vaex.text_table import human, text_table

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

  --data PATH            the images, in place of dataset.source.root
  --config-dir FOLDER    add your own options, as for vaex train
  --help                 print this text; `vaex train --help` lists all options and values"""


def main(arguments: list[str]) -> None:
    """Compose, build, count and print.

    Raises:
        UserError: about an argument, or a config from which no experiment can be built.
    """
    if {"--help", "-h"} & set(arguments):
        print(HELP)
        return
    folders, overrides = config_dirs(expand_data(arguments))
    for override in overrides:
        if override.startswith("-"):
            raise UserError(
                f"{override}: vaex describe takes GROUP=OPTION, KEY=VALUE, --data PATH and --config-dir FOLDER"
            )
    composed = compose(create_hydra(folders), without_plus(overrides))
    choices = {str(group): str(option) for group, option in composed.hydra.runtime.choices.items()}
    config = check(composed)
    if config.resume:
        raise UserError(f"resume={config.resume}: vaex describe takes no run; give the overrides of the run instead")

    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

    from vaex.build import build
    from vaex.config.targets import trust
    from vaex.cost import layers, step_cost
    from vaex.training.memory import ran_out

    try:
        with trust(folders):
            experiment = build(config)
        rows = layers(experiment.model, experiment.dataset.image_shape)
        cost = step_cost(experiment, config)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise UserError(
            f"the training step depends on the values of tensors ({error}), so it can't be counted without running it"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise UserError("out of memory for the weights alone; lower the sizes in architecture") from error
    print("Options: GROUP=OPTION, with a * at those of this config")
    lines = group_lines([config_dir(), *folders], choices, WIDTH)
    lines += ["", *_layer_lines(rows, experiment.dataset.image_shape)]
    print("\n".join([*lines, "", *_step_lines(cost, experiment, config)]))


def merged(rows: Iterable[Layer]) -> list[Layer]:
    """Merge the layers of consecutive equal blocks, and add up their numbers.

    For example, blocks.0.norm and blocks.1.norm become blocks.0–1.norm.
    """

    def split(row: Layer) -> tuple[str, ...]:  # a.3.b -> a, 3, b; the last two are empty outside of blocks
        match = re.fullmatch(r"(.*?)(?:\.(\d+)(?:\.(.+))?)?", row.path)
        return match.groups(default="") if match else (row.path, "", "")

    blocks = [
        (path, number, [replace(row, path=split(row)[2]) for row in group])
        for (path, number), group in groupby(rows, key=lambda row: split(row)[:2])
    ]
    sums = []
    for (path, layers), equal_blocks in groupby(blocks, key=lambda block: (block[0], block[2])):
        numbers = [number for _, number, _ in equal_blocks]
        count, between = len(numbers), "–".join(dict.fromkeys([numbers[0], numbers[-1]]))
        for layer in layers:
            name = ".".join(filter(None, (path, between, layer.path)))
            kind = layer.kind if count == 1 else f"{count} × {layer.kind}"
            sums.append(
                replace(layer, path=name, kind=kind, parameters=count * layer.parameters, flops=count * layer.flops)
            )
    return sums


def _layer_lines(rows: list[Layer], image_shape: tuple[int, int, int]) -> list[str]:
    def cells(path: str, kind: str, output: str, layers: list[Layer]) -> list[str | None]:
        parameters, flops = sum(row.parameters for row in layers), sum(row.flops for row in layers)
        return [path, kind, output, human(parameters) if parameters else None, human(flops, "FLOP") if flops else None]

    layers = [
        cells(row.path, row.kind, _sizes(row.shape) if row.shape is not None else "–", [row]) for row in merged(rows)
    ]
    parts = {
        part: inside
        for part in ("encoder", "posterior", "prior", "decoder", "likelihood")
        if (inside := [row for row in rows if row.path.split(".")[0] == part]) or part not in ("posterior", "prior")
    }
    sums = [cells(part, "", "", inside) for part, inside in (parts | {"all": rows}).items()]
    header = ["layer", "type", "output", "parameters", "forward"]
    return [
        f"Model, and the forward pass of one image, {_sizes(image_shape)} (channels × height × width), and one z",
        "",
        *text_table(header, [[], *layers, [], *sums], left={0, 1}, width=WIDTH, shorten=0, gap=2),
        "",
        f"  {sum(row.parameters for row in rows):,} parameters. FLOP: multiplications and additions in products of",
        "  matrices, convolutions and attention; elementwise work isn't counted.",
    ]


def _sizes(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "1"


def _step_lines(cost: StepCost, experiment: Experiment, config: Config) -> list[str]:
    size, dataset = config.batch_size, experiment.dataset
    if dataset.resident is False:
        images, place = size * _bytes(dataset.train[:1]), "one batch, streamed to the device (dataset.resident=false)"
    else:
        images, place = _bytes(dataset.train) + _bytes(dataset.validation), "training and validation, on the device"
        place += " if they fit" * (experiment.device.type == "cuda" and dataset.resident == "auto")
    memory = {
        "weights": (cost.weights, ""),
        "gradients": (cost.gradients, ""),
        "optimizer": (cost.optimizer or 0, "not known before it runs" if cost.optimizer is None else "its state"),
        "activations": (cost.activations, f"of {size:,} images, kept for the backward pass"),
        "images": (images, place),
    }
    total = human(sum(count for count, _ in memory.values()), "B")
    memory_rows = [[name, human(count, "B") if count else None, note] for name, (count, note) in memory.items()]
    flops = (cost.forward_flops, cost.backward_flops, cost.forward_flops + cost.backward_flops)
    work_rows = [
        [name, *(human(value / divisor, "FLOP") for value in flops)]
        for name, divisor in (("one image", size), (f"{size:,} images", 1))
    ]
    return [
        f"Training step of {size:,} images in {config.precision} on {experiment.device}, not compiled",
        "",
        *text_table(["work", "forward", "backward", "both"], [[], *work_rows], left={0}, gap=2),
        "",
        *text_table(
            ["memory", "", ""],
            [[], *memory_rows, [], ["all", total, "at least; temporary results come on top"]],
            left={0, 2},
            gap=2,
        ),
    ]


def _bytes(images: Images) -> int:
    factors = 0 if images.factors is None else images.factors.nbytes
    return images.pixels.nbytes + images.labels.nbytes + factors
