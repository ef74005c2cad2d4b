"""Every installed engine runs a sweep in the same folders, with the same numbers."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from conftest import results

from vaex.commands.train import main as train
from vaex.config.schema import config_dir
from vaex.errors import UserError

VALUES = ("0.5", "2")


@pytest.fixture(scope="module")
def default(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep by the launcher of vaex."""
    folder = tmp_path_factory.mktemp("default")
    assert sweep(folder, tiny).returncode == 0
    return folder / "sweep"


def sweep(folder: Path, tiny: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vaex", "train", "-m", f"beta={','.join(VALUES)}", *tiny, "steps=20"]
    return subprocess.run(
        [*command, "trainer.threads=1", "figures.kinds=[]", "hydra.sweep.dir=sweep", *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["joblib_local", "slurm_local", "ray_local"])
def test_an_engine_runs_the_same_sweep(engine: str, default: Path, tiny: list[str], tmp_path: Path) -> None:
    plugin = {"joblib_local": "joblib", "slurm_local": "submitit", "ray_local": "ray"}[engine]
    if not find_spec(plugin) or not find_spec(f"hydra_plugins.hydra_{plugin}_launcher"):
        pytest.skip(f"hydra-{plugin}-launcher is not installed")
    done = sweep(tmp_path, tiny, f"hydra/launcher={engine}")
    assert done.returncode == 0, done.stderr
    for value in VALUES:
        run, other = tmp_path / "sweep" / f"beta={value}", default / f"beta={value}"
        assert (run / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
        assert results(run)["test/elbo"] == results(other)["test/elbo"]
        assert f"beta={value}  completed" in done.stderr
    before = (run / "results.json").stat().st_mtime_ns
    assert "2 of 2 runs already" in sweep(tmp_path, tiny, f"hydra/launcher={engine}").stdout
    assert (run / "results.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_killed_worker_of_joblib_ends_the_sweep_and_the_next_call_finishes_it(
    tiny: list[str], tmp_path: Path
) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    arguments = ["hydra/launcher=joblib_local", "beta=1,2,4", *tiny, "epochs=60", "figures.kinds=[]"]
    command = [sys.executable, "-m", "vaex", "train", "-m", *arguments, "hydra.sweep.dir=sweep"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = tmp_path / "sweep" / "beta=1"
    end = time.monotonic() + 300
    while not any(first.glob("checkpoints/*.pt")):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.1)
    os.kill(json.loads((first / "status.json").read_text())["process"], signal.SIGKILL)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 1
    resume = ["train", "-m", "hydra/launcher=joblib_local", "sweep=sweep"]
    assert f"; vaex {' '.join(resume)} runs the jobs that are not complete\n" in error  # and a warning of joblib
    done = subprocess.run([sys.executable, "-m", "vaex", *resume], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    statuses = [json.loads(path.read_text())["status"] for path in (tmp_path / "sweep").glob("*/status.json")]
    assert statuses == ["completed"] * 3
    assert "from step" in (first / "vaex.log").read_text()


@pytest.mark.slow
def test_a_search_finds_the_highest_validation_elbo(tiny: list[str], tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    arguments = ["hydra/sweeper=search", "experiment=tune", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2"]
    command = [sys.executable, "-m", "vaex", "train", "-m", *arguments, *tiny, "steps=40", "hydra.sweep.dir=sweep"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    runs = list((tmp_path / "sweep").glob("*/status.json"))
    values = {run.parent: json.loads(run.read_text())["monitored"] for run in runs}
    assert len(values) == 4
    best = max(values, key=values.__getitem__)
    optimum = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    assert optimum["best_value"] == values[best]
    config = yaml.safe_load((best / "config.yaml").read_text())
    assert optimum["best_params"] == {"beta": config["beta"], "optimizer.lr": config["optimizer"]["lr"]}
    lines = [json.loads(line) for line in (best / "metrics.jsonl").read_text().splitlines()]
    validation = [line["validation/elbo"] for line in lines if "validation/elbo" in line]
    assert values[best] in validation
    assert f"a validation ELBO of {values[best]:.2f} nats" in done.stdout


def test_an_engine_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "hydra_plugins.hydra_joblib_launcher", None)  # as Python has it if it is missing
    with pytest.raises(UserError, match=r"^hydra/launcher: needs joblib; pip install 'vaex-autoencoders\[joblib\]'$"):
        train(["-m", "hydra/launcher=joblib_local", "beta=1,2"])
    assert not list(tmp_path.iterdir())


def test_the_settings_of_a_launcher_exist() -> None:
    """According to the plugin's own schema, so that a misspelt setting of Slurm is found without a cluster."""
    for launcher, plugin, schema in (
        ("joblib_local", "joblib", "JobLibLauncherConf"),
        ("slurm_local", "submitit", "LocalQueueConf"),
        ("slurm", "submitit", "SlurmQueueConf"),
    ):
        settings = yaml.safe_load((config_dir() / "hydra" / "launcher" / f"{launcher}.yaml").read_text())
        config = pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher.config")
        assert set(settings) <= set(getattr(config, schema).__dataclass_fields__), launcher
