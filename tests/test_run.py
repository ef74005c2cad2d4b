"""A run from end to end: its folder, its numbers, its pictures, and resuming it."""

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import composed, metrics, results
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

import vaex as package
from vaex.build import build
from vaex.errors import UserError
from vaex.evaluation.comparison import Description
from vaex.training.checkpoint import Checkpoints
from vaex.training.messages import end_message, start_message
from vaex.training.session import Settings

Here = Callable[..., Path]
Said = Callable[..., str]


@pytest.fixture
def run(trained: Callable[..., Path], tiny: list[str]) -> Path:
    """A run that the tests here share, and do not change."""
    return trained(*tiny, "steps=40", "trainer.log_every=10")


@pytest.fixture
def own_run(run: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_the_folder_holds_what_the_design_lists(run: Path) -> None:
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and ".hydra" not in path.parts}
    events = {name for name in names if name.startswith("events.out")}
    assert len(events) == 1
    assert names - events == {
        "config.yaml",
        "status.json",
        "metrics.jsonl",
        "results.json",
        "model.safetensors",
        "vaex.log",
        "checkpoints/step-32.pt",  # 1,000 images in batches of 32: the first epoch
        "checkpoints/step-32.sha256",
        "checkpoints/step-40.pt",
        "checkpoints/step-40.sha256",
        "figures/reconstructions.png",
        "figures/samples.png",
        "figures/interpolation.png",
        "figures/steps/reconstructions-40.png",
        "figures/steps/samples-40.png",
        "figures/steps/interpolation-40.png",
    }
    status = json.loads((run / "status.json").read_text())
    assert status["status"] == "completed"
    assert list(status["summary"]) == ["elbo", "rate", "distortion", "MSE"]


def test_numbers_go_by_their_names(run: Path) -> None:
    numbers = results(run)
    assert numbers["test/elbo"] == pytest.approx(-numbers["test/distortion"] - numbers["test/rate"])
    assert numbers["test/loss"] == pytest.approx(-numbers["test/elbo"])
    assert numbers["test/rate"] == pytest.approx(sum(numbers["test/rate_per_latent"]))
    assert 0 <= numbers["test/active_units"] <= 20
    sigma = numbers["test/likelihood_scale"]
    assert numbers["beta/effective_mse"] == pytest.approx(2 * sigma**2 / 784, rel=1e-5)
    assert numbers["train/steps"] == 40 and numbers["train/seconds"] > 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/elbo" in line] == [10, 20, 30, 32, 40]
    for line in lines:
        for part in ("train", "train_epoch", "validation"):
            if f"{part}/elbo" in line:
                total = -line[f"{part}/distortion"] - line[f"{part}/rate"]
                assert line[f"{part}/elbo"] == pytest.approx(total, rel=1e-5)


def test_epoch_means_are_of_all_steps_of_the_epoch(run: Path) -> None:
    by_interval = metrics(run, "train/loss")
    weighted = sum(loss * steps for loss, steps in zip(by_interval, (10, 10, 10, 2), strict=False)) / 32
    assert metrics(run, "train_epoch/loss")[0] == pytest.approx(weighted, rel=1e-6)


def test_results_say_what_they_describe(run: Path) -> None:
    description = Description.read(results(run))
    assert description and description.likelihood_name == "gaussian/shared"
    assert description.images == "mnist, 300 test images of 1 × 28 × 28"


