"""Encoders and decoders: any size, any channels, every weight used, and no image mixed with another.

Every architecture in conf/architecture is tested, at the small sizes that its YAML file gives.
"""

import copy
import math
import re
from functools import cache
from typing import Any

import pytest
import torch
from conftest import SMALL_NETWORKS, composed
from torch import nn

from vaex.architectures import resnet, vit
from vaex.architectures.base import output_layer
from vaex.build import build_model
from vaex.config.create import create
from vaex.errors import UserError

# The encoder of a ladder knows its decoder: tests/test_ladder.py.
ARCHITECTURES = [name for name in SMALL_NETWORKS if name != "ladder"]
SIZES = [(28, 28), (32, 32), (48, 64), (27, 35), (5, 4), (33, 18)]
CLASSES = 3


@cache
def group(name: str) -> dict[str, Any]:
    """The composed config of an architecture at its small sizes."""
    return composed(f"architecture={name}", *SMALL_NETWORKS[name]).architecture


def network(part: str, name: str, size: tuple[int, int], channels: int, classes: int, **changed: Any) -> nn.Module:
    """An encoder to 6 features, or a decoder from 5 features and the classes to 2 channels."""
    module: nn.Module = create(
        f"architecture.{part}",
        group(name)[part] | changed,
        image_shape=(channels, *size),
        out_features=6,
        condition_features=classes,
        in_features=5 + classes,
        out_channels=2,
    )
    return module


