"""Runs that are trained together: each gives the numbers that it gives alone, and none affects the others."""

import json
import re
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from conftest import SMALL_NETWORKS, composed, metrics, results
from test_step import KINDS, distance, names, step_of
from test_sweeps import at_work, same_weights, started, statuses, until

from vaex.build import build
from vaex.data.noise import given_noise, normal, recorded_noise, uniform_like
from vaex.data.stream import IndexStream
from vaex.errors import UserError
from vaex.sweeps.plan import MOST_TOGETHER, PlannedJob, plan_groups
from vaex.training.capture import CapturedStep, compile_stacked
from vaex.training.checkpoint import random_state, restore_random_state
from vaex.training.stacked import StackedStep
from vaex.training.step import TrainingStep

Here = Callable[..., Path]
Weights = dict[str, torch.Tensor]

VALUES = [["seed=1"], ["seed=2", "beta=4", "optimizer.lr=0.001"], ["seed=3", "optimizer=adamw", "start=zero"]]
MORE_KINDS = [
    ["likelihood=gaussian", "likelihood.discretize=true"],
    ["likelihood=student_t", "likelihood/scale=per_dimension", "corruption=gaussian"],
    ["objective.samples=3", "objective.warmup=4", "objective.delay=1"],
    ["prior=mixture", "prior.components=3", "posterior=full"],
    ["prior=vamp", "prior.components=4", "likelihood/scale=per_pixel"],
    ["prior=flow", "prior.layers=2", "prior.hidden=8", "posterior=iaf", "posterior.hidden=8", "posterior.context=3"],
    ["objective=beta_tc"],
    ["objective=capacity"],
    ["objective=dip"],
    ["objective=mmd"],
    ["objective=target_rate"],
    ["architecture=ladder", *SMALL_NETWORKS["ladder"], "latent_dim=3", "objective.free_bits=0.01"],
    ["trainer.ema=0.9", "trainer.skip_norm=1.01"],
]


class Runs:
    """Some training steps, the noise of each, and the rows of each of their batches."""

    def __init__(self, overrides: Sequence[Sequence[str]]) -> None:
        self.steps, self.generators, self.streams = [], [], []
        for own in overrides:
            config = composed(*own)
            experiment = build(config)
            for group, rate in zip(experiment.optimizer.param_groups, experiment.learning_rates, strict=True):
                group["lr"].fill_(rate)
            trainer = config.trainer
            self.steps.append(step_of(experiment, trainer.clip_norm, skip_norm=trainer.skip_norm, ema=trainer.ema))
            self.device, self.batch_size = experiment.device, config.batch_size
            self.generators.append(torch.Generator(self.device))
            self.generators[-1].set_state(random_state(self.device)[self.device.type])
            size = len(experiment.dataset.train)
            self.streams.append(IndexStream(size, config.batch_size, config.seed, self.device))

    def index(self, n: int) -> torch.Tensor:
        return torch.stack([stream.batch(n) for stream in self.streams])

    def alone(self, steps: int) -> None:
        for step, generator, stream in zip(self.steps, self.generators, self.streams, strict=True):
            state = random_state(torch.device("cpu")) | {self.device.type: generator.get_state()}
            restore_random_state(state, self.device)
            for n in range(steps):
                step(stream.batch(n))

    def stacked(self) -> StackedStep:
        return StackedStep(self.steps, self.generators, self.batch_size)


def weights(step: TrainingStep) -> Weights:
    return {name: value.detach().clone() for name, value in step.model.state_dict().items()}


