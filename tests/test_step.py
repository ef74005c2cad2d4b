"""The training step: the same numbers however it is run, and no look at a value on the way."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest
import torch
from conftest import composed
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from vaex.build import build
from vaex.config.schema import TrainerConfig
from vaex.data.stream import IndexStream
from vaex.errors import UserError
from vaex.experiment import Experiment
from vaex.likelihoods.softplus import softplus
from vaex.training.background import Background
from vaex.training.capture import WORTH_COMPILING, CapturedStep, compile_step, resolve_auto
from vaex.training.step import TrainingStep, exceeds_usual
from vaex.training.update import Update, norm, piece_size

KINDS = [
    ["likelihood=gaussian"],
    ["likelihood=laplace", "likelihood/scale=optimal_per_image", "objective.warmup=10", "objective.free_bits=0.1"],
    ["likelihood=continuous_bernoulli", "dataset.dequantize=uniform", "trainer.clip_norm=0.5"],
    ["likelihood=discretized_logistic_mixture", "likelihood.components=2"],
    ["likelihood=bernoulli", "dataset.binarize=dynamic", "conditional=true", "precision=bf16"],
    ["likelihood=beta", "dataset.dequantize=uniform", "objective=ae"],
    ["architecture=conv", "architecture.widths=[4,8]", "architecture.hidden=8", "likelihood/scale=per_pixel"],
    ["objective=iwae", "corruption=masking"],
    ["architecture=resnet", "architecture.widths=[4,8]", "architecture.groups=2"],
    ["objective=iwae", "objective.doubly_reparametrized=true", "corruption=salt_and_pepper"],
    ["architecture=vit", "architecture.hidden=8", "architecture.depth=1", "architecture.patch_size=14"],
    ["prior=vamp", "prior.components=4"],
    ["prior=flow", "prior.layers=2", "prior.hidden=8", "posterior=iaf", "posterior.hidden=8", "posterior.context=3"],
    ["prior=mixture", "prior.components=3", "posterior=full", "objective=iwae"],
    ["prior=mixture", "prior.components=3", "posterior=full"],
]


def names(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def step_of(experiment: Experiment, clip_norm: float | None = None, **settings: Any) -> TrainingStep:
    experiment.model.train()
    return TrainingStep(experiment, experiment.dataset.train.to(experiment.device), clip_norm, **settings)


def trained_weights(
    overrides: list[str], steps: int, compiled: bool = False, captured: bool = False
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Weights after some steps, and the sums of what they logged."""
    config = composed(*overrides)
    experiment = build(config)
    step = step_of(experiment, config.trainer.clip_norm)
    if compiled:
        torch.compiler.reset()  # as a run does
        compile_step(step)
    take_step = CapturedStep(step, (config.batch_size,)) if captured else step
    stream = IndexStream(len(experiment.dataset.train), config.batch_size, config.seed, experiment.device)
    for n in range(steps):
        take_step(stream.batch(n))
    weights = {name: tensor.cpu() for name, tensor in experiment.model.state_dict().items()}
    return weights, step.sums.take().sums if steps else {}


@pytest.mark.parametrize("kind", KINDS, ids=names)
def test_nothing_in_the_step_is_read_by_the_host(kind: list[str], tiny: list[str]) -> None:
    """Tensors without values, so that every look at one is an error."""
    mlp = not any(override.startswith("architecture=") for override in kind)
    step = step_of(build(composed(*(tiny if mlp else tiny[:-2]), *kind)))
    with FakeTensorMode(allow_non_fake_inputs=True):
        gradients, skipped = step.forward_backward(torch.zeros(32, dtype=torch.int64))
        assert all(gradient is not None for gradient in gradients)
        with pytest.raises(DataDependentOutputException):
            skipped.item()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=names)
