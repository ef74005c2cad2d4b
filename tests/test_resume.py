"""A run that was stopped at any moment and resumed is the run that was not stopped, bit for bit."""

import copy
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TWO_EPOCHS, metrics, results
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import vaex
import vaex.train
from vaex.build import load_config, load_dataset
from vaex.errors import Interrupted
from vaex.evaluation.bound import evaluate
from vaex.evaluation.measure import Evaluation
from vaex.objectives import VAE
from vaex.training import loop as training_loop
from vaex.training.checkpoint import Checkpoints
from vaex.training.intervals import PATIENCE, is_spike
from vaex.training.session import Session
from vaex.training.step import TrainingStep

Here = Callable[..., Path]
COMMON = [*TWO_EPOCHS, "likelihood/scale=optimal"]
# Where a run may be stopped: the owner and the name of a function.
PLACES: dict[str, tuple[Any, str]] = {
    "step": (TrainingStep, "__call__"),
    "validate": (training_loop, "validate"),
    "evaluate": (training_loop, "evaluate"),
    "draw": (training_loop, "draw"),
    "save": (Checkpoints, "save"),
    "test": (vaex.train, "_test"),
}


def send(number: int) -> None:
    """Send this process a signal, which is handled before the next line."""
    os.kill(os.getpid(), number)


def signal_at(patched: pytest.MonkeyPatch, where: str, call: int, number: int = signal.SIGTERM) -> None:
    """Send a signal right before the n-th call of the function at this place."""
    function, calls = getattr(*PLACES[where]), 0

    def wrapped(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            send(number)
        return function(*arguments, **options)

    patched.setattr(*PLACES[where], wrapped)


def same_run(one: Path, other: Path) -> None:
    """Everything except durations is equal."""
    for name, tensor in load_file(one / "model.safetensors").items():
        assert torch.equal(tensor, load_file(other / "model.safetensors")[name]), name
    checkpoints = Checkpoints(one / "checkpoints"), Checkpoints(other / "checkpoints")
    assert checkpoints[0].steps()[-1] == checkpoints[1].steps()[-1]
    states = [of_run.load(of_run.steps()[-1]) for of_run in checkpoints]
    assert_same(*(state["optimizer"] for state in states))
    assert_same(*(state["random"] for state in states))
    timed = {"train/seconds", "train/images_per_second"}
    a, b = ({k: v for k, v in results(run).items() if k not in timed} for run in (one, other))
    assert a == b
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    pictures = sorted(path.relative_to(one) for path in (one / "figures").rglob("*.*"))
    assert pictures and pictures == sorted(path.relative_to(other) for path in (other / "figures").rglob("*.*"))
    for path in pictures:
        assert (one / path).read_bytes() == (other / path).read_bytes(), path
    assert points(one) == points(other)


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


def points(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0}).Reload()
    shown = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return shown | {
        tag: [(e.step, len(e.encoded_image_string)) for e in events.Images(tag)] for tag in events.Tags()["images"]
    }


