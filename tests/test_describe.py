"""`vaex describe` counts what a calculation by hand gives, and prints it legibly."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SMALL_NETWORKS, composed
from torch import Tensor, nn
from torch.nn import functional as F

from vaex.architectures.base import Encoder
from vaex.build import build, build_model
from vaex.commands.describe import main, merged
from vaex.config.schema import Config
from vaex.cost import Layer, layers, step_cost
from vaex.errors import UserError
from vaex.experiment import Experiment
from vaex.latents.posterior import DiagonalGaussian
from vaex.likelihoods.base import PixelDistribution
from vaex.model import Autoencoder
from vaex.objectives import Batch, Objective, Terms
from vaex.text_table import human

B, D, H, L = 32, 784, 16, 20  # batch, pixels, hidden, latents


class SquaresOfTheOutput(Objective):
    """Encoder, decoder and one more operation, so that the saved activations can be counted by hand."""

    stochastic = False

    def forward(self, model: Autoencoder, batch: Batch, step: Tensor) -> Terms:
        h = model.decoder(model.encoder(batch.input))
        none = DiagonalGaussian(torch.zeros(()), torch.zeros(()))
        return Terms(h.square().sum(), torch.zeros(()), None, none, PixelDistribution(h.shape))


def autoencoder(small: list[str], *overrides: str) -> tuple[Experiment, Config]:
    config = composed(*small, "objective=ae", "architecture.hidden=[16]", *overrides)
    return replace(build(config), objective=SquaresOfTheOutput()), config


def table(*overrides: str, shape: tuple[int, int, int] = (1, 28, 28), classes: int = 0) -> dict[str, Layer]:
    model = build_model(composed(*overrides), shape, classes, stochastic=True)
    rows = layers(model, shape)
    assert sum(row.parameters for row in rows) == sum(p.numel() for p in model.parameters())
    return {row.path: row for row in rows}


def test_a_linear_layer_takes_two_operations_a_weight() -> None:
    rows = table("architecture.hidden=[16]", "likelihood=cross_entropy")
    sizes = {"encoder.layers.0": (D, H), "encoder.output": (H, 2 * L), "decoder.layers.0": (L, H)}
    sizes["decoder.output"] = (H, D)
    assert list(rows) == list(sizes)  # in the order of the forward pass, and no activation among them
    for path, (fan_in, fan_out) in sizes.items():
        expected = Layer(path, "Linear", (fan_out,), fan_in * fan_out + fan_out, 2 * fan_in * fan_out)
        assert rows[path] == expected


def test_a_convolution_takes_two_operations_a_weight_and_place() -> None:
    rows = table("architecture=conv", "architecture.widths=[4,6]", shape=(3, 30, 20))
    first, second = rows["encoder.convolutions.0"], rows["encoder.convolutions.2"]
    assert (first.shape, first.flops) == ((4, 15, 10), 2 * 4**2 * 3 * 4 * 15 * 10)
    assert (second.shape, second.flops) == ((6, 7, 5), 2 * 4**2 * 4 * 6 * 7 * 5)
    up = rows["decoder.convolutions.1"]  # each of its inputs meets each weight
    assert (up.kind, up.shape, up.flops) == ("ConvTranspose2d", (4, 15, 10), 2 * 4**2 * 6 * 4 * 7 * 5)


def test_attention_is_counted_with_its_products_and_all_its_weights() -> None:
    hidden, tokens = 16, 50  # 7 × 7 patches and the summary
    rows = table("architecture=vit", f"architecture.hidden={hidden}", "architecture.depth=2", classes=10)
    for block in range(2):
        attention = rows[f"encoder.blocks.{block}.self_attn"]
        assert attention.shape == (tokens, hidden)
        assert attention.parameters == 4 * (hidden**2 + hidden)  # queries, keys, values, output
        assert attention.flops == 2 * tokens * 4 * hidden**2 + 2 * 2 * tokens**2 * hidden
    assert rows["encoder.summary"].kind == "Parameter"


def test_a_step_is_forward_and_backward_without_the_gradient_of_the_images(small: list[str]) -> None:
    cost = step_cost(*autoencoder(small))
    forward = 2 * (D * H + H * L + L * H + H * D)
    assert cost.forward_flops == B * forward
    assert cost.backward_flops == B * (2 * forward - 2 * D * H)


def test_a_steps_attention_is_counted_forward_and_backward(small: list[str]) -> None:
    def both(depth: int) -> tuple[int, int]:
        vit = ["architecture=vit", "architecture.hidden=16", f"architecture.depth={depth}"]
        config = composed(*small, *vit)
        cost = step_cost(build(config), config)
        return cost.forward_flops, cost.backward_flops

    one, two = both(1), both(2)
    expected = [0, 0]
    for tokens in (50, 49):
        projections = 2 * tokens * (4 + 2 * 4) * 16**2  # of attention, and the two layers of four times the width
        product = 2 * tokens**2 * 16  # queries with keys, as many for the values
        expected[0] += projections + 2 * product
        expected[1] += 2 * projections + 5 * product  # each has two gradients, and the first is computed again
    assert [b - a for a, b in zip(one, two, strict=True)] == [B * flops for flops in expected]


@pytest.mark.parametrize("activation, saved_of_hidden", [("relu", 1), ("silu", 2)])
def test_memory_of_a_tiny_network(activation: str, saved_of_hidden: int, small: list[str]) -> None:
    """Each layer saves its input. ReLU needs its output, the next layer's input; SiLU also needs its own input."""
    experiment, config = autoencoder(small, f"architecture.activation={activation}")
    cost = step_cost(experiment, config)
    count = D + saved_of_hidden * H + L + saved_of_hidden * H + D  # the last one for the square
    assert cost.activations == 4 * B * count
    weights = sum(p.numel() for p in experiment.model.parameters())
    used = weights - 1  # the scale of the likelihood has no part in this objective
    assert (cost.weights, cost.gradients) == (
        4 * (weights + 2 * D + 1),
        4 * used,
    )  # with the center of x, the offset of h and the origin of the prior
    assert (
        cost.optimizer is not None and 0 <= cost.optimizer - 2 * 4 * used <= 8 * 8
    )  # two for each weight, and step counters