def test_compiled_steps_give_the_same_numbers(kind: list[str], small: list[str]) -> None:
    """The noise is the same sample for sample, but sums are in another order, so that the last bits differ.

    Where a gradient is next to nothing, Adam makes a step of full length of its sign: weights are compared as a whole.
    With start=data most gradients are, and weights that are changed by 1e-7 change the rate of a mixture by 1e-3.
    """
    bf16 = "precision=bf16" in kind
    overrides = [*small, *kind, "start=zero"]
    plain, sums = trained_weights(overrides, 5)
    compiled, compiled_sums = trained_weights(overrides, 5, compiled=True)
    assert sums.keys() == compiled_sums.keys()
    for name, value in sums.items():
        assert compiled_sums[name] == pytest.approx(value, rel=2e-2 if bf16 else 1e-4), name
    start, _ = trained_weights(overrides, 0)
    assert distance(compiled, plain) / distance(plain, start) < (0.1 if bf16 else 0.05)


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return sum((one[name] - other[name]).double().square().sum().item() for name in one) ** 0.5


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_the_lean_update_is_the_optimizers_bit_for_bit(optimizer: str, tiny: list[str]) -> None:
    overrides = [*tiny, f"optimizer={optimizer}", "optimizer.lr=0.1"]
    ours, theirs = build(composed(*overrides)), build(composed(*overrides))
    update = Update(ours.optimizer)
    parameters = [p for group in theirs.optimizer.param_groups for p in group["params"]]
    generator = torch.Generator().manual_seed(0)
    for n in range(6):
        gradients = [
            torch.randn(p.shape, generator=generator) if n != 4 else torch.full(p.shape, torch.nan) for p in parameters
        ]
        skip = torch.tensor(float(n == 4))
        update(gradients, skip)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        theirs.optimizer.found_inf = skip
        theirs.optimizer.step()
    assert update._kernels  # it did not fall back on the optimizer
    for own, other in zip(update.parameters, parameters, strict=True):
        assert torch.equal(own, other)
        assert ours.optimizer.state[own]["step"] == 5
        for key, value in theirs.optimizer.state[other].items():
            assert torch.equal(ours.optimizer.state[own][key], value), key


def test_a_parameter_that_the_loss_does_not_depend_on_stays_the_same(tiny: list[str]) -> None:
    experiment = build(composed(*tiny))
    experiment.model.register_parameter("unused", torch.nn.Parameter(torch.ones(3)))
    experiment.optimizer.add_param_group({"params": [experiment.model.unused]})
    experiment.optimizer.param_groups[1]["lr"] = experiment.optimizer.param_groups[0]["lr"]
    step = step_of(experiment)
    before = copy.deepcopy(experiment.model.state_dict())
    for n in range(3):
        step(torch.arange(32) + n)
    after = experiment.model.state_dict()
    assert torch.equal(after["unused"], torch.ones(3))
    assert not torch.equal(after["encoder.output.weight"], before["encoder.output.weight"])


def test_a_clipped_gradient_has_the_given_norm(tiny: list[str]) -> None:
    gradients, _ = step_of(build(composed(*tiny)), clip_norm=1e-3).forward_backward(torch.arange(32))
    squares = sum(gradient.square().sum() for gradient in gradients)
    assert squares.sqrt().item() == pytest.approx(1e-3, rel=1e-5)


@pytest.mark.parametrize(
    "settings, overrides",
    [({}, []), ({"ema": 0.9, "skip_norm": 1.01}, []), ({}, ["objective=target_rate"])],
    ids=["plain", "average and skipped steps", "target rate"],
)
def test_a_step_continues_from_its_state(settings: dict[str, float], overrides: list[str], tiny: list[str]) -> None:
    """Two steps and two more are four: weights, optimizer and sums."""
    rows = torch.arange(32)
    whole, first, second = (step_of(build(composed(*tiny, *overrides)), **settings) for _ in range(3))
    torch.manual_seed(3)
    for n in range(4):
        whole(rows + n)
    torch.manual_seed(3)
    for n in range(2):
        first(rows + n)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for n in range(2, 4):
        second(rows + n)
    for part in ("model", "objective", "average"):
        for name, tensor in whole.state_dict().get(part, {}).items():
            assert torch.equal(tensor, second.state_dict()[part][name]), name
    assert whole.sums.take() == second.sums.take() and whole.step == second.step == 4
    assert whole.usual_norm == second.usual_norm


