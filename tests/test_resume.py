"""A run that was stopped at any moment and went on is the run that wasn't, bit for bit."""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ran, metrics, results
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vaex.errors import Interrupted
from vaex.training import loop as training_loop
from vaex.training.checkpoint import Checkpoints
from vaex.training.signals import stop_on_signals
from vaex.training.spikes import PATIENCE, spike
from vaex.training.step import TrainingStep

Here = Callable[..., Path]
COMMON = ["epochs=3", "figures.every=2", "figures.images=8", "trainer.log_every=5", "likelihood/scale=optimal"]


def ask(number: int = signal.SIGTERM) -> None:
    """As from outside, and handled before the next line."""
    os.kill(os.getpid(), number)


def calling(function: Callable[..., Any], call: int, number: int) -> Callable[..., Any]:
    """The function, which is asked to stop when it is called for the n-th time."""
    calls = 0

    def wrapped(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            ask(number)
        return function(*arguments, **options)

    return wrapped


def same_run(one: Path, other: Path) -> None:
    """Everything that doesn't tell the time."""
    for name, tensor in load_file(one / "model.safetensors").items():
        assert torch.equal(tensor, load_file(other / "model.safetensors")[name]), name
    kept = Checkpoints(one / "checkpoints"), Checkpoints(other / "checkpoints")
    assert kept[0].steps()[-1] == kept[1].steps()[-1]
    states = [checkpoints.load(checkpoints.steps()[-1]) for checkpoints in kept]
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


@pytest.mark.parametrize(
    "where, call",
    [("step", 1), ("step", 40), ("_validate", 1), ("evaluate", 2), ("draw", 1), ("draw", 2), ("save", 2), ("test", 1)],
)
@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_a_run_stopped_anywhere_goes_on_as_if_it_had_not_been(
    where: str, call: int, number: int, here: Here, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    whole = here(*tiny, *COMMON, folder="whole")
    owner, name = {
        "step": (TrainingStep, "__call__"),
        "evaluate": (training_loop, "evaluate"),
        "save": (Checkpoints, "save"),
    }.get(where, (training_loop.Loop, where))
    with monkeypatch.context() as patched:
        original = getattr(owner, name)
        patched.setattr(owner, name, calling(original, call, number))
        with pytest.raises(SystemExit) as stop:
            here(*tiny, *COMMON, folder="parts")
    assert stop.value.code == 128 + number
    assert "resume=" in capsys.readouterr().err
    parts = whole.parent / "parts"
    assert json.loads((parts / "status.json").read_text())["status"] == "interrupted"
    assert not (parts / "results.json").exists()
    here(f"resume={parts}")
    same_run(whole, parts)


def test_a_run_may_be_stopped_over_and_over(here: Here, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    common = [*tiny, "epochs=2", "figures.every=1", "figures.images=8", "trainer.log_every=5"]
    whole = here(*common, folder="whole")
    calls = [("__call__", 3), ("__call__", 9), ("evaluate", 1), ("draw", 1), ("__call__", 20)]
    arguments = [*common, f"hydra.run.dir={whole.parent / 'parts'}"]
    for name, call in calls:
        owner: Any = {"__call__": TrainingStep, "evaluate": training_loop}.get(name, training_loop.Loop)
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, calling(getattr(owner, name), call, signal.SIGTERM))
            with pytest.raises(SystemExit):
                here(*arguments, folder=None)
        arguments = [f"resume={whole.parent / 'parts'}"]
    here(*arguments)
    same_run(whole, whole.parent / "parts")


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_each_signal_has_its_exit_code(
    number: int, code: int, here: Here, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingStep, "__call__", calling(TrainingStep.__call__, 3, number))
    with pytest.raises(SystemExit) as stop:
        here(*tiny, "steps=40")
    assert stop.value.code == code


def test_a_handler_that_was_there_is_called_after_the_run_saved_itself(
    here: Here, tiny: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As a cluster's engine has one, to queue the job again."""
    seen = []

    def engine(number: int, frame: object) -> None:
        seen.append((number, json.loads((tmp_path / "run" / "status.json").read_text())["status"]))

    before = signal.signal(signal.SIGUSR1, engine)
    try:
        monkeypatch.setattr(TrainingStep, "__call__", calling(TrainingStep.__call__, 3, signal.SIGUSR1))
        with pytest.raises(SystemExit):
            here(*tiny, "steps=40")
        assert seen == [(signal.SIGUSR1, "interrupted")]
        assert signal.getsignal(signal.SIGUSR1) is engine
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_an_ignored_signal_stays_ignored_and_the_second_one_is_the_systems() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with stop_on_signals() as flag:
            ask(signal.SIGUSR1)
            assert not flag.number
            ask(signal.SIGTERM)
            assert flag.number == signal.SIGTERM
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # ends the process at once
            flag.number = 0
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_outside_the_main_thread_takes_no_signals() -> None:
    seen = []

    def inside() -> None:
        with stop_on_signals() as flag:
            seen.append(flag.number)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [0] and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(vaex: Callable[..., Ran], tiny: list[str], tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "import os, signal, sys, time\n"
        "import vaex.training.loop as loop\n"
        "def slow(self):\n"
        "    os.kill(os.getpid(), signal.SIGINT); print('first', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
        "loop.Loop._one_step = slow\nfrom vaex.cli import main\nmain()\n"
    )
    import subprocess

    command = [sys.executable, str(script), "train", *tiny, "steps=10", "hydra.run.dir=run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=50)
    assert done.returncode == -signal.SIGINT and "first" in done.stdout


def test_a_run_of_thousands_of_epochs_says_so_in_digits(
    here: Here, tiny: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(training_loop.Loop, "_validate", calling(training_loop.Loop._validate, 2, signal.SIGTERM))
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
    here: Here, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr("vaex.objectives.VAE.forward", nonfinite_at(13))
    with pytest.raises(SystemExit):
        here(*tiny, "steps=40", "trainer.log_every=10")
    error = capsys.readouterr().err
    assert "diverged at step 13: loss, rate, elbo" in error and "objective.warmup" in error
    assert len(error.strip().splitlines()) == 1


def test_a_skipped_step_is_counted_and_leaves_no_trace(
    here: Here, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    common = [*tiny, "steps=20", "trainer.log_every=10", "schedule=constant"]
    with monkeypatch.context() as patched:
        patched.setattr("vaex.objectives.VAE.forward", nonfinite_at(13))
        run = here(*common, "trainer.on_nonfinite=skip")
    assert metrics(run, "train/skipped") == [0, 1]
    assert results(run)["train/skipped_steps"] == 1
    assert "1 of the last 10 steps skipped, the first at 13, where loss, rate, elbo" in capsys.readouterr().out
    assert all(torch.isfinite(tensor).all() for tensor in load_file(run / "model.safetensors").values())
    assert all(map(abs, metrics(run, "train/elbo")))

    updates = []
    original = TrainingStep.__call__

    def without(self: TrainingStep, index: torch.Tensor) -> None:
        updates.append(1)
        before = {name: value.clone() for name, value in self.model.state_dict().items()}
        optimizer = [value.clone() for state in self.update.optimizer.state.values() for value in state.values()]
        original(self, index)
        if len(updates) == 13:
            assert_same(before, dict(self.model.state_dict()))
            after = [value for state in self.update.optimizer.state.values() for value in state.values()]
            assert all(torch.equal(a, b) for a, b in zip(optimizer, after, strict=True))

    monkeypatch.setattr("vaex.objectives.VAE.forward", nonfinite_at(13))
    monkeypatch.setattr(TrainingStep, "__call__", without)
    for extra in ([], ["optimizer.fused=false"]):
        updates.clear()
        here(*common, "trainer.on_nonfinite=skip", *extra, folder=f"checked-{len(extra)}")
        assert len(updates) == 20


def test_a_run_that_only_skips_ends(here: Here, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from vaex.objectives import VAE

    forward = VAE.forward

    def never(self: VAE, model: Any, batch: Any, taken: Any) -> Any:
        terms = forward(self, model, batch, taken)
        return type(terms)(terms.loss * torch.nan, terms.distortion, terms.rate, terms.posterior, terms.distribution)

    monkeypatch.setattr("vaex.objectives.VAE.forward", never)
    with pytest.raises(SystemExit):
        here(*tiny, "steps=20", "trainer.on_nonfinite=skip", "trainer.log_every=5")
    assert "diverged at step 1" in capsys.readouterr().err


def test_a_spike_stands_out_from_what_was_usual() -> None:
    state: dict[str, float] = {}
    intervals = [(100 - n, 105 - n) for n in range(20)]
    assert not any(spike(state, *interval) for interval in intervals)
    assert spike(state, 90.0, 200.0)
    assert not spike(state, 80.0, 86.0)
    assert not any(spike({}, 1.0, 1e9) for _ in range(3)), "nothing is usual yet"
    flat: dict[str, float] = {}
    assert not any(spike(flat, 1000.0, 1000.0 + 1e-3) for _ in range(PATIENCE + 5))


def test_interrupted_says_how_to_go_on() -> None:
    assert Interrupted(signal.SIGTERM, "x").exit_code == 143


@pytest.mark.slow
def test_a_compiled_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    here: Here, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on_equal(here, [*tiny, "steps=60", "trainer.compile=true", "figures.images=8"], monkeypatch)


@pytest.mark.gpu
def test_a_captured_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    here: Here, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on_equal(here, [*tiny, "steps=60", "device=cuda", "trainer.capture=true", "figures.images=8"], monkeypatch)


def goes_on_equal(here: Here, common: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = here(*common, folder="whole")
    with monkeypatch.context() as patched:
        patched.setattr(training_loop.Loop, "_one_step", calling(training_loop.Loop._one_step, 23, signal.SIGTERM))
        with pytest.raises(SystemExit):
            here(*common, folder="parts")
    here(f"resume={whole.parent / 'parts'}")
    same_run(whole, whole.parent / "parts")