def stopped(here: Here, patched: pytest.MonkeyPatch, where: str, call: int, *arguments: str) -> int | str | None:
    """Run the command, which gets SIGTERM before that call; return its exit code."""
    with patched.context() as patch:
        signal_at(patch, where, call)
        with pytest.raises(SystemExit) as stop:
            here(*arguments, folder="parts")
    return stop.value.code


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["last", "best"])
def test_a_run_with_averaged_weights_may_be_stopped(
    weights: str, trained: Here, here: Here, tiny: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("vaex.training.step.NORM_WEIGHT", 0.2)  # or no step of so short a run could be skipped
    arguments = [*tiny, *COMMON, "trainer.ema=0.9", "trainer.skip_norm=1.05", f"trainer.weights={weights}"]
    whole = trained(*arguments)
    assert stopped(here, monkeypatch, "step", 9, *arguments) == 128 + signal.SIGTERM
    here(f"resume={tmp_path / 'parts'}")
    same_run(whole, tmp_path / "parts")
    assert any(metrics(whole, "train/over_norm"))
    checkpoints = Checkpoints(whole / "checkpoints")
    state = checkpoints.load(checkpoints.steps()[-1])
    exported = load_file(whole / "model.safetensors")
    assert any(not torch.equal(exported[name], state["model"][name]) for name in state["average"])
    if weights == "last":
        tested = Evaluation(
            vaex.load(whole),
            VAE(beta=1.0, samples=1, warmup=0, free_bits=0.0),
            load_dataset(load_config(whole)[0].dataset),
        )
        validation = evaluate(tested, tested.dataset.validation)
        assert metrics(whole, "validation/mse")[-1] == pytest.approx(validation["mse"], rel=1e-4)
        assert all(torch.equal(exported[name], value) for name, value in state["average"].items())


@pytest.mark.slow
def test_a_run_may_be_stopped_over_and_over(
    trained: Here, here: Here, tiny: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole, parts = trained(*tiny, *COMMON), tmp_path / "parts"
    arguments = [*tiny, *COMMON]
    for where, call in [("step", 3), ("step", 9), ("evaluate", 1), ("draw", 1), ("step", 20)]:
        assert stopped(here, monkeypatch, where, call, *arguments) == 128 + signal.SIGTERM
        arguments = [f"resume={parts}"]
    here(*arguments)
    same_run(whole, parts)


def test_a_run_of_thousands_of_epochs_says_so_in_digits(
    here: Here, tiny: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    signal_at(monkeypatch, "validate", 2)
    with pytest.raises(SystemExit):
        here(*tiny, "epochs=1234", "trainer.compile=false", "figures.kinds=[]")
    assert "epoch 1.02 of 1234  validation: " in (tmp_path / "run" / "vaex.log").read_text()


def nonfinite_at(step: int) -> Callable[..., Any]:
    """The objective, whose rate is NaN in one step."""
    from vaex.objectives import VAE

    forward = VAE.forward

    def wrapped(self: VAE, model: Any, batch: Any, taken: Any) -> Any:
        terms = forward(self, model, batch, taken)
        if taken is None:
            return terms
        bad = torch.where(taken == step - 1, torch.nan, 0.0)
        return type(terms)(terms.loss + bad, terms.distortion, terms.rate + bad, terms.posterior, terms.distribution)

    return wrapped


def test_a_step_that_is_not_finite_stops_the_run_and_names_the_term(
    here: Here, said: Callable[..., str], tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vaex.objectives.VAE.forward", nonfinite_at(13))
    error = said(here, *tiny, "steps=40", "trainer.log_every=10")
    assert "diverged at step 13: loss, rate, elbo" in error and "objective.warmup" in error
    # The host reads the sums after steps 10 and 20; only step 13 was not finite.
    assert "skipped 1 of the 8 steps from 13 to 20, where it looked (trainer.log_every=10)" in error
    assert "the last finite weights are in run/checkpoints/step-20.pt" in error


def test_a_run_that_diverged_in_the_last_step_validates_when_it_is_resumed(
    here: Here, said: Callable[..., str], tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("vaex.objectives.VAE.forward", nonfinite_at(5))
        assert "diverged at step 5" in said(here, *tiny, "steps=5", "figures.kinds=[]")
    run = here("resume=run")
    assert len(metrics(run, "validation/elbo")) == 1
    assert json.loads((run / "status.json").read_text())["best_step"] == 5


@pytest.mark.parametrize("fused", ["true", "false"])
def test_a_skipped_step_is_counted_and_leaves_no_trace(
    fused: str, here: Here, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    states = []
    original = TrainingStep.__call__

    def record(self: TrainingStep, index: torch.Tensor) -> None:
        if len(states) in (12, 13):  # before the 13th step, and after it
            states[-1] = copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()["state"]))
        states.append(None)
        original(self, index)

    monkeypatch.setattr("vaex.objectives.VAE.forward", nonfinite_at(13))
    monkeypatch.setattr(TrainingStep, "__call__", record)
    common = [*tiny, "steps=20", "trainer.log_every=10", "schedule=constant", "figures.kinds=[]"]
    run = here(*common, "trainer.on_nonfinite=skip", f"optimizer.fused={fused}")
    assert len(states) == 20
    assert_same(dict(states[11][0]), dict(states[12][0]))
    assert_same(states[11][1], states[12][1])
    assert metrics(run, "train/skipped") == [0, 1]
    assert results(run)["train/skipped_steps"] == 1
    warning = "1 of the last 10 steps skipped; in the first, step 13, these were not finite: loss, rate, elbo"
    assert warning in capsys.readouterr().out
    assert all(torch.isfinite(tensor).all() for tensor in load_file(run / "model.safetensors").values())
    assert all(map(abs, metrics(run, "train/elbo")))


def test_a_run_that_only_skips_ends(
    here: Here, said: Callable[..., str], tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vaex.objectives import VAE

    forward = VAE.forward

    def never(self: VAE, model: Any, batch: Any, step: Any) -> Any:
        terms = forward(self, model, batch, step)
        return type(terms)(terms.loss * torch.nan, terms.distortion, terms.rate, terms.posterior, terms.distribution)

    monkeypatch.setattr("vaex.objectives.VAE.forward", never)
    error = said(here, *tiny, "steps=20", "trainer.on_nonfinite=skip", "trainer.log_every=5")
    assert "diverged at step 1" in error


def test_a_spike_stands_out_from_what_was_usual() -> None:
    state: dict[str, float] = {}
    intervals = [(100 - n, 105 - n) for n in range(20)]
    assert not any(is_spike(state, *interval) for interval in intervals)
    assert is_spike(state, 90.0, 200.0)
    assert not is_spike(state, 80.0, 86.0)
    assert not any(is_spike({}, 1.0, 1e9) for _ in range(3)), "nothing is usual yet"
    flat: dict[str, float] = {}
    assert not any(is_spike(flat, 1000.0, 1000.0 + 1e-3) for _ in range(PATIENCE + 5))


def test_interrupted_has_the_exit_code_of_its_signal() -> None:
    assert Interrupted(signal.SIGTERM, "x").exit_code == 143


@pytest.mark.slow
def test_a_compiled_run_that_was_stopped_continues_as_if_it_had_not_been(
    here: Here, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    continues_equal(here, [*tiny, "steps=60", "trainer.compile=true", "figures.images=8"], monkeypatch)


@pytest.mark.gpu
def test_a_captured_run_that_was_stopped_continues_as_if_it_had_not_been(
    here: Here, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    continues_equal(here, [*tiny, "steps=60", "device=cuda", "trainer.capture=true", "figures.images=8"], monkeypatch)


def continues_equal(here: Here, common: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = here(*common, folder="whole")
    with monkeypatch.context() as patched:
        original, calls = Session.set_learning_rate, iter(range(100))  # called before every step, captured or not
        patched.setattr(
            Session,
            "set_learning_rate",
            lambda session: (next(calls) == 22 and send(signal.SIGTERM)) or original(session),
        )
        with pytest.raises(SystemExit):
            here(*common, folder="parts")
    here(f"resume={whole.parent / 'parts'}")
    same_run(whole, whole.parent / "parts")
