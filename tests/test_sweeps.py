"""Sweeps: each job once, whatever happens to it; what became of all; and the same numbers as one run after another."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Ran, metrics, results
from hypothesis import given
from hypothesis import strategies as st

from vaex.commands.train import job_name
from vaex.config.schema import config_hash, difference
from vaex.errors import UserError
from vaex.runs.folder import RunFolder
from vaex.sweeps import resources
from vaex.sweeps.folder import SweepFolder
from vaex.sweeps.grid import along_axes, swept_keys
from vaex.sweeps.table import text

Here = Callable[..., Path]
Vaex = Callable[..., Ran]
Said = Callable[..., str]
Captured = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch

QUICK = ["steps=2", "figures.kinds=[]"]
# 1,000 images in batches of 32: an epoch is 32 steps, and a checkpoint.
LONG = ["epochs=400", "figures.kinds=[]", "trainer.log_every=5"]


def statuses(sweep: Path) -> dict[str, str]:
    return {path.parent.name: json.loads(path.read_text())["status"] for path in sorted(sweep.glob("*/status.json"))}


def same_weights(one: Path, other: Path) -> bool:
    return (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


@contextmanager
def started(*arguments: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, while its jobs are at work."""
    command = [sys.executable, "-m", "vaex", "train", "-m", *arguments]
    process = subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def at_work(run: Path) -> bool:
    """Whether a run has logged something after its first checkpoint."""
    return any(run.glob("checkpoints/*.pt")) and (run / "metrics.jsonl").read_text().count("train/loss") > 8


def process_of(run: Path) -> int:
    process: int = json.loads((run / "status.json").read_text())["process"]
    return process


def is_free(run: Path) -> bool:
    try:
        with RunFolder(run).alone():
            return True
    except UserError:
        return False


# What became of each.


def test_each_combination_is_run_in_a_folder_with_its_name(here: Here, tiny: list[str], capsys: Captured) -> None:
    sweep = here("-m", "sweep.workers=2", "beta=0.5,4", "likelihood/scale=fixed,shared", *QUICK, *tiny, folder=None)
    (sweep,) = sweep.glob("outputs/sweeps/*")
    names = ["beta=0.5,scale=fixed", "beta=0.5,scale=shared", "beta=4,scale=fixed", "beta=4,scale=shared"]
    assert statuses(sweep) == dict.fromkeys(names, "completed")
    captured = capsys.readouterr()
    assert "4 runs: beta × likelihood/scale" in captured.out and "2 of 4 runs" in captured.out
    assert sorted(re.findall(r"^\[\d/4\] (\S+)  completed  \d+ s  elbo ", captured.err, flags=re.MULTILINE)) == names
    table = captured.out[captured.out.index("job ") :]
    for name in names:
        elbo = results(sweep / name)["test/elbo"]
        assert re.search(rf"^{re.escape(name)} +completed +\d+ +{elbo:.1f} ", table, flags=re.MULTILINE)
    for command in ("vaex report", "vaex eval", "tensorboard --logdir"):
        assert command in table


def test_a_failed_job_is_recorded_and_takes_no_other_along(here: Here, tiny: list[str], capsys: Captured) -> None:
    with pytest.raises(SystemExit) as stop:
        here("-m", "objective=vae,ae", "beta=1,2", *QUICK, *tiny, folder=None)
    assert stop.value.code == 1
    (sweep,) = Path.cwd().glob("outputs/sweeps/*")
    assert statuses(sweep) == {
        "beta=1,objective=ae": "completed",
        "beta=1,objective=vae": "completed",
        "beta=2,objective=ae": "failed",
        "beta=2,objective=vae": "completed",
    }
    captured = capsys.readouterr()
    assert "this objective has no beta" in json.loads((sweep / "beta=2,objective=ae/status.json").read_text())["error"]
    assert re.search(r"^! beta=2,objective=ae: beta=2.0: this objective has no beta", captured.out, flags=re.MULTILINE)
    assert captured.err.strip().splitlines()[-1] == (
        f"vaex: of 4 jobs 1 failed; vaex train -m sweep=outputs/sweeps/{sweep.name} runs what isn't complete"
    )


