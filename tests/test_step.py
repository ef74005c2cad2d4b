"""The training step: the same numbers however it is run, and no look at a value on the way."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import composed, metrics
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from vaex.build import build
from vaex.config.schema import TrainerConfig
from vaex.data.stream import IndexStream
from vaex.errors import UserError
from vaex.experiment import Experiment
from vaex.training.background import Background
from vaex.training.mode import REPAID_AFTER, resolved
from vaex.training.step import CapturedStep, TrainingStep
from vaex.training.update import Update

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
]


def names(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def step_of(experiment: Experiment, clip_norm: float | None = None, compiled: bool = False) -> TrainingStep:
    return TrainingStep(
        model=experiment.model.train(),
        objective=experiment.objective,
        images=experiment.dataset.train.to(experiment.device),
        to_float=experiment.dataset.to_float,
        corruption=experiment.corruption,
        optimizer=experiment.optimizer,
        clip_norm=clip_norm,
        compiled=compiled,
    )


def taken(
    overrides: list[str], steps: int, compiled: bool = False, captured: bool = False
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Weights after some steps, and the sums of what they logged."""
    if compiled:
        torch.compiler.reset()  # as a run does
    config = composed(*overrides)
    experiment = build(config)
    step = step_of(experiment, config.trainer.clip_norm, compiled)
    take = CapturedStep(step, config.batch_size) if captured else step
    stream = IndexStream(len(experiment.dataset.train), config.batch_size, config.seed, experiment.device)
    for n in range(steps):
        take(stream.batch(n))
    return {name: tensor.cpu() for name, tensor in experiment.model.state_dict().items()}, step.take_sums()


@pytest.mark.parametrize("kind", KINDS, ids=names)
def test_nothing_in_the_step_is_read_by_the_host(kind: list[str], small: list[str]) -> None:
    """Tensors without values, so that every look at one is an error."""
    step = step_of(build(composed(*small, *kind)))
    with FakeTensorMode(allow_non_fake_inputs=True):
        gradients, skipped = step._everything_but_the_update(torch.zeros(32, dtype=torch.int64))
        assert all(gradient is not None for gradient in gradients)
        with pytest.raises(DataDependentOutputException):
            skipped.item()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=names)
def test_compiled_steps_give_the_same_numbers(kind: list[str], small: list[str]) -> None:
    """The noise is the same draw for draw, but sums are in another order, so that the last bits differ.

    Where a gradient is next to nothing, Adam makes a step of full length of its sign: weights are compared as a whole.
    """
    bf16 = "precision=bf16" in kind
    plain, sums = taken([*small, *kind], 5)
    compiled, compiled_sums = taken([*small, *kind], 5, compiled=True)
    assert sums.keys() == compiled_sums.keys()
    for name, value in sums.items():
        assert compiled_sums[name] == pytest.approx(value, rel=2e-2 if bf16 else 1e-4), name
    start, _ = taken([*small, *kind], 0)
    apart = distance(compiled, plain) / distance(plain, start)
    assert apart < (0.1 if bf16 else 0.05)


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return sum((one[name] - other[name]).double().square().sum().item() for name in one) ** 0.5


def same_experiment(overrides: list[str]) -> tuple[Experiment, Experiment]:
    return build(composed(*overrides)), build(composed(*overrides))


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_the_lean_update_is_the_optimizers_bit_for_bit(optimizer: str, tiny: list[str]) -> None:
    ours, theirs = same_experiment([*tiny, f"optimizer={optimizer}", "optimizer.lr=0.1"])
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


def test_a_parameter_that_the_loss_does_not_depend_on_is_left_alone(tiny: list[str]) -> None:
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


def test_a_clipped_gradient_has_the_norm_asked_for(tiny: list[str]) -> None:
    experiment = build(composed(*tiny))
    gradients, _ = step_of(experiment, clip_norm=1e-3)._everything_but_the_update(torch.arange(32))
    squares = sum(gradient.square().sum() for gradient in gradients)
    assert squares.sqrt().item() == pytest.approx(1e-3, rel=1e-5)


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
        short = resolved(TRAINER, device, REPAID_AFTER[device.type] - 1)
        long = resolved(TRAINER, device, REPAID_AFTER[device.type])
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
def test_what_can_not_be_had_ends_in_one_line(
    override: str, message: str, here: Callable[..., Path], tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        here(*tiny, override, "device=cpu")
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


def test_without_a_compiler_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    cpu = torch.device("cpu")
    assert resolved(TRAINER, cpu, 10**6).compile == "false"
    with pytest.raises(UserError, match="no no-such-compiler"):
        resolved(replace(TRAINER, compile="true"), cpu, 10)


def test_work_in_the_background_is_done_in_order_and_its_errors_come_up() -> None:
    done: list[int] = []
    with Background() as background:
        for n in range(20):
            background.submit(done.append, n)
        background.wait()
        assert done == list(range(20))
        background.submit(Path("/nowhere/file").write_text, "")
        with pytest.raises(FileNotFoundError):
            background.wait()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS, ids=names)
def test_captured_steps_are_the_eager_ones(kind: list[str], small: list[str]) -> None:
    plain, sums = taken([*small, *kind, "device=cuda"], 20)
    captured, captured_sums = taken([*small, *kind, "device=cuda"], 20, captured=True)
    assert captured_sums == pytest.approx(sums, rel=1e-4)
    start, _ = taken([*small, *kind, "device=cuda"], 0)
    assert distance(captured, plain) < 0.01 * distance(plain, start)


@pytest.mark.gpu
@pytest.mark.parametrize("captured", [False, True])
def test_steps_never_wait_for_the_gpu(captured: bool, small: list[str]) -> None:
    config = composed(*small, "device=cuda")
    experiment = build(config)
    step = step_of(experiment)
    take = CapturedStep(step, config.batch_size) if captured else step
    stream = IndexStream(len(experiment.dataset.train), config.batch_size, 0, experiment.device)
    for n in range(5):
        take(stream.batch(n))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for n in range(5, 15):
            take(stream.batch(n))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert step.take_sums()["skipped"] == 0


def test_a_run_says_how_it_was_run(here: Callable[..., Path], tiny: list[str]) -> None:
    run = here(*tiny, "steps=3")
    config = (run / "config.yaml").read_text()
    assert "compile: 'false'" in config and "capture: 'false'" in config
    assert metrics(run, "train/skipped") and not any(metrics(run, "train/skipped"))