def test_the_config_says_what_ran(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    assert "${" not in text
    for needed in ("recorded:", "torch:", "git_revision:", "steps: 40", "hidden:\n  - 16"):
        assert needed in text
    assert "compile: 'false'" in text and "capture: 'false'" in text  # what auto means here


def test_tensorboard_has_one_run_with_scalars_pictures_and_hparams(run: Path) -> None:
    accumulator = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0}).Reload()
    tags = accumulator.Tags()
    assert {"train/elbo", "train/rate", "train/distortion", "train/loss", "validation/elbo", "test/elbo"} <= set(
        tags["scalars"]
    )
    assert {"reconstructions", "samples", "interpolation"} == set(tags["images"])
    assert accumulator.Scalars("test/elbo")[0].value == pytest.approx(results(run)["test/elbo"], rel=1e-6)
    assert [event.step for event in accumulator.Scalars("train/loss")] == [10, 20, 30, 32, 40]
    plugin = accumulator.SummaryMetadata("_hparams_/session_start_info").plugin_data
    assert plugin.plugin_name == "hparams" and b"likelihood/scale" in plugin.content and b"shared" in plugin.content
    assert b"architecture.hidden" in plugin.content and b"[16]" in plugin.content  # whatever the command gave
    assert "_hparams_/session_end_info" in accumulator.summary_metadata
    layout = Layout.FromString(accumulator.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    charts = [tag for category in layout.category for chart in category.chart for tag in chart.multiline.tag]
    assert charts and all(any(re.search(tag, scalar) for scalar in tags["scalars"]) for tag in charts)
    assert not [path for path in run.iterdir() if path.is_dir() and list(path.glob("events*"))]


def test_the_model_comes_back_in_one_line(run: Path) -> None:
    model = package.load(run)
    assert not model.training
    assert model.sample(5).shape == (5, 1, 28, 28)
    newest = Checkpoints(run / "checkpoints").load(40)["model"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, newest[name])


def test_the_loaded_model_refuses_other_inputs_in_one_line(run: Path) -> None:
    model = package.load(run)
    x, z = torch.rand(3, 1, 28, 28), torch.randn(3, 20)
    assert model.encode(x).mean.shape == z.shape and model.decode(z[None]).mean.shape == (1, *x.shape)
    assert model.reconstruct(torch.tensor([0.0, 1.0]).repeat_interleave(784).view(2, 1, 28, 28)).shape == (2, 1, 28, 28)
    for method, value, message in (
        (
            model.encode,
            x.expand(-1, 3, -1, -1),
            "x: must be a float32 tensor [B, 1, 28, 28] on cpu, not float32 [3, 3, 28",
        ),
        (model.encode, x[0], "x: must be a float32 tensor [B, 1, 28, 28] on cpu, not float32 [1, 28, 28]"),
        (model.encode, x[None], "not float32 [1, 3, 1, 28, 28]"),
        (model.encode, x[:0], "not float32 [0, 1, 28, 28]"),
        (model.encode, x.double(), "not float64 [3, 1, 28, 28]"),
        (model.encode, (255 * x).to(torch.uint8), "not uint8 [3, 1, 28, 28]"),
        (model.encode, x.numpy(), "not a ndarray"),
        (model.encode, x.to("meta"), "on cpu, not on meta"),
        (
            model.encode,
            torch.full_like(x, 255),
            "x: must be from 0 to 1, not from 255 to 255; divide 8-bit pixels by 255",
        ),
        (model.encode, x - 1, "x: must be from 0 to 1"),
        (model.reconstruct, torch.full_like(x, torch.nan), "x: must be finite"),
        (model.decode, z[0], "z: must be a float32 tensor [..., B, 20] on cpu, not float32 [20]"),
        (model.decode, z[:, 1:], "not float32 [3, 19]"),
        (model.decode, z.long(), "not int64 [3, 20]"),
        (model.decode, z / 0, "z: must be finite"),
        (model.sample, 0, "count=0: must be a number of images, >= 1"),
        (model.sample, 2.0, "count=2.0"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)) as raised:
            method(value)
        assert "\n" not in str(raised.value)


def test_pictures_are_means_on_a_fixed_range(run: Path) -> None:
    with Image.open(run / "figures" / "reconstructions.png") as picture:
        grid = torch.from_numpy(np.array(picture))
    model = package.load(run)
    from vaex.data.mnist import mnist

    x = mnist().test.pixels[:64].float() / 255
    first = grid[2 : 2 + 56, 2 : 2 + 56][::2, ::2]
    assert torch.equal(first, (x[0, 0] * 255).to(torch.uint8))
    below = grid[2 + 58 : 2 + 58 + 56, 2 : 2 + 56][::2, ::2]
    expected = (model.reconstruct(x[:1])[0, 0] * 255).round()
    assert (below.float() - expected).abs().max() <= 1


def test_a_conditional_model_draws_a_row_for_each_class(here: Here, tiny: list[str]) -> None:
    run = here(*tiny, "steps=2", "conditional=true", "figures.kinds=[samples]", "figures.images=8")
    with Image.open(run / "figures" / "samples.png") as picture:
        columns, rows = picture.size[0] // 58, picture.size[1] // 58  # 28 × 28 twice as large, and their gap
        assert columns == 8 and rows == 10
    labels = torch.arange(3)
    model = package.load(run)
    assert model.sample(3, labels).shape == (3, 1, 28, 28)
    for wrong in (labels[:2], labels.float(), labels + 10, -labels - 1, None):
        with pytest.raises(ValueError, match="labels.*int64"):
            model.sample(3, wrong)


def test_an_autoencoder_reports_no_bound(here: Here, tiny: list[str]) -> None:
    run = here(*tiny, "steps=2", "objective=ae", "figures.kinds=[reconstructions,samples]", "figures.images=4")
    assert not {"test/elbo", "test/rate"} & set(results(run))
    assert [path.name for path in (run / "figures").glob("*.png")] == ["reconstructions.png"]


def test_a_run_without_a_validation_split(here: Here, tiny: list[str]) -> None:
    run = here(*tiny, "dataset.validation=0", "steps=2", "figures.kinds=[]")
    assert not metrics(run, "validation/elbo") and "test/elbo" in results(run)


def state(run: Path, step: int) -> dict:
    loaded = Checkpoints(run / "checkpoints").load(step)
    for key in ("seconds", "step_seconds"):
        loaded["progress"].pop(key)
    return loaded


def assert_equal(a: object, b: object, where: str = "") -> None:
    """Nested containers and tensors, with no tolerance."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where  # type: ignore[arg-type]
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where  # type: ignore[attr-defined]
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")  # type: ignore[index]
    else:
        assert a == b or (a != a and b != b), where


def same_numbers(a: Path, b: Path) -> None:
    for key in ("train/loss", "train_epoch/loss", "validation/elbo"):
        assert metrics(a, key)[-1] == metrics(b, key)[-1]
    assert {k: v for k, v in results(a).items() if k.startswith("test/")} == {
        k: v for k, v in results(b).items() if k.startswith("test/")
    }


def test_ten_steps_and_ten_more_are_twenty(here: Here, tiny: list[str]) -> None:
    common = [*tiny, "schedule=constant", "dataset.binarize=dynamic", "trainer.log_every=10", "figures.kinds=[]"]
    whole = here(*common, "steps=20", folder="whole")
    parts = here(*common, "steps=10", folder="parts")
    here(f"resume={parts}", "steps=20")
    assert_equal(state(whole, 20)["model"], state(parts, 20)["model"])
    assert_equal(state(whole, 20)["optimizer"], state(parts, 20)["optimizer"])
    assert_equal(state(whole, 20)["random"], state(parts, 20)["random"])
    assert [line for line in metrics(whole, "train/loss")] == metrics(parts, "train/loss")
    assert results(whole)["test/elbo"] == results(parts)["test/elbo"]


def test_a_resumed_run_stays_the_run_it_was(here: Here, said: Said, own_run: Path) -> None:
    assert "beta=4: cannot change" in said(here, f"resume={own_run}", "beta=4")
    assert "beta: 1.0" in (own_run / "config.yaml").read_text()


def test_a_folder_of_another_run_is_left_alone(here: Here, said: Said, own_run: Path, tiny: list[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in own_run.iterdir() if path.name not in (".hydra", "vaex.log")}
    assert "taken by another run" in said(here, *tiny, "steps=3")
    said(here, *tiny, "beta=-1")
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_two_runs_at_once_get_two_folders(tiny: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vaex", "train", *tiny, "steps=1"]
    processes = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(list(tmp_path.glob("outputs/mnist/gaussian/*/results.json"))) == 2


@pytest.mark.slow
def test_a_sweep_runs_each_value_in_a_folder_of_its_own(here: Here, tiny: list[str], tmp_path: Path) -> None:
    here("-m", "beta=0.5,4", "steps=1", *tiny, folder=None)
    folders = sorted(tmp_path.glob("outputs/sweeps/*/*/results.json"))
    assert [path.parent.name for path in folders] == ["beta=0.5", "beta=4"]
    for path, beta in zip(folders, (0.5, 4), strict=True):
        weights = json.loads(path.read_text())
        assert weights["beta/effective_mse"] == pytest.approx(
            beta * 2 * weights["test/likelihood_scale"] ** 2 / 784, rel=1e-5
        )


def test_training_stops_when_the_validation_loss_no_longer_falls_also_after_a_resume(
    here: Callable[..., Path], tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    # With this learning rate no weight changes, so that the first of all equal losses is the lowest.
    still = [*tiny, "schedule=constant", "optimizer.lr=1e-30", "figures.kinds=[]", "trainer.patience=2"]
    whole = here(*still, "epochs=9", folder="whole")
    steps = results(whole)["train/steps"]
    assert steps == 94  # three epochs of 1,000 images
    assert "stopped at step 94 of 282: the validation loss was lowest at step 32, 2 validations ago" in (
        capsys.readouterr().out
    )
    part = here(*still, "epochs=2", folder="part")
    here(f"resume={part}", "epochs=9")
    assert results(part)["train/steps"] == steps
    assert (part / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    here(f"resume={part}", "trainer.patience=4")
    assert results(part)["train/steps"] == 157  # five epochs
    assert "vaex train resume=part trainer.patience=8" in capsys.readouterr().out


def test_patience_is_refused_where_there_is_no_loss_to_compare(tiny: list[str]) -> None:
    with pytest.raises(UserError, match="trainer.patience=3: there are no validation images; set dataset.validation"):
        build(composed(*tiny, "dataset.validation=0", "trainer.patience=3"))
    with pytest.raises(UserError, match="trainer.patience=3: losses of TargetRate .* use trainer.patience=null"):
        build(composed(*tiny, "objective=target_rate", "trainer.patience=3"))


def test_the_best_weights_are_kept_and_can_be_the_ones_tested(here: Here, tiny: list[str]) -> None:
    """A learning rate that ruins the model after a good first epoch."""
    extra = ["epochs=4", "schedule=constant", "optimizer.lr=0.1", "trainer.weights=best", "seed=3", "figures.kinds=[]"]
    run = here(*tiny, *extra)
    losses = metrics(run, "validation/loss")
    steps = [
        json.loads(line)["step"]
        for line in (run / "metrics.jsonl").read_text().splitlines()
        if "validation/loss" in line
    ]
    best = steps[losses.index(min(losses))]
    assert best != steps[-1]
    assert json.loads((run / "status.json").read_text())["best_step"] == best
    checkpoint_steps = Checkpoints(run / "checkpoints").steps()
    assert set(checkpoint_steps) == set(steps[-2:]) | {best}
    model = package.load(run).state_dict()
    assert_equal(dict(model), Checkpoints(run / "checkpoints").load(best)["model"])


def test_divergence_ends_in_one_line_with_finite_weights_kept(here: Here, said: Said, tiny: list[str]) -> None:
    error = said(here, *tiny, "steps=200", "optimizer.lr=1e30", "likelihood.bounded_mean=false", "schedule=constant")
    assert "diverged" in error and "optimizer.lr" in error


def test_loading_what_does_not_fit(own_run: Path) -> None:
    run = own_run
    with pytest.raises(UserError, match="no model.safetensors"):
        package.load(run / "figures")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("latent_dim: 20", "latent_dim: 21"))
    with pytest.raises(UserError, match="not of the model in config.yaml"):
        package.load(run)


# Losses of steps 1, 10 and 20, so that a change that alters numbers is noticed. Made by the code under test.
GOLDEN = {
    "architecture.hidden=[32] architecture.activation=relu likelihood=gaussian start=data": [94.335, 32.986, 47.567],
    "architecture.hidden=[32] architecture.activation=relu likelihood=gaussian likelihood.scale.lr=null": [
        803.5776,
        666.1857,
        589.8425,
    ],
    "architecture=conv architecture.widths=[4,8] likelihood=laplace likelihood/scale=per_pixel beta=4 "
    "likelihood.scale.floor=0.00392156862745098": [
        841.497,
        812.1709,
        804.5989,
    ],
    "architecture.hidden=[32] likelihood=bernoulli dataset.binarize=static conditional=true": [
        546.0593,
        525.9163,
        509.3881,
    ],
}


@pytest.mark.parametrize("overrides", GOLDEN)
def test_golden_losses(overrides: str, here: Here, small: list[str]) -> None:
    run = here(*small, "start=zero", *overrides.split(), "steps=20", "trainer.log_every=1", "figures.kinds=[]")
    losses = metrics(run, "train/loss")
    assert all(math.isfinite(loss) for loss in losses)
    assert [losses[0], losses[9], losses[19]] == pytest.approx(GOLDEN[overrides], rel=1e-4)


@pytest.mark.parametrize("bad", [["beta=-1"], ["likelihood=bernoulli"]])
def test_a_run_that_is_refused_before_it_started_leaves_no_folder(
    here: Here, said: Said, small: list[str], tmp_path: Path, bad: list[str]
) -> None:
    said(here, *small, *bad)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    said(here, *small, *bad)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "overrides, ending",
    [
        (["likelihood/scale=fixed"], ", as mean MSE + 0.00255 · KL"),  # 2σ²/784
        (["likelihood=laplace", "beta=2", "start=zero"], ", as mean MAE + 0.000765 · KL at first"),  # 2 · 0.3/784
        (["likelihood=cross_entropy"], ", as mean BCE + 0.00128 · KL"),
        (["likelihood/scale=optimal_per_image"], "KL(q(z|x) ‖ p(z))"),
    ],
)
def test_the_start_message_gives_the_loss_as_code_with_mean_errors_has_it(
    overrides: list[str], ending: str, tiny: list[str]
) -> None:
    config = composed(*tiny, *overrides, "steps=1", "device=cpu")
    settings = Settings(config.batch_size, config.seed, config.trainer, config.figures)
    choices = {name: "x" for name in ("dataset", "architecture", "likelihood", "likelihood/scale", "objective")}
    message = start_message(build(config), settings, 1, choices, Path("run"))
    (line,) = [line for line in message.splitlines() if line.startswith(" objective")]
    assert line.endswith(ending)
    assert ("   warning  likelihood/scale=x: " in message) == ("likelihood/scale=optimal_per_image" in overrides)


def test_the_end_message_names_the_metrics_and_the_next_commands(run: Path, tiny: list[str]) -> None:
    message = end_message(build(composed(*tiny, "steps=40", "device=cpu")), results(run), run, "steps=80")
    lines = [line.strip().split("  ")[0] for line in message.splitlines() if line]
    assert lines == [
        *("test", "elbo", "rate", "distortion", "loss", "MSE", "active units", "beta", "trained"),
        *("pictures", "run folder", "full evaluation", "train longer", "TensorBoard"),
    ]
    assert f" ± {results(run)['test/elbo_stderr']:.2f} nats\n" in message
    assert f"MSE  {results(run)['test/mse']:.5f}\n" in message and " of 20\n" in message
    assert f"vaex train resume={run} steps=80\n" in message
    assert results(run)["train/floor_share"] == results(run)["train/floor_bits"] == 0  # a shared scale, far above
    cost = {"train/floor_share": 0.81, "train/floor_bits": 0.923}
    message = end_message(build(composed(*tiny, "device=cpu")), results(run) | cost, run, "steps=80")
    assert "  floor  81% of training pixels are at the scale floor, which costs up to 0.92 bits/dim\n" in message