def test_a_job_that_diverges_is_recorded_with_its_last_lines(here: Here, tiny: list[str]) -> None:
    with pytest.raises(SystemExit):
        here("-m", "optimizer.lr=1e-3,1e30", "schedule=constant", *tiny, "steps=60", folder=None)
    (sweep,) = Path.cwd().glob("outputs/sweeps/*")
    failed = json.loads((sweep / "lr=1e+30" / "status.json").read_text())
    assert failed["status"] == "failed" and "diverged" in failed["error"] and "Traceback" in failed["traceback"]
    assert statuses(sweep)["lr=0.001"] == "completed"


@pytest.mark.parametrize("values, part", [("beta=1,-1", "beta=-1.0: must be"), ("objective=vae,ave", "did you mean")])
def test_a_wrong_value_is_told_before_any_job_starts(values: str, part: str, here: Here, said: Said) -> None:
    assert part in said(here, "-m", values, folder=None)
    assert not list(Path.cwd().glob("outputs/sweeps/*"))


def test_same_numbers_as_one_after_another(here: Here, tiny: list[str]) -> None:
    arguments = ["-m", "beta=0.5,1,2", "steps=40", "figures.kinds=[]", *tiny]
    here(*arguments, "sweep.workers=2", "hydra.sweep.dir=two", folder=None)
    here(*arguments, "sweep.workers=1", "trainer.threads=1", "hydra.sweep.dir=one", folder=None)
    for beta in ("0.5", "1", "2"):
        one, two = Path(f"one/beta={beta}"), Path(f"two/beta={beta}")
        assert same_weights(one, two)
        assert metrics(one, "train/loss") == metrics(two, "train/loss")
        assert results(one)["test/elbo"] == results(two)["test/elbo"]


def test_a_value_given_twice_is_run_once(here: Here, tiny: list[str], capsys: Captured) -> None:
    here("-m", "beta=1,1.0,1", *QUICK, *tiny, "hydra.sweep.dir=sweep", folder=None)
    assert list(statuses(Path("sweep"))) == ["beta=1", "beta=1.0"] and "2 runs" in capsys.readouterr().out