def same_numbers(kind: list[str], base: list[str], steps: int = 4, compiled: bool = False) -> None:
    values = VALUES if not any("objective=" in option for option in kind) else [["seed=1"], ["seed=2"]]
    overrides = [[*base, *kind, *own] for own in values]
    alone, together = Runs(overrides), Runs(overrides)
    before = [weights(step) for step in alone.steps]
    alone.alone(steps)
    stacked = together.stacked()
    stacked.check(together.index(0))
    if compiled:
        torch.compiler.reset()
        compile_stacked(stacked)
    for n in range(steps):
        stacked(together.index(n))
    bf16 = "precision=bf16" in kind
    for one, other, start in zip(alone.steps, together.steps, before, strict=True):
        expected, sums = one.sums.take(), other.sums.take()
        assert sums.skipped == expected.skipped == 0 and int(other.step) == steps
        for name, value in expected.sums.items():
            assert sums.sums[name] == pytest.approx(value, rel=2e-2 if bf16 else 1e-4), name
        # Where a gradient is next to nothing, Adam makes a step of full length of its sign.
        assert distance(weights(other), weights(one)) < (0.1 if bf16 else 0.05) * distance(weights(one), start)
        assert other.usual_norm.item() == pytest.approx(one.usual_norm.item(), rel=1e-4)
        if one.average and other.average:
            assert distance(other.average.values, one.average.values) < 0.05 * distance(one.average.values, start)


def test_steps_with_large_norms_are_skipped_together_as_alone(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaex.training.step.NORM_WEIGHT", 0.9)  # so that the second step may be skipped
    runs = Runs([[*tiny, f"seed={n}", "trainer.skip_norm=1.0001"] for n in range(8)])
    alone = Runs([[*tiny, f"seed={n}", "trainer.skip_norm=1.0001"] for n in range(8)])
    alone.alone(6)
    stacked = runs.stacked()
    for n in range(6):
        stacked(runs.index(n))
    skipped = [[step.sums.take().sums["over_norm"] for step in each.steps] for each in (alone, runs)]
    assert skipped[0] == skipped[1] and sum(skipped[0]) > 0


@pytest.mark.parametrize("kind", [*KINDS, *MORE_KINDS], ids=names)
def test_steps_together_are_steps_alone(kind: list[str], tiny: list[str]) -> None:
    mlp = not any(override.startswith("architecture=") for override in kind)
    same_numbers(kind, tiny if mlp else tiny[:-2])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [KINDS[0], KINDS[1], KINDS[6]], ids=names)
def test_compiled_steps_together_are_steps_alone(kind: list[str], small: list[str]) -> None:
    same_numbers([*kind, "start=zero"], small, compiled=True)


@pytest.mark.parametrize("runs", [1, 16])
def test_any_number_of_runs_can_share_a_step(runs: int, tiny: list[str]) -> None:
    overrides = [[*tiny, f"seed={n}"] for n in range(runs)]
    alone, together = Runs(overrides), Runs(overrides)
    alone.alone(3)
    stacked = together.stacked()
    for n in range(3):
        stacked(together.index(n))
    for one, other in zip(alone.steps, together.steps, strict=True):
        assert other.sums.take().sums["elbo"] == pytest.approx(one.sums.take().sums["elbo"], rel=1e-5)


def test_values_that_are_whole_numbers_do_not_round_those_of_other_runs(tiny: list[str]) -> None:
    overrides = [[*tiny, f"beta={beta}", f"objective.free_bits={bits}"] for beta, bits in ((1, 1), (0.5, 0.1))]
    stacked = Runs(overrides).stacked()
    assert stacked.buffers["objective.beta"].tolist() == [1, 0.5]
    assert stacked.buffers["objective.free_bits"].tolist() == pytest.approx([1, 0.1])


def test_a_run_that_left_stays_as_it_is(tiny: list[str]) -> None:
    runs = Runs([[*tiny, f"seed={n}"] for n in range(3)])
    stacked = runs.stacked()
    stacked(runs.index(0))
    stacked.leave(runs.steps[1])
    before = [weights(step) for step in runs.steps]
    for n in (1, 2):
        stacked(runs.index(n))
    moved = [distance(weights(step), start) > 0 for step, start in zip(runs.steps, before, strict=True)]
    assert moved == [True, False, True] and [int(step.step) for step in runs.steps] == [3, 1, 3]
    assert [int(step.sums.row) for step in runs.steps] == [3, 1, 3]