def pair(
    name: str, size: tuple[int, int], channels: int = 1, classes: int = 0, **changed: Any
) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder, none of their weights zero. Skips the test if the architecture refuses the size."""
    torch.manual_seed(0)
    try:
        encoder, decoder = (network(part, name, size, channels, classes, **changed) for part in ("encoder", "decoder"))
    except UserError as error:
        assert size not in ((28, 28), (32, 32)), error
        pytest.skip(str(error))
    with torch.no_grad():
        for parameter in [*encoder.parameters(), *decoder.parameters()]:
            parameter += 0.05 * torch.randn_like(parameter)  # no weight stays at an initial value of zero
    return encoder, decoder


def inputs(
    size: tuple[int, int], channels: int = 1, classes: int = 0, count: int = 3
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Images, one-hot labels, and z with the labels joined to it."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, channels, *size, generator=generator)
    z = torch.randn(count, 5, generator=generator)
    if not classes:
        return x, None, z
    condition = torch.eye(classes)[torch.arange(count) % classes]
    return x, condition, torch.cat([z, condition], dim=1)


@pytest.mark.parametrize("channels, classes", [(1, 0), (1, CLASSES), (3, CLASSES)])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shapes_and_a_gradient_in_every_weight_and_every_input(
    name: str, size: tuple[int, int], channels: int, classes: int
) -> None:
    encoder, decoder = pair(name, size, channels, classes)
    x, condition, z = inputs(size, channels, classes)
    tensors = [tensor.requires_grad_() for tensor in (x, z, condition) if tensor is not None]
    code, h = encoder(x) if condition is None else encoder(x, condition), decoder(z)
    assert code.shape == (3, 6) and h.shape == (3, 2, *size)
    assert code.isfinite().all() and h.isfinite().all()
    (code.square().sum() + h.square().sum()).backward()
    for parameter in [*encoder.parameters(), *decoder.parameters()]:
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any()
    for tensor in tensors:
        assert tensor.grad is not None and (tensor.grad != 0).all()  # every pixel counts, those at the edges too


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_images_of_a_batch_do_not_mix(name: str, size: tuple[int, int]) -> None:
    encoder, decoder = pair(name, size, classes=CLASSES)
    x, condition, z = inputs(size, classes=CLASSES)
    assert condition is not None
    other_x, other_z, other_condition = x.clone(), z.clone(), condition.clone()
    other_x[1], other_z[1], other_condition[1] = 1 - x[1], -z[1], condition[0]
    with torch.no_grad():
        for before, after in (
            (encoder(x, condition), encoder(other_x, condition)),
            (encoder(x, condition), encoder(x, other_condition)),
            (decoder(z), decoder(other_z)),
        ):
            differ = (before != after).flatten(1).any(dim=1)
            assert differ.tolist() == [False, True, False]
        torch.testing.assert_close(encoder(x[1:2], condition[1:2])[0], encoder(x, condition)[1])
        torch.testing.assert_close(decoder(z[1:2])[0], decoder(z)[1])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_number_in_z_and_each_label_changes_every_pixel_in_its_own_way(name: str, size: tuple[int, int]) -> None:
    _, decoder = pair(name, size, classes=CLASSES)
    z = inputs(size, classes=CLASSES)[2][:1]
    moved = z + torch.eye(z.shape[1])
    with torch.no_grad():
        changes = (decoder(moved) - decoder(z)).abs().sum(dim=1)  # [numbers in z, H, W]
    assert (changes > 0).all()
    pictures = changes.flatten(1)
    assert torch.cdist(pictures, pictures).fill_diagonal_(1).min() > 1e-6  # and no two do it alike


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_same_in_training_and_evaluation(name: str) -> None:
    """No BatchNorm, no dropout, no state: a run resumes exactly, and runs can be stacked."""
    for module, batch in zip(pair(name, (28, 28)), inputs((28, 28))[::2], strict=True):
        assert not any(isinstance(part, nn.modules.batchnorm._NormBase) for part in module.modules())
        with torch.no_grad():
            torch.testing.assert_close(module.train()(batch), module.eval()(batch))
        assert set(module.state_dict()) == {parameter for parameter, _ in module.named_parameters()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_last_layer_is_linear(name: str) -> None:
    """The output is proportional to the weights of the last layer, however large they are."""
    for module, batch in zip(pair(name, (28, 28)), inputs((28, 28))[::2], strict=True):
        last = output_layer(module)
        assert last is not None
        with torch.no_grad():
            before = module(batch)
            for parameter in last.parameters():
                parameter *= -1024  # exact
            assert torch.equal(module(batch), -1024 * before)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_with_bf16_only_the_last_layer_is_float32(name: str) -> None:
    """It adds no rounding to what the layers before it return, and its output is on no grid of bfloat16."""
    config = composed("precision=bf16", f"architecture={name}", *SMALL_NETWORKS[name], "latent_dim=5")
    model = build_model(config, (1, 28, 28), classes=0, stochastic=True)
    calls: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            layer.register_forward_hook(lambda layer, given, output: calls.update({layer: (given[0], output)}))
    x, _, z = inputs((28, 28))
    model.encode(x)
    model.decode(z)
    for part in (model.encoder, model.decoder):
        last = output_layer(part)
        assert last is not None
        features, output = calls.pop(last)
        exact = type(last).forward(copy.deepcopy(last).double(), features.double()).float()
        assert output.dtype == torch.float32
        torch.testing.assert_close(output, exact, rtol=1e-5, atol=1e-5)
        assert (output != output.bfloat16()).float().mean() > 0.9
    assert {output.dtype for _, output in calls.values()} == {torch.bfloat16}


def test_a_residual_block_without_its_last_convolution_is_the_identity() -> None:
    block = resnet.Block(8, 2, "relu")
    x = torch.randn(2, 8, 6, 7)
    assert not torch.allclose(block(x), x, atol=0.01)
    for parameter in block.branch[-1].parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(block(x), x)


def test_a_resnet_halves_the_image_between_stages() -> None:
    encoder, decoder = pair("resnet", (27, 35), widths=[2, 4, 6])
    seen: list[tuple[int, ...]] = []
    for part in (encoder, decoder):
        for module in part.modules():
            if isinstance(module, resnet.Block):
                module.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[1:])))
    x, _, z = inputs((27, 35))
    encoder(x), decoder(z)
    down = [(2, 27, 35), (4, 13, 17), (6, 6, 8)]
    assert seen == down + down[::-1]


@pytest.mark.parametrize("name", ["conv", "resnet"])
def test_convolutions_run_channels_last(name: str) -> None:
    seen: list[bool] = []

    def look(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        seen.append(output.is_contiguous(memory_format=torch.channels_last))

    for part, batch in zip(pair(name, (28, 28), channels=3), inputs((28, 28), channels=3)[::2], strict=True):
        for module in part.modules():
            if isinstance(module, nn.modules.conv._ConvNd):
                assert module.weight.is_contiguous(memory_format=torch.channels_last)
                module.register_forward_hook(look)
        part(batch)
    assert len(seen) >= 4 and all(seen)


@pytest.mark.parametrize(
    "name, size, changed, message",
    [
        ("mlp", (8, 8), {"hidden": [4, 0]}, "every width must be >= 1"),
        ("mlp", (8, 8), {"activation": "rely"}, "architecture.activation=rely: must be one of relu, tanh"),
        (
            "conv",
            (9, 6),
            {"widths": [4, 4, 4]},
            "architecture.widths has 3 layers, which need images of at least 8 × 8",
        ),
        ("conv", (9, 6), {"widths": [4, 4, 4]}, "these are 9 × 6: give at most 2 widths"),
        ("conv", (8, 8), {"widths": []}, "architecture.widths=[]: must be one or more"),
        ("conv", (8, 8), {"widths": [0]}, "architecture.widths=[0]: must be one or more"),
        ("resnet", (3, 7), {"widths": [4, 4, 4]}, "3 layers, which need images of at least 4 × 4 pixels"),
        ("resnet", (3, 7), {"widths": [4, 4, 4]}, "these are 3 × 7: give at most 2 widths"),
        ("resnet", (8, 8), {"widths": [12, 18], "groups": 4}, "architecture.groups=4: must divide each of"),
        ("resnet", (8, 8), {"widths": [12, 18], "groups": 4}, "architecture.widths=[12, 18]; possible are 1, 2, 3, 6"),
        ("resnet", (8, 8), {"groups": 0}, "architecture.groups=0: must divide"),
        ("resnet", (8, 8), {"depth": 0}, "architecture.depth=0: must be >= 1"),
        ("resnet", (8, 8), {"activation": "rely"}, "architecture.activation=rely: must be one of relu, tanh"),
        (
            "vit",
            (28, 42),
            {"patch_size": 4},
            "patch_size=4: must divide height and width of the images, 28 × 42; possible are 1, 2, 7, 14",
        ),
        ("vit", (8, 8), {"patch_size": 0}, "architecture.patch_size=0: must divide"),
        ("vit", (8, 8), {"hidden": 6}, "architecture.hidden=6: must be a multiple of 4"),
        ("vit", (8, 8), {"heads": 3}, "architecture.heads=3: must divide architecture.hidden=8"),
        ("vit", (8, 8), {"depth": 0}, "architecture.depth=0: must be >= 1"),
        ("vit", (8, 8), {"mlp_ratio": 0}, "architecture.mlp_ratio=0: must be >= 1"),
    ],
)
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_invalid_sizes_are_refused_in_one_line(
    name: str, size: tuple[int, int], changed: dict[str, Any], message: str, part: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as error:
        network(part, name, size, channels=1, classes=0, **changed)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("training", [True, False])
def test_a_block_is_that_of_pytorch(training: bool) -> None:
    block = vit.Block(hidden=32, heads=4, features=64).train(training)
    original = torch.nn.TransformerEncoderLayer(
        32, 4, 64, dropout=0.0, activation=torch.nn.functional.gelu, batch_first=True, norm_first=True
    ).train(training)
    original.load_state_dict(block.state_dict())
    x = torch.randn(3, 17, 32, requires_grad=True)
    outputs = [layer(x) for layer in (block, original)]
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*(torch.autograd.grad(output.square().sum(), x)[0] for output in outputs))


@pytest.mark.parametrize("grid, features", [((7, 7), 16), ((1, 9), 4), ((16, 12), 64)])
def test_positions_are_the_sines_and_cosines_of_the_paper(grid: tuple[int, int], features: int) -> None:
    """Vaswani et al. 2017, section 3.5: sin and cos of position / 10000^(2i / d), d being half the features here."""
    table = vit.positions(grid, features)
    assert table.shape == (grid[0] * grid[1], features)
    quarter = features // 4
    for row, column, i in [(0, 0, 0), (grid[0] - 1, grid[1] - 1, quarter - 1), (grid[0] // 2, 2, quarter // 2)]:
        entry = table[row * grid[1] + column]
        wavelength = 10_000 ** (2 * i / (features / 2))
        angles = (row / wavelength, column / wavelength)
        expected = [f(angle) for angle in angles for f in (math.sin, math.cos)]
        assert entry[i::quarter].tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.pdist(table).min() > 1e-3 if len(table) > 1 else True


def test_a_transformer_knows_where_a_patch_is() -> None:
    encoder, decoder = pair("vit", (8, 8))
    x = torch.zeros(2, 1, 8, 8)
    x[0, 0, :4, :4] = x[1, 0, 4:, 4:] = 1  # the same patch, elsewhere
    with torch.no_grad():
        assert (encoder(x)[0] - encoder(x)[1]).abs().max() > 1e-4
        picture = decoder(torch.randn(1, 5))[0]
    corners = [picture[:, top : top + 4, left : left + 4] for top in (0, 4) for left in (0, 4)]
    assert all(not torch.allclose(one, other) for n, one in enumerate(corners) for other in corners[:n])


class Flat(nn.Module):
    """An encoder from outside vaex that knows nothing of conditions, and asks for no image_shape."""

    def __init__(self, out_features: int, stem: nn.Module) -> None:
        super().__init__()
        self.stem, self.output = stem, nn.LazyLinear(out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.output(self.stem(x.flatten(1)))
        return out


def test_an_encoder_without_condition_features_is_for_unconditional_models() -> None:
    """It gets what its signature asks for, and so does the part that its YAML file nests in it."""
    flat = {"_target_": f"{__name__}.Flat", "stem": {"_target_": "torch.nn.Linear", "in_features": 64}}
    config = composed("latent_dim=3", *SMALL_NETWORKS["mlp"])
    config.architecture["encoder"] = flat
    model = build_model(config, (1, 8, 8), classes=5, stochastic=True)
    assert model.encoder.stem.out_features == 6
    assert model.encode(torch.rand(2, 1, 8, 8)).mean.shape == (2, 3)
    config.conditional = True
    with pytest.raises(UserError, match=r"conditional=true: .*Flat takes no condition_features") as error:
        build_model(config, (1, 8, 8), classes=5, stochastic=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, latent_shape", [("conv", (3, 7, 7)), ("resnet", (3, 14, 14))])
@pytest.mark.parametrize("classes", [0, CLASSES])
def test_spatial_latents_act_where_they_are(name: str, latent_shape: tuple[int, int, int], classes: int) -> None:
    """The image around a position changes the latents there most, and each latent changes the image around it most."""
    shape = f"latent_shape=[{','.join(map(str, latent_shape))}]"
    conditional = ["conditional=true"] if classes else []
    torch.manual_seed(0)
    overrides = [f"architecture={name}", *SMALL_NETWORKS[name], shape, *conditional]
    model = build_model(composed(*overrides), (1, 28, 28), classes, stochastic=True)
    assert model.latent_dim == math.prod(latent_shape)
    channels, height, width = latent_shape
    x, labels = torch.rand(1, 1, 28, 28), torch.zeros(1, dtype=torch.int64) if classes else None
    changed = x.clone()
    changed[..., :4, :4] = 1 - changed[..., :4, :4]
    with torch.no_grad():
        means = [model.encode(images, labels).mean.view(latent_shape) for images in (x, changed)]
        difference = (means[0] - means[1]).abs().sum(0)
        assert difference[: height // 4, : width // 4].mean() > 5 * difference[height // 2 :, width // 2 :].mean()
        z = torch.zeros(2, *latent_shape)
        z[1, 0, 0, 0] = 5
        two = labels.repeat(2) if labels is not None else None
        a, b = model.decode(z.flatten(1), two).mean
        assert (a - b).abs()[:, :7, :7].mean() > 5 * (a - b).abs()[:, 14:, 14:].mean()


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["architecture=conv", "latent_shape=[4,8,8]"], r"must be \[channels,7,7\], as the network's smallest"),
        (["architecture=mlp", "latent_shape=[4,8,8]"], "latent_shape: vaex.architectures.mlp.* does not take it"),
        (["architecture=conv", "latent_shape=[4,7,7]", "posterior=full"], "needs posterior=diagonal"),
    ],
)
def test_spatial_latents_that_do_not_fit_are_refused(overrides: list[str], message: str) -> None:
    small = SMALL_NETWORKS["conv"] if "architecture=conv" in overrides else []
    with pytest.raises(UserError, match=message):
        build_model(composed(*small, *overrides), (1, 28, 28), 0, stochastic=True)