def test_options_of_ones_own_are_swept(here: Here, tiny: list[str], tmp_path: Path, monkeypatch: Patch) -> None:
    (tmp_path / "mypackage.py").write_text(
        "from vaex.likelihoods.gaussian import Gaussian\n\n\nclass Mine(Gaussian):\n    pass\n"
    )
    (tmp_path / "myconf" / "likelihood").mkdir(parents=True)
    (tmp_path / "myconf" / "likelihood" / "mine.yaml").write_text(
        "defaults: [{scale: shared}, _self_]\n_target_: mypackage.Mine\nbounded_mean: true\ndiscretize: false\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    here("--config-dir", "myconf", "-m", "likelihood=mine,gaussian", *QUICK, *tiny, "hydra.sweep.dir=s", folder=None)
    assert statuses(Path("s")) == {"likelihood=gaussian": "completed", "likelihood=mine": "completed"}
    assert same_weights(Path("s/likelihood=mine"), Path("s/likelihood=gaussian"))


# Going on.


def test_the_same_command_runs_only_what_is_not_complete(here: Here, tiny: list[str], capsys: Captured) -> None:
    arguments = ["-m", "beta=1,2", *QUICK, *tiny]
    here(*arguments, "hydra.sweep.dir=sweep", folder=None)
    written = (path for path in Path("sweep").glob("*/*") if path.name not in ("vaex.log", ".hydra"))
    files = {path: path.stat().st_mtime_ns for path in written}
    RunFolder(Path("sweep/beta=2")).set_status("failed", error="a full disk")
    capsys.readouterr()
    here(*arguments, "sweep=sweep", folder=None)
    assert "2 runs: beta; 1 complete already" in capsys.readouterr().out
    assert statuses(Path("sweep")) == {"beta=1": "completed", "beta=2": "completed"}
    for path, changed in files.items():
        if "beta=1" in str(path):
            assert path.stat().st_mtime_ns == changed, path
    assert len(list(Path("sweep/beta=2").glob("events.out.*"))) == 1  # begun anew
    here("-m", "beta=1,2,4", *QUICK, *tiny, "sweep=sweep", folder=None)  # and one more
    assert statuses(Path("sweep")) == dict.fromkeys(["beta=1", "beta=2", "beta=4"], "completed")
    here("sweep=sweep", folder=None)  # the command that it knows
    assert {path: path.stat().st_mtime_ns for path in files if "beta=1" in str(path)}.items() <= files.items()


def test_a_sweep_of_other_settings_is_refused(here: Here, said: Said, tiny: list[str]) -> None:
    here("-m", "beta=1", *QUICK, *tiny, "hydra.sweep.dir=sweep", folder=None)
    before = (Path("sweep/run") / "results.json").read_bytes()
    other = [*QUICK[1:], *tiny, "steps=3"]
    assert "sweep=sweep: began with steps=2" in said(here, "-m", "beta=1", *other, "sweep=sweep", folder=None)
    assert "no sweep there" in said(here, "-m", "beta=1", "sweep=nowhere", folder=None)
    assert "name the sweep's folder once" in said(here, "-m", "sweep=sweep", "hydra.sweep.dir=b", folder=None)
    assert "goes on with one run" in said(here, "-m", "beta=1,2", "resume=sweep/run", folder=None)
    # What isn't in the command, as in a YAML file that was edited, is found by the hash of the config.
    (Path("sweep") / "sweep.json").write_text(
        (Path("sweep") / "sweep.json").read_text().replace('"steps": "2"', '"steps": "3"')
    )
    here_said = said(here, "-m", "beta=1", *other, "sweep=sweep", folder=None)
    assert "sweep/run: holds a run of other settings: steps was 2 and is 3" in here_said
    assert (Path("sweep/run") / "results.json").read_bytes() == before
    assert statuses(Path("sweep")) == {"run": "completed"}


def test_two_commands_do_not_work_on_one_sweep(here: Here, said: Said, tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    with SweepFolder(tmp_path / "sweep").alone():
        assert "another command is at work on it" in said(
            here, "-m", "beta=1,2", *tiny, f"hydra.sweep.dir={tmp_path}/sweep", folder=None
        )


def uninterrupted(here: Here, arguments: list[str], tmp_path: Path) -> Path:
    here("-m", *arguments, "sweep.workers=2", f"hydra.sweep.dir={tmp_path}/whole", folder=None)
    return tmp_path / "whole"


@pytest.mark.slow
def test_killed_workers_and_a_killed_parent_then_the_same_command(here: Here, tiny: list[str], tmp_path: Path) -> None:
    arguments = ["beta=1,2,4", "epochs=60", *LONG[1:], *tiny, "trainer.threads=1"]
    sweep, one, two = tmp_path / "sweep", tmp_path / "sweep/beta=1", tmp_path / "sweep/beta=2"
    with started(*arguments, "sweep.workers=2", "hydra.sweep.dir=sweep", cwd=tmp_path) as process:
        until(lambda: at_work(one) and at_work(two))
        os.kill(process_of(one), signal.SIGKILL)
        until(lambda: statuses(sweep)["beta=1"] == "interrupted")
        assert "SIGKILL" in json.loads((one / "status.json").read_text())["reason"]
        until(lambda: (sweep / "beta=4/metrics.jsonl").exists())  # the others go on
        process.send_signal(signal.SIGKILL)
        until(lambda: is_free(two) and is_free(sweep / "beta=4"))  # no worker outlives the sweep
    assert "completed" not in statuses(sweep).values()
    here("-m", *arguments, "sweep.workers=2", f"hydra.sweep.dir={sweep}", folder=None)
    assert set(statuses(sweep).values()) == {"completed"}
    whole = uninterrupted(here, arguments, tmp_path)
    for name in ("beta=1", "beta=2", "beta=4"):
        assert same_weights(sweep / name, whole / name)
        assert metrics(sweep / name, "train/loss") == metrics(whole / name, "train/loss")  # nothing twice


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_asked_to_stop_saves_its_runs(number: signal.Signals, tiny: list[str], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    arguments = ["beta=1,2,4", *LONG, *tiny, "hydra.sweep.dir=sweep", "sweep.workers=2"]
    with started(*arguments, cwd=tmp_path) as process:
        until(lambda: at_work(sweep / "beta=1") and at_work(sweep / "beta=2"))
        process.send_signal(number)
        out, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert statuses(sweep) == {"beta=1": "interrupted", "beta=2": "interrupted"}
    assert re.search(r"^beta=4 +not run$", out, flags=re.MULTILINE)
    assert error.strip().splitlines()[-1].endswith("vaex train -m sweep=sweep goes on")
    for name in ("beta=1", "beta=2"):
        steps = json.loads((sweep / name / "status.json").read_text())["reason"]
        saved = int(re.search(r"stopped at step (\d+)", steps)[1])  # type: ignore[index]
        assert (sweep / name / "checkpoints" / f"step-{saved}.pt").is_file()


@pytest.mark.slow
def test_a_launcher_of_others_starts_no_other_run_when_asked_to_stop(tiny: list[str], tmp_path: Path) -> None:
    arguments = ["beta=1,2", *LONG, *tiny, "hydra.sweep.dir=sweep", "hydra/launcher=basic"]
    with started(*arguments, cwd=tmp_path) as process:
        until(lambda: at_work(tmp_path / "sweep" / "beta=1"))
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and statuses(tmp_path / "sweep") == {"beta=1": "interrupted"}
    assert error.strip().splitlines()[-1].endswith("vaex train -m sweep=sweep goes on")


# Names.


def test_names_of_jobs() -> None:
    assert job_name(["likelihood=laplace", "beta=0.5", "epochs=2"], ["epochs"]) == "beta=0.5,likelihood=laplace"
    assert job_name(["likelihood/scale=fixed", "+optimizer.lr=1e-3"]) == "scale=fixed,lr=1e-3"
    assert job_name(["seed=1"], ["seed"]) == job_name([]) == "run"
    odd = job_name(["dataset.source.root=/data/a b"])
    assert re.fullmatch(r"root=-data-a-b~[0-9a-f]{8}", odd)
    assert odd != job_name(["dataset.source.root=/data/a:b"])
    long = [f"architecture.hidden=[{','.join(['512'] * n)}]" for n in (50, 51)]
    assert len({job_name([one]) for one in long}) == 2 and max(len(job_name([one])) for one in long) < 120


@given(st.lists(st.text(min_size=1), min_size=2, max_size=2, unique=True))
def test_other_values_have_other_names_that_a_folder_can_have(values: list[str]) -> None:
    one, other = (job_name([f"a.b={value}"]) for value in values)
    assert one != other and "/" not in one and "\0" not in one and len(one.encode()) < 255


def test_keys_with_several_values_are_told_from_the_others() -> None:
    arguments = ["beta=1,2", "likelihood/scale=fixed", "architecture.hidden=[16,16]", "seed=range(3)", "~corruption"]
    swept, constant = swept_keys(arguments)
    assert swept == ["beta", "seed"]
    assert constant == {"likelihood/scale": "fixed", "architecture.hidden": "[16,16]", "corruption": ""}


def test_each_value_is_checked_once_and_not_the_whole_product() -> None:
    jobs = [[f"a={a}", f"b={b}", f"c={c}"] for a in range(4) for b in range(4) for c in range(2)]
    chosen = along_axes(jobs)
    assert len(chosen) == 1 + 3 + 3 + 1
    assert {value for job in chosen for value in job} == {value for job in jobs for value in job}


def test_the_hash_of_a_config_is_of_what_trains(tiny: list[str]) -> None:
    from conftest import composed

    base = composed()
    same = composed("device=cpu", "trainer.threads=2", "trainer.compile=false", "sweep.workers=3")
    assert config_hash(base) == config_hash(same) != config_hash(composed("beta=2"))
    assert difference(base, composed("epochs=3", "likelihood.scale.floor=0.5")) == (
        "likelihood.scale.floor was 0.00392156862745098 and is 0.5, epochs was 15 and is 3"
    )


# The machine.


def test_cores_are_shared_out() -> None:
    def shared(*arguments: object) -> tuple[int, int]:
        plan = resources.plan(*arguments)  # type: ignore[arg-type]
        return plan.workers, plan.threads

    assert shared("auto", 8, 2, 0) == (2, 1)
    assert shared("auto", 3, 16, 0) == (3, 5)
    assert shared("auto", 1, 16, 0) == (1, 16)
    assert shared("4", 8, 2, 0) == (4, 1)
    assert shared("1", 8, 2, 0) == (1, 2)
    assert shared("auto", 8, 16, 1) == (2, 8)
    assert shared("auto", 8, 16, 4) == (8, 2)


def test_another_run_is_started_only_where_memory_is_left_for_all_to_grow() -> None:
    gib = resources.GIB
    assert resources.fits_another([], 0, 2 * gib)
    assert not resources.fits_another([], 0, gib)
    assert resources.fits_another([3 * gib], 3 * gib, 4 * gib)  # one has all it needs
    assert not resources.fits_another([gib], 3 * gib, 5 * gib)  # it will take two more
    assert resources.fits_another([gib], 3 * gib, 6 * gib)


def test_a_run_makes_room_when_memory_is_short_and_goes_on_later(
    here: Here, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def available() -> int:
        """Short as soon as both are at work, until one has stopped."""
        both = at_work(Path("sweep/beta=1")) and at_work(Path("sweep/beta=2"))
        return 0 if both and "interrupted" not in statuses(Path("sweep")).values() else 8 * resources.GIB

    monkeypatch.setattr(resources, "available_memory", available)
    arguments = ["epochs=40", *LONG[1:], *tiny, "hydra.sweep.dir=sweep", "sweep.workers=2"]
    here("-m", "beta=1,2", *arguments, folder=None)
    assert statuses(Path("sweep")) == {"beta=1": "completed", "beta=2": "completed"}
    assert "going on from step" in Path("sweep/beta=2/vaex.log").read_text()
    assert "going on from step" not in Path("sweep/beta=1/vaex.log").read_text()


def test_a_recipe_that_is_a_sweep_gives_way_to_the_command(here: Here, tiny: list[str]) -> None:
    recipe = ["experiment=beckham_ae", *QUICK, *tiny, "hydra.sweep.dir=sweep"]
    here("-m", *recipe, "likelihood/scale=shared", "seed=1,2", folder=None)
    assert set(statuses(Path("sweep"))) == {
        f"likelihood={likelihood},seed={seed}" for likelihood in ("gaussian", "laplace") for seed in (1, 2)
    }
    assert results(Path("sweep/likelihood=laplace,seed=2"))["test/likelihood_scale"] == pytest.approx(0.3, abs=0.01)


def _dies(*_: object) -> None:
    raise ImportError("half of an edit")


def test_a_worker_that_cannot_begin_its_run_is_told_of(
    here: Here, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    arguments = [*QUICK, *tiny, "hydra.sweep.dir=sweep", "beta=1,2"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("vaex.sweeps.local._work", _dies)
        here("-m", *arguments, folder=None)
    assert "of 2 jobs 2 failed" in capsys.readouterr().err
    status = json.loads(Path("sweep/beta=1/status.json").read_text())
    assert status == {"status": "failed", "error": "its process ended with code 1, as the traceback above says"}
    here("-m", "sweep=sweep", *QUICK, *tiny, "beta=1,2", folder=None)
    assert set(statuses(Path("sweep")).values()) == {"completed"}


def test_memory_of_a_process_is_its_own() -> None:
    before = resources.own_memory(os.getpid())
    block = bytearray(b"x") * (64 * 2**20)
    assert 60 * 2**20 < resources.own_memory(os.getpid()) - before < 80 * 2**20
    del block
    assert resources.own_memory(2**30) == 0
    assert 0 < resources.available_memory() < 2**50 and resources.cores() >= 1


def test_an_empty_sweep_has_a_table() -> None:
    assert text([]) == "no jobs"