def test_a_run_whose_numbers_are_not_finite_skips_the_step_by_itself(tiny: list[str]) -> None:
    runs = Runs([[*tiny, f"seed={n}"] for n in range(2)])
    stacked = runs.stacked()
    with torch.no_grad():
        next(runs.steps[0].model.parameters()).fill_(torch.nan)
    before = weights(runs.steps[1])
    stacked(runs.index(0))
    assert [step.sums.take().skipped for step in runs.steps] == [1, 0]
    moved = weights(runs.steps[1])
    assert distance(moved, before) > 0 and all(value.isfinite().all() for value in moved.values())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([["objective.samples=1"], ["objective.samples=2"]], "samples is 1 in one run and 2 in another"),
        ([["corruption=none"], ["corruption=gaussian"]], "different modules|corruption, class"),
        ([["latent_dim=2"], ["latent_dim=3"]], "different names, shapes or types"),
        ([["likelihood.scale.init=0.1"], ["likelihood.scale.init=0.11"]], "init is 0.1 in one run and 0.11"),
        ([["objective.cycle=10", "objective.warmup=5"], ["objective.cycle=20", "objective.warmup=5"]], "cycle is 10"),
        ([["trainer.clip_norm=1"], []], "trainer.clip_norm"),
        ([["objective=rae", "objective.gradient=1"]] * 2, "cannot be vectorized"),
    ],
    ids=lambda value: None if isinstance(value, list) else value.replace(" ", "-"),
)
def test_runs_that_cannot_share_a_step_are_told_apart(options: list[list[str]], reason: str, tiny: list[str]) -> None:
    runs = Runs([[*tiny, *own] for own in options])
    with pytest.raises(UserError, match=reason):
        runs.stacked().check(runs.index(0))


def test_recorded_draws_can_be_made_from_another_generator() -> None:
    x = torch.zeros(3, 1, 2, 2)

    def draws() -> list[torch.Tensor]:
        return [uniform_like(x), normal(2, 3, 4, device=x.device)]

    generator = torch.Generator().manual_seed(5)
    torch.manual_seed(5)
    with recorded_noise() as recorded:
        expected = draws()
    values = [torch.empty(draw.shape) for draw in recorded]
    for draw, value in zip(recorded, values, strict=True):
        draw.fill(value, generator)
    with given_noise(values):
        assert all(torch.equal(one, other) for one, other in zip(draws(), expected, strict=True))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("kind", [KINDS[0], KINDS[3], KINDS[6]], ids=names)
def test_captured_steps_together_are_steps_alone_and_never_wait(
    kind: list[str], small: list[str], no_waiting: Callable[[], None]
) -> None:
    overrides = [[*small, *kind, "device=cuda", "start=zero", f"seed={n}"] for n in range(3)]
    alone, together = Runs(overrides), Runs(overrides)
    alone.alone(20)
    stacked = together.stacked()
    take = CapturedStep(stacked, together.index(0).shape, together.generators)
    for n in range(10):
        take(together.index(n))
    no_waiting()
    for n in range(10, 20):
        take(together.index(n))
    torch.cuda.set_sync_debug_mode("default")
    for one, other in zip(alone.steps, together.steps, strict=True):
        assert other.sums.take().sums == pytest.approx(one.sums.take().sums, rel=1e-3)


# Which jobs are trained together.


def grouped(*jobs: str, at_least: int = 1) -> list[list[int]]:
    planned = [PlannedJob(n, job.split()) for n, job in enumerate(jobs)]
    return [[job.number for job in group] for group in plan_groups(planned, at_least)]


def test_jobs_that_differ_in_values_are_trained_together() -> None:
    assert grouped("beta=1 seed=0", "beta=2 seed=0", "beta=1 seed=1") == [[0, 1, 2]]
    assert grouped("optimizer.lr=0.1 epochs=1", "optimizer.lr=0.2 epochs=2") == [[0, 1]]
    assert grouped("likelihood=gaussian beta=1", "likelihood=laplace beta=1", "likelihood=gaussian beta=2") == [
        [0, 2],
        [1],
    ]
    assert grouped("objective.free_bits=0", "objective.free_bits=0.1", "objective.free_bits=0.2") == [[0], [1, 2]]
    assert grouped("trainer.clip_norm=null", "trainer.clip_norm=1") == [[0], [1]]
    assert grouped("latent_dim=2", "latent_dim=3") == [[0], [1]]