def test_the_average_is_that_of_the_weights_and_is_lent_to_the_model(tiny: list[str]) -> None:
    step = step_of(build(composed(*tiny)), ema=0.5)
    average = step.average
    assert average is not None
    name = "decoder.output.weight"
    expected, weight = average.values[name].clone(), dict(step.model.named_parameters())[name]
    for n in range(30):
        step(torch.arange(32) + n)
        expected += max(0.5, 9 / (10 + n + 1)) * (weight.detach() - expected)
    torch.testing.assert_close(average.values[name], expected)
    own = weight.detach().clone()
    with average.in_place():
        assert torch.equal(weight, average.values[name]) and not torch.equal(weight, own)
    assert torch.equal(weight, own)
    step(torch.arange(32))
    assert not torch.equal(weight, own)  # the optimizer still trains the model's own weights
    average.replace_weights()
    assert torch.equal(weight, average.values[name])


def test_norms_far_above_the_usual_are_skipped_until_they_are_usual() -> None:
    norms, usual = [0.1] * 2 + [1.0] * 198 + [math.nan] + [5.0] * 200, torch.zeros(())
    skipped = [exceeds_usual(torch.tensor(v), usual, torch.tensor(n), 2.0).item() for n, v in enumerate(norms, 1)]
    assert not any(skipped[:201]) and skipped[201] == 1
    first = skipped.index(0, 201)  # by then the usual norm is 2.5: 1.01^n = 2.5
    assert first - 201 == pytest.approx(math.log(2.5) / math.log(1.01), abs=3) and not any(skipped[first:])


def test_a_skipped_step_leaves_the_weights_and_is_logged(tiny: list[str]) -> None:
    step = step_of(build(composed(*tiny)), skip_norm=2.0)
    for n in range(101):
        step(torch.arange(32) + n)
    assert step.sums.take().sums["over_norm"] == 0
    step.usual_norm.fill_(1e-9)
    before = copy.deepcopy(step.model.state_dict())
    step(torch.arange(32))
    assert all(torch.equal(value, before[name]) for name, value in step.model.state_dict().items())
    interval = step.sums.take()
    assert interval.sums["over_norm"] == 1 and interval.skipped == 0


TRAINER = TrainerConfig(
    log_every=1,
    validate_every=1,
    checkpoint_every=1,
    clip_norm=None,
    weights="last",
    threads=None,
    compile="auto",
    capture="auto",
)


def test_auto_compiles_long_runs_and_captures_on_a_gpu() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for device in (cpu, cuda):
        short = resolve_auto(TRAINER, device, WORTH_COMPILING[device.type] - 1)
        long = resolve_auto(TRAINER, device, WORTH_COMPILING[device.type])
        assert (short.compile, long.compile) == ("false", "true")
        assert short.capture == long.capture == str(device == cuda).lower()


@pytest.mark.parametrize(
    "override, message",
    [
        ("trainer.capture=true", "trainer.capture=true: a CUDA graph needs a GPU"),
        ("trainer.compile=maybe", "trainer.compile=maybe: must be auto, true or false"),
        ("architecture.hidden=[4000000000]", "architecture.encoder: out of memory for its weights; lower its sizes"),
    ],
)
def test_what_is_impossible_ends_in_one_line(
    override: str, message: str, here: Callable[..., Path], said: Callable[..., str], tiny: list[str]
) -> None:
    assert message in said(here, *tiny, override, "device=cpu")