@pytest.mark.parametrize(
    "overrides",
    [
        ["architecture=conv", "architecture.widths=[4,8]", "precision=bf16"],
        ["architecture=resnet", *SMALL_NETWORKS["resnet"], "objective.samples=2"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_activations_are_those_that_a_real_step_saves(overrides: list[str], small: list[str]) -> None:
    config = composed(*small, *overrides)
    experiment = build(config)
    model = experiment.model.train()
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no memory is reused

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor.detach())
        return tensor

    images = experiment.dataset.train[: config.batch_size]
    x = experiment.dataset.to_float(images.pixels)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        experiment.objective(model, Batch(x, x, images.labels), torch.zeros((), dtype=torch.int64))
    assert step_cost(experiment, config).activations == sum(saved.values())


def test_state_of_other_optimizers(small: list[str]) -> None:
    experiment, config = autoencoder(small)
    plain = replace(config, optimizer={"_target_": "torch.optim.SGD", "lr": 0.1})
    momentum = replace(config, optimizer={"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9})
    assert step_cost(experiment, plain).optimizer == 0
    cost = step_cost(experiment, momentum)
    assert cost.optimizer == cost.gradients


def test_no_batch_is_too_large(small: list[str]) -> None:
    config = composed(*small, *SMALL_NETWORKS["mlp"])
    experiment = build(config)
    before = {name: value.clone() for name, value in experiment.model.state_dict().items()}
    large = step_cost(experiment, replace(config, batch_size=10**7))
    assert large.activations > 5 * 10**10  # bytes
    assert large.forward_flops == 10**7 // B * step_cost(experiment, config).forward_flops
    assert all(torch.equal(value, before[name]) for name, value in experiment.model.state_dict().items())
    assert all(p.grad is None for p in experiment.model.parameters())


class Odd(Encoder):
    """An encoder with operations and weights outside of layers, an unused layer, and a layer that is called twice."""

    def __init__(self, *, image_shape: tuple[int, int, int], out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(784, 6))
        self.twice = nn.Linear(6, 6)
        self.never = nn.Linear(3, 3)
        self.output = nn.Linear(6, out_features)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        out: Tensor = self.output(self.twice(self.twice(F.relu(x.flatten(1) @ self.weight))))
        return out


def test_operations_outside_of_layers_are_counted() -> None:
    rows = table(
        "architecture.encoder._target_=test_describe.Odd",
        "~architecture.encoder.hidden",
        "~architecture.encoder.activation",
    )
    encoder = [row for path, row in rows.items() if path.startswith("encoder")]
    assert encoder == [
        Layer("encoder", "Odd", (40,), 784 * 6 + 3 * 3 + 3, 2 * 784 * 6),
        Layer("encoder.twice", "Linear", (6,), 6 * 6 + 6, 2 * 2 * 6 * 6),
        Layer("encoder.output", "Linear", (40,), 6 * 40 + 40, 2 * 6 * 40),
    ]


def test_equal_blocks_are_one_row_with_their_sum() -> None:
    def block(name: str, width: int = 4) -> list[Layer]:
        return [Layer(f"{name}.norm", "LayerNorm", (width,), 8, 0), Layer(f"{name}.linear", "Linear", (width,), 20, 32)]

    rows = [*block("a.0"), *block("a.1"), *block("a.2", 8), *block("b.3"), Layer("a.out", "Linear", (4,), 1, 2)]
    assert [(row.path, row.kind, row.parameters, row.flops) for row in merged(rows)] == [
        ("a.0–1.norm", "2 × LayerNorm", 16, 0),
        ("a.0–1.linear", "2 × Linear", 40, 64),
        ("a.2.norm", "LayerNorm", 8, 0),
        ("a.2.linear", "Linear", 20, 32),
        ("b.3.norm", "LayerNorm", 8, 0),
        ("b.3.linear", "Linear", 20, 32),
        ("a.out", "Linear", 1, 2),
    ]


def test_counts_are_printed_with_three_digits() -> None:
    for value, unit, printed in [
        (0, "B", "0 B"),
        (784, "", "784"),
        (999, "B", "999 B"),
        (1000, "", "1.00 k"),
        (9_995, "", "10.0 k"),
        (1_360_697, "", "1.36 M"),
        (45_440_000, "B", "45.4 MB"),
        (999_499, "B", "999 kB"),
        (999_500, "B", "1.00 MB"),
        (3.4e9, "FLOP", "3.40 GFLOP"),
        (0.5, "FLOP", "0.50 FLOP"),
    ]:
        assert human(value, unit) == printed


def described(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> str:
    main(list(arguments))
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "architecture", ["architecture=mlp", "architecture=vit architecture.hidden=16 architecture.depth=2"]
)
def test_the_description(architecture: str, small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    chosen = [*small, *architecture.split(), "likelihood=laplace", "likelihood/scale=per_image"]
    out = described(capsys, chosen)
    lines = out.splitlines()
    assert max(map(len, lines)) <= 100
    starred = {line.split()[1] for line in lines if line.startswith("  * ")}
    assert starred == {
        architecture.split("=")[1].split()[0],
        "none",
        "mnist",
        "laplace",
        "per_image",
        "standard",
        "diagonal",
        "vae",
        "adam",
        "cosine",
    }
    assert "    conv " in out and "    student_t " in out
    model = build(composed(*chosen)).model
    count = sum(p.numel() for p in model.parameters())
    assert f"  {count:,} parameters." in out
    all_parts = next(line for line in lines if line.startswith("  all "))
    assert all_parts.split()[1:3] == human(count).split()
    assert "Training step of 32 images in float32 on cpu" in out
    images = 1200 * (784 + 8)
    assert re.search(rf"^  images +{human(images, 'B')}  training and validation", out, flags=re.MULTILINE)


def test_an_option_of_the_user(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "it's mine" / "architecture"
    folder.mkdir(parents=True)
    (folder / "wide.yaml").write_text("# One layer\ndefaults: [mlp, _self_]\nhidden: [33]\n")
    monkeypatch.chdir(tmp_path)
    for flag in (["--config-dir", "it's mine"], [f"--config-dir={folder.parent}"]):
        out = described(capsys, [*flag, "architecture=wide", "dataset.resident=false", *small])
        assert f"{human(32 * (784 + 8), 'B')}  one batch, streamed" in out
        assert "  * wide    One layer" in out
        assert human(784 * 33 + 33) in out


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["likelihood=laplce"], ["likelihood=laplce", "did you mean laplace"]),
        (["batch_size=1001"], ["batch_size=1001", "1000 training images"]),
        (["likelihood=bernoulli"], ["gray", "dataset.binarize"]),
        (["-m", "beta=1,2"], ["-m", "KEY=VALUE"]),
        (["resume=runs/1"], ["resume=runs/1", "takes no run"]),
        (["--config-dir=/no/such"], ["--config-dir=/no/such", "no such folder"]),
        (["architecture.hidden=[4000000000]"], ["out of memory", "architecture"]),
    ],
    ids=lambda value: value[0],
)
def test_errors_are_one_line(arguments: list[str], parts: list[str], small: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        main([*small, *arguments])
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert "vaex describe [GROUP=OPTION" in described(capsys, ["--help"])