def test_groups_have_a_largest_size_and_are_divided_among_gpus() -> None:
    jobs = [f"seed={n}" for n in range(2 * MOST_TOGETHER + 1)]
    assert [len(group) for group in grouped(*jobs)] == [11, 11, 11] and MOST_TOGETHER == 16
    assert [len(group) for group in grouped(*jobs[:6], at_least=4)] == [2, 2, 2]
    two_kinds = [f"likelihood={name} seed={n}" for name in ("gaussian", "laplace") for n in range(4)]
    assert [len(group) for group in grouped(*two_kinds, at_least=2)] == [4, 4]
    assert grouped("optimizer.fused=true", "optimizer.fused=false") == [[0], [1]]


# Sweeps.


def test_a_sweep_together_has_the_numbers_of_runs_alone(here: Here, tiny: list[str], tmp_path: Path) -> None:
    """One run diverges, one stops earlier, and the others go on."""
    options = ["figures.kinds=[reconstructions]", "trainer.threads=1", "trainer.log_every=2", *tiny]
    sweep = ["sweep.together=true", "sweep.workers=1", "optimizer.lr=0.001,1e15", "steps=4,40", "hydra.sweep.dir=sweep"]
    with pytest.raises(SystemExit):
        here("-m", *sweep, *options, folder=None)
    assert {name: status for name, status in statuses(Path("sweep")).items() if "0.001" in name} == {
        "lr=0.001,steps=4": "completed",
        "lr=0.001,steps=40": "completed",
    }
    assert list(statuses(Path("sweep")).values()).count("failed") == 2
    for steps in (4, 40):
        job = Path(f"sweep/lr=0.001,steps={steps}")
        alone = here("optimizer.lr=0.001", f"steps={steps}", *options, folder=f"alone-{steps}")
        assert results(job)["test/elbo"] == pytest.approx(results(alone)["test/elbo"], rel=1e-4)
        assert metrics(job, "train/loss") == pytest.approx(metrics(alone, "train/loss"), rel=1e-4)
        assert re.search("trained together with [13] other runs", (job / "vaex.log").read_text())
        assert (job / "figures" / "reconstructions.png").exists()
        assert "lr=1000" not in (job / "vaex.log").read_text()  # nor what the others log


def test_a_sweep_that_cannot_share_a_step_says_why(here: Here, tiny: list[str]) -> None:
    options = ["objective=rae", "objective.gradient=1", "seed=1,2", "steps=3", "figures.kinds=[]", *tiny]
    with pytest.raises(SystemExit):
        here("-m", "sweep.together=true", *options, "hydra.sweep.dir=sweep", folder=None)
    status = json.loads(Path("sweep/seed=1/status.json").read_text())
    assert status["status"] == "failed" and "cannot be vectorized" in status["error"]
    assert "set it to auto or false" in status["error"]


@pytest.mark.slow
def test_a_sweep_together_that_is_stopped_goes_on_as_if_it_had_not_been(
    here: Here, tiny: list[str], tmp_path: Path
) -> None:
    options = ["beta=1,2,4", "epochs=60", "figures.kinds=[]", "trainer.log_every=5", *tiny]
    options += ["sweep.together=true", "sweep.workers=1", "trainer.threads=1"]
    here("-m", *options, "hydra.sweep.dir=whole", folder=None)
    with started(*options, "hydra.sweep.dir=stopped", cwd=tmp_path) as process:
        until(lambda: at_work(tmp_path / "stopped/beta=1"))
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert set(statuses(Path("stopped")).values()) == {"interrupted"}
    here("-m", *options, "hydra.sweep.dir=stopped", folder=None)
    for beta in (1, 2, 4):
        assert same_weights(Path(f"whole/beta={beta}"), Path(f"stopped/beta={beta}"))