@pytest.mark.parametrize("device, variable, language", [("cpu", "CXX", r"C\+\+"), ("cuda", "CC", "C")])
def test_without_a_compiler_nothing_is_compiled(
    device: str, variable: str, language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "no-such-compiler")
    assert resolve_auto(TRAINER, torch.device(device), 10**6).compile == "false"
    with pytest.raises(UserError, match=f"a {language} compiler and there is no no-such-compiler; set it to auto"):
        resolve_auto(replace(TRAINER, compile="true"), torch.device(device), 10)
    monkeypatch.delenv(variable)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert resolve_auto(TRAINER, torch.device(device), 10**6).compile == "false"


def test_a_step_that_cannot_be_captured_names_the_option(monkeypatch: pytest.MonkeyPatch, tiny: list[str]) -> None:
    """On the CPU, with stand-ins for CUDA's classes: a GPU reports such an error when the capture ends."""

    @contextmanager
    def graph(graph: object, stream: object, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        yield
        raise RuntimeError("operation not permitted when stream is capturing\nSearch for the error in the docs")

    for name, value in {"graph": graph, "CUDAGraph": Mock, "Stream": MagicMock(), "stream": nullcontext}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "current_stream", Mock)
    config = composed(*tiny)
    step = CapturedStep(step_of(build(config)), (config.batch_size,))
    for _ in range(CapturedStep.WARMUP):
        step(torch.arange(config.batch_size))
    with pytest.raises(UserError, match=r"^the .* \(operation .* is capturing\); set trainer.capture=false$"):
        step(torch.arange(config.batch_size))


def test_work_in_the_background_is_done_in_order_and_its_errors_come_up() -> None:
    results: list[int] = []
    with Background() as background:
        for n in range(20):
            background.submit(results.append, n)
        background.wait()
        assert results == list(range(20))
        background.submit(Path("/nowhere/file").write_text, "")
        with pytest.raises(FileNotFoundError):
            background.wait()


