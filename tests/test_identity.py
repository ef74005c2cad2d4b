"""A run knows its images, its checkpoints and its weights, wherever they are, and refuses those of another run."""

import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import composed, results
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file

import vaex as package
from vaex import cli
from vaex.commands.datasets import LatestDataset
from vaex.config.identity import config_hash, difference, difference_from_checkpoint
from vaex.config.schema import restore_config, with_data
from vaex.data import dataset as dataset_module
from vaex.data.dataset import Dataset, Images, Source, changed_splits
from vaex.errors import UserError
from vaex.report import sheets
from vaex.report.collect import collect
from vaex.training.checkpoint import Checkpoints

Here = Callable[..., Path]
Said = Callable[..., str]
Patch = pytest.MonkeyPatch

SMALL = ["dataset=image_folder", "dataset.source.size=8", "dataset.source.channels=1", "architecture.hidden=[8]"]
SMALL += ["latent_dim=2", "batch_size=8", "steps=2", "figures.kinds=[]", "trainer.threads=1", "device=cpu"]
EVAL = ["--samples", "2", "--device", "cpu"]


def draw_pictures(root: Path, seed: int, count: int = 20) -> Path:
    """Noise in two class folders, `count` pictures in each."""
    noise = np.random.default_rng(seed)
    for label in ("a", "b"):
        (root / label).mkdir(parents=True, exist_ok=True)
        for n in range(count):
            Image.fromarray(noise.integers(0, 256, (8, 8), dtype=np.uint8)).save(root / label / f"{n}.png")
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `home` with the pictures `pics` and the run `run`, which was given them as a relative path."""
    home = tmp_path_factory.mktemp("identity") / "home"
    draw_pictures(home / "pics", seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        cli.run("train", [*SMALL, "dataset.source.root=pics", "hydra.run.dir=run"])
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: Patch) -> Path:
    """A copy of both, which is the working directory."""
    home = Path(shutil.copytree(made, tmp_path / "home"))
    config = home / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(made / "pics"), str(home / "pics")))
    monkeypatch.chdir(home)
    return home


def root_of(run: Path) -> str:
    return str(OmegaConf.load(run / "config.yaml").dataset.source.root)


def evaluate(*arguments: object) -> None:
    cli.run("eval", [*map(str, arguments), *EVAL])


def same_numbers(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(other[f"test/{key}"] == pytest.approx(one[f"test/{key}"]) for key in ("elbo", "rate", "mse"))


# Paths.


def test_a_relative_path_leads_to_the_same_pictures_from_any_folder(
    made: Path, home: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    assert root_of(made / "run") == str(made / "pics") and root_of(home / "run") == str(home / "pics")
    draw_pictures(tmp_path / "away" / "pics", seed=1)
    monkeypatch.chdir(tmp_path / "away")
    before = results(home / "run")
    evaluate(home / "run")
    after = results(home / "run")
    assert after["about/test_sha256"] == before["about/test_sha256"] and after["test/mse"] == before["test/mse"]


def test_a_path_starts_where_the_command_was_given_and_not_where_the_job_runs(home: Path) -> None:
    options = [*SMALL, "dataset.source.root=./pics/", "hydra.job.chdir=true"]
    cli.run("train", [*options, f"hydra.run.dir={home / 'one'}"])
    cli.run("train", ["-m", *options, "hydra/launcher=basic", f"hydra.sweep.dir={home / 'sweep'}"])
    assert root_of(home / "one") == root_of(home / "sweep" / "run") == str(home / "pics")


def test_only_a_path_is_made_absolute(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    for given, stored in (
        ("x", f"{tmp_path}/x"),
        ("'~/x'", "/home/me/x"),
        ("/x", "/x"),
        ("null", None),
        ("''", ""),
        ("s3://bucket/x", "s3://bucket/x"),
        ("{train: {root: y}, name: y}", {"train": {"root": f"{tmp_path}/y"}, "name": "y"}),
    ):
        assert composed(f"dataset.source.root={given}").dataset["source"]["root"] == stored


# Hashes.


def images(*pixels: int, labels: tuple[int, ...] = ()) -> Images:
    """Images of a single pixel."""
    chosen = torch.tensor(labels or (0,) * len(pixels))
    return Images(torch.tensor(pixels, dtype=torch.uint8).view(-1, 1, 1, 1), chosen)


def test_the_identity_of_images_is_the_sha256_of_pixels_and_labels() -> None:
    one = images(0, 1, 2, 3).identity
    assert one["images"] == 4  # printf '\0\1\2\3' | sha256sum
    assert one["sha256"] == "054edec1d0211f624fed0cbca9d4f9400b0e491c43742af2c5b0abebf0c990d8"
    assert images(7, labels=(1,)).identity["labels_sha256"] == (  # printf '\1\0\0\0\0\0\0\0' | sha256sum
        "7c9fa136d4413fa6173637e883b6998d32e1d675f88cddff9dcbcf331820f4b8"
    )


def test_changes_are_named_by_split() -> None:
    def identity(train: Images, test: Images) -> Any:
        source = Source(train=train, test=test, classes=2)
        return Dataset(source=source, validation=1, binarize="none", dequantize="none").identity()

    before = identity(images(1, 2, 3), images(4, 5))
    assert changed_splits(before, identity(images(1, 2, 3), images(4, 5))) is None
    assert changed_splits(before, identity(images(1, 2, 3), images(4, 6))) == "other pixels in the test images"
    assert changed_splits(before, identity(images(2, 1, 3), images(4, 5))) == "other pixels in the training images"
    assert changed_splits(before, identity(images(1, 2, 4), images(4, 5))) == "other pixels in the validation images"
    assert changed_splits(before, identity(images(1, 2, 3), images(4, 5, labels=(0, 1)))) == (
        "other labels of the test images"
    )
    assert changed_splits(before, identity(images(1, 2, 9, 3), images(4))) == (
        "3 training images instead of 2; 1 test images instead of 2"
    )
    assert changed_splits({}, before) is None
    assert changed_splits({"test_images": 2}, before) is None


def test_training_does_not_wait_for_the_hash_of_its_images(home: Path, here: Here, monkeypatch: Patch) -> None:
    """It is computed in the thread that writes the first checkpoint, and only once."""
    hashed: list[tuple[int, str]] = []

    def sha256(content: memoryview) -> Any:
        hashed.append((content.nbytes, threading.current_thread().name))
        return hashlib.sha256(content)

    monkeypatch.setattr(dataset_module, "hashlib", SimpleNamespace(sha256=sha256))
    run = here(*SMALL, f"dataset.source.root={home / 'pics'}")
    pixels = results(run)["about/train_images"] * 64
    assert [thread.startswith("vaex-background") for size, thread in hashed if size == pixels] == [True]


# Images that changed.


def test_other_pictures_are_refused_by_eval_draw_and_report(home: Path, said: Said) -> None:
    before = (home / "run" / "results.json").read_bytes()
    draw_pictures(home / "pics", seed=1)
    for command in (lambda: evaluate("run"), lambda: cli.run("draw", ["run", "samples"])):
        error = said(command)
        assert f"run: its dataset in {home / 'pics'} is not the one of its results" in error
        assert "other pixels in the test images" in error and "--data PATH" in error and "run/results.json" in error
    (run,) = collect([home / "run"])
    loaders = sheets.Loaders(package.load, lambda path: LatestDataset().of(path)[2])
    (remark,) = sheets.draw([("", [("", run)])], loaders).remarks
    assert "other pixels in the test images" in remark
    assert (home / "run" / "results.json").read_bytes() == before

    (home / "run" / "results.json").unlink()  # what the message names as the way out
    evaluate("run")
    assert results(home / "run")["about/test_sha256"] != json.loads(before)["about/test_sha256"]


def test_more_pictures_are_refused_by_resume_and_the_run_can_go_on_without_them(
    home: Path, here: Here, said: Said
) -> None:
    run = home / "run"

    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in [run / "config.yaml", *(run / "checkpoints").iterdir()]}

    before = contents()
    Image.new("L", (8, 8), 9).save(home / "pics" / "a" / "another.png")
    error = said(here, f"resume={run}", "steps=4")
    counts = results(run)
    counts = {split: counts[f"about/{split}_images"] for split in ("train", "validation", "test")}
    assert "its dataset is not the one of its checkpoint" in error and "--data PATH" in error
    assert any(
        f"{count + 1} {name} images instead of {count}" in error
        for name, count in (("training", counts["train"]), ("test", counts["test"]))
    )
    assert contents() == before
    assert json.loads((run / "status.json").read_text())["status"] == "completed"  # as it was
    (home / "pics" / "a" / "another.png").unlink()
    here(f"resume={run}", "steps=4")
    assert results(run)["train/steps"] == 4


# Images that moved.


def test_every_command_can_be_told_where_the_images_are_now(home: Path, here: Here, said: Said) -> None:
    place = home / "moved (to) [a] 'disk', x=1"
    (home / "pics").rename(place)
    run, before = home / "run", results(home / "run")
    for command in (
        lambda: evaluate(run),
        lambda: cli.run("draw", [str(run), "samples"]),
        lambda: here(f"resume={run}", "steps=4"),
    ):
        error = said(command)
        assert f"dataset.source.root={home / 'pics'}: must be a folder" in error and "--data PATH" in error
    evaluate(run, "--data", place)
    assert same_numbers(before, results(run))
    cli.run("draw", [str(run), "reconstructions", f"--data={place}"])
    cli.run("report", [str(run), "--data", str(place)])
    assert "must be a folder" not in (run / "report" / "report.md").read_text()
    assert root_of(run) == str(home / "pics")
    here(f"resume={run}", "steps=4", "--data", str(place))
    assert root_of(run) == str(place) and results(run)["train/steps"] == 4
    evaluate(run)

    other = draw_pictures(home / "other", seed=1)
    assert "other pixels in the test images" in said(evaluate, run, "--data", other)
    assert "other pixels in the training images" in said(here, f"resume={run}", "steps=6", "--data", str(other))
    assert "--data: needs the path" in said(cli.run, "train", ["beta=1", "--data"])


def test_a_dataset_without_files_has_no_other_place(home: Path) -> None:
    with pytest.raises(UserError, match=r"--data=/x: this dataset has no dataset.source.root"):
        with_data(composed("dataset=sprites"), "/x")


# Checkpoints and weights of another run.


@pytest.fixture
def other(home: Path, here: Here) -> Path:
    """A run of the same shape with another beta, beside the first one."""
    cli.run("train", [*SMALL, "beta=4", "dataset.source.root=pics", "hydra.run.dir=other"])
    return home / "other"


def test_a_checkpoint_of_another_run_is_refused(home: Path, other: Path, here: Here, said: Said) -> None:
    run = home / "run"
    weights, own = (run / "model.safetensors").read_bytes(), run / "checkpoints"
    own.rename(home / "kept")
    shutil.copytree(other / "checkpoints", own)
    error = said(here, f"resume={run}", "steps=4")
    assert "checkpoints/step-2.pt: belongs to another run" in error and "beta was 4.0 and is 1.0" in error
    assert (run / "model.safetensors").read_bytes() == weights
    shutil.rmtree(own)
    (home / "kept").rename(own)
    here(f"resume={run}", "steps=4", "trainer.log_every=1", "device=cpu")  # what a resumed run may change
    here(f"resume={run}", "steps=6")
    assert results(run)["train/steps"] == 6


def test_the_best_checkpoint_may_not_be_of_another_run_either(tmp_path: Path) -> None:
    config, other = composed("beta=1"), composed("beta=4")
    for step, saved in ((1, other), (2, config)):
        Checkpoints(tmp_path / "checkpoints").save(step, {"config": asdict(saved)}, best_step=1)
    checkpoints = Checkpoints(tmp_path / "checkpoints", config=config)
    newest = checkpoints.load_newest()
    assert newest and newest["step"] == 2
    with pytest.raises(UserError, match=r"step-1.pt: belongs to another run: objective.beta was 4"):
        checkpoints.load(1)


def test_a_checkpoint_of_an_older_vaex_lacks_options_and_is_of_the_run_all_the_same() -> None:
    saved = asdict(composed("epochs=3", "dataset.source.root=/before"))
    del saved["conditional"], saved["trainer"]["capture"]
    assert difference_from_checkpoint(saved, composed("epochs=9", "dataset.source.root=/after")) == ""
    assert difference_from_checkpoint(saved, composed("seed=1")) == "seed was 0 and is 1"


def test_weights_of_another_run_are_refused(home: Path, other: Path, said: Said) -> None:
    run, own = home / "run", (home / "run" / "model.safetensors").read_bytes()
    shutil.copy(other / "model.safetensors", run / "model.safetensors")
    for command in (lambda: evaluate("run"), lambda: cli.run("draw", ["run", "samples"])):
        assert "run/model.safetensors: damaged, or of another run: its SHA-256" in said(command)
    with pytest.raises(UserError, match="of another run"):
        package.load(run)
    (run / "model.safetensors").write_bytes(own)
    package.load(run)
    (run / "results.json").unlink()  # of weights that no number describes, nothing is known
    evaluate("run")
    tensors = load_file(run / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, run / "model.safetensors")
    assert "of another run" in said(lambda: evaluate("run"))  # the evaluation has recorded what it measured


# Runs of older versions.


def test_a_run_that_recorded_no_hash_is_read_as_before(home: Path) -> None:
    run = home / "run"
    content = {key: value for key, value in results(run).items() if "sha256" not in key and "_images" not in key}
    (run / "results.json").write_text(json.dumps(content))
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(home / "pics"), "pics"))
    old = Checkpoints(run / "checkpoints").load(2)
    del old["images"], old["format"]
    shutil.rmtree(run / "checkpoints")
    Checkpoints(run / "checkpoints").save(old.pop("step"), old, best_step=None)
    draw_pictures(home / "pics", seed=1)
    package.load(run)
    evaluate("run")
    cli.run("train", [f"resume={run}", "steps=4"])
    assert results(run)["train/steps"] == 4


# Sweeps.


def test_a_sweep_can_be_told_where_its_images_are_now(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = home / "sweep"
    cli.run("train", ["-m", "sweep.workers=2", "beta=1,2", *SMALL, f"hydra.sweep.dir={here}", "--data", "pics"])
    (home / "pics").rename(home / "moved")
    for name in ("beta=1", "beta=2"):
        assert root_of(here / name) == str(home / "pics")
    (here / "beta=2" / "status.json").write_text('{"status": "interrupted"}')
    (here / "beta=2" / "model.safetensors").unlink()
    before = (here / "beta=1" / "results.json").read_bytes()
    cli.run("train", ["-m", f"sweep={here}", "--data", "moved"])
    assert root_of(here / "beta=2") == str(home / "moved") and (here / "beta=2" / "model.safetensors").exists()
    assert (here / "beta=1" / "results.json").read_bytes() == before

    draw_pictures(home / "other", seed=1)
    (here / "beta=2" / "status.json").write_text('{"status": "interrupted"}')
    checkpoints = list((here / "beta=2" / "checkpoints").iterdir())
    with pytest.raises(SystemExit):
        cli.run("train", ["-m", f"sweep={here}", "--data", "other"])
    error = capsys.readouterr().err
    assert "beta=1: is complete" in error and "other pixels in the training images" in error
    status = json.loads((here / "beta=2" / "status.json").read_text())
    assert status["status"] == "interrupted" and "is not the one of its checkpoint" in status["reason"]
    assert list((here / "beta=2" / "checkpoints").iterdir()) == checkpoints


@pytest.mark.parametrize("objective, added", [("vae", ("delay", "cycle")), ("iwae", ("groups", "elbo", "partial"))])
def test_a_config_without_options_that_are_newer_is_the_same_run(objective: str, added: tuple[str, ...]) -> None:
    now = composed(f"objective={objective}")
    older = replace(now, objective={key: value for key, value in now.objective.items() if key not in added})
    assert config_hash(older) == config_hash(now)
    changed = replace(now, objective={**now.objective, added[0]: 3})
    assert config_hash(changed) != config_hash(older)
    assert f"objective.{added[0]} was {0 if objective == 'vae' else 1} and is 3" in difference(older, changed)


def test_a_run_of_an_older_version_draws_other_figures_and_is_the_same_run() -> None:
    now = composed()
    content = asdict(now)
    del content["latent_shape"], content["trainer"]["ema"], content["trainer"]["skip_norm"]  # of a later version
    content["figures"]["kinds"] = ["samples"]
    assert config_hash(restore_config(content)) == config_hash(now)