def test_a_gradient_in_another_memory_layout_gives_the_same_update() -> None:
    """Fused kernels go through memory: the gradient of a channels-last weight need not be channels-last itself."""
    weight = torch.randn(8, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    ours, reference = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    update = Update(torch.optim.Adam([ours], lr=torch.tensor(0.1), fused=True))
    optimizer = torch.optim.Adam([reference], lr=0.1)
    for _ in range(3):
        gradient = torch.randn(8, 4, 3, 3)
        update([gradient], torch.zeros(()))
        reference.grad = gradient
        optimizer.step()
    torch.testing.assert_close(ours, reference)


def test_an_update_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of channels-last weights and of tensors that are views, too."""
    shapes = [(8, 4, 3, 3), (50, 3), (1,)]
    gradients = [[torch.randn(shape) for shape in shapes] for _ in range(3)]
    weights = []
    for size in (None, 7):
        monkeypatch.setattr("vaex.training.update.piece_size", lambda tensors, size=size: size)
        torch.manual_seed(0)
        own = [torch.randn(60, 3)[5:55] if shape == (50, 3) else torch.randn(shape) for shape in shapes]
        own[0] = own[0].contiguous(memory_format=torch.channels_last)
        update = Update(torch.optim.Adam([w.requires_grad_() for w in own], lr=torch.tensor(0.1), fused=True))
        for step, gradient in enumerate(gradients):
            update(gradient, torch.tensor(float(step == 1)))
        assert all(state["step"] == 2 for state in update.optimizer.state.values())
        weights.append(own)
    for whole, in_pieces in zip(*weights, strict=True):
        torch.testing.assert_close(whole, in_pieces)


def test_pieces_are_small_where_one_launch_takes_them_and_large_models_stay_whole() -> None:
    def on_gpu(*sizes: int) -> list[Mock]:
        return [Mock(is_cuda=True, numel=Mock(return_value=size)) for size in sizes]

    assert piece_size([torch.zeros(10)]) is None
    size = piece_size(on_gpu(784 * 400, 400, 400 * 784, 784))
    assert size is not None and 4096 <= size <= 32768
    assert piece_size(on_gpu(1)) is None
    assert piece_size(on_gpu(*[10**6] * 8)) is None


def test_the_norm_of_many_numbers_is_precise() -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(3000, 3000), torch.randn(5, 1) * 100]
    exact = torch.cat([tensor.flatten() for tensor in tensors]).double().norm()
    assert norm(tensors).item() == pytest.approx(exact.item(), rel=3e-6)


@pytest.mark.gpu
def test_the_update_on_a_gpu_is_that_of_adam() -> None:
    """In pieces, and of channels-last weights."""
    torch.manual_seed(0)
    weights = [torch.randn(400, 784), torch.randn(784), torch.randn(64, 32, 3, 3)]
    ours = [weight.cuda().requires_grad_() for weight in weights]
    ours[2] = weights[2].cuda().contiguous(memory_format=torch.channels_last).requires_grad_()
    reference = [weight.double().requires_grad_() for weight in weights]
    assert piece_size(ours) is not None
    update = Update(torch.optim.Adam(ours, lr=torch.tensor(0.1, device="cuda"), fused=True))
    optimizer = torch.optim.Adam(reference, lr=0.1)
    for _ in range(4):
        gradients = [torch.randn_like(weight) for weight in weights]
        update([gradient.cuda() for gradient in gradients], torch.zeros((), device="cuda"))
        for parameter, gradient in zip(reference, gradients, strict=True):
            parameter.grad = gradient.double()
        optimizer.step()
    for weight, exact in zip(ours, reference, strict=True):
        torch.testing.assert_close(weight.detach().cpu().double(), exact.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_sums_and_softplus_on_a_gpu_are_precise() -> None:
    tensors = [torch.randn(3000, 3000), torch.randn(5, 1) * 100]
    exact = torch.cat([tensor.flatten() for tensor in tensors]).double().norm()
    assert norm([tensor.cuda() for tensor in tensors]).item() == pytest.approx(exact.item(), rel=1e-6)
    x = torch.cat([torch.linspace(-100, 100, 2001), torch.tensor([1e-30, -1e-30])])
    values = []
    for own in (x.double(), x.cuda()):
        value = softplus(own.requires_grad_())
        (gradient,) = torch.autograd.grad(value.sum(), own)
        values.append((value.detach().cpu().double(), gradient.cpu().double()))
    torch.testing.assert_close(values[1], values[0], rtol=1e-6, atol=0.0)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS, ids=names)
def test_captured_steps_are_the_eager_ones(kind: list[str], small: list[str]) -> None:
    overrides = [*small, *kind, "start=zero", "device=cuda"]  # as for compiled steps
    plain, sums = trained_weights(overrides, 20)
    captured, captured_sums = trained_weights(overrides, 20, captured=True)
    assert captured_sums == pytest.approx(sums, rel=1e-4)
    start, _ = trained_weights(overrides, 0)
    assert distance(captured, plain) < 0.01 * distance(plain, start)


@pytest.fixture
def no_waiting() -> Iterator[Callable[[], None]]:
    """Call it to make every wait of the host for the GPU an error, until the test ends."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize(
    "likelihood",
    [
        ["likelihood=gaussian"],
        ["likelihood=discretized_logistic_mixture", "likelihood.conditional_channels=true"],
    ],
    ids=names,
)
def test_steps_never_wait_for_the_gpu(
    captured: bool, likelihood: list[str], data: dict[str, list[str]], no_waiting: Callable[[], None]
) -> None:
    config = composed(*data["sprites_rgb"], *likelihood, "device=cuda")
    experiment = build(config)
    step = step_of(experiment)
    take_step = CapturedStep(step, (config.batch_size,)) if captured else step
    stream = IndexStream(len(experiment.dataset.train), config.batch_size, 0, experiment.device)
    for n in range(5):
        take_step(stream.batch(n))
    no_waiting()
    for n in range(5, 15):
        take_step(stream.batch(n))
    torch.cuda.set_sync_debug_mode("default")
    assert step.sums.take().skipped == 0
