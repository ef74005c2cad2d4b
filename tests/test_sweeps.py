"""Sweeps: each job is run once, whatever happens to it, and gives the numbers of a run of its own."""

import json
import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from conftest import composed, metrics, results
from hypothesis import given, settings
from hypothesis import strategies as st

from vaex import cli
from vaex.config.identity import config_hash, difference
from vaex.config.overrides import parse_overrides
from vaex.errors import Interrupted, UserError
from vaex.runs.folder import RunFolder
from vaex.sweeps import resources
from vaex.sweeps.command import Command
from vaex.sweeps.folder import SweepFolder
from vaex.sweeps.grid import each_value_once
from vaex.sweeps.multirun import jobs_table
from vaex.sweeps.plan import constant_values, job_name, plan, planned_name, swept_keys
from vaex.sweeps.scheduler import Scheduler, Task
from vaex.sweeps.watch import Watch
from vaex.sweeps.worker import Outcome
from vaex.training.signals import StopFlag

Here = Callable[..., Path]
Said = Callable[..., str]
Captured = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch

QUICK = ["steps=2", "figures.kinds=[]"]
# 1,000 images in batches of 32: an epoch is 32 steps, and a checkpoint.
LONG = ["epochs=400", "figures.kinds=[]", "trainer.log_every=5"]
GRID = ["beta=0.5,4", "likelihood/scale=fixed,shared"]
STEPS = ["steps=4", "figures.kinds=[]", "trainer.threads=1"]
NAMES = ["beta=0.5,scale=fixed", "beta=0.5,scale=shared", "beta=4,scale=fixed", "beta=4,scale=shared"]


def statuses(sweep: Path) -> dict[str, str]:
    return {path.parent.name: json.loads(path.read_text())["status"] for path in sorted(sweep.glob("*/status.json"))}


def same_weights(one: Path, other: Path) -> bool:
    return (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


@contextmanager
def started(*arguments: str, cwd: Path, wrapper: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, which leads a process group; `wrapper` is a program that calls it."""
    command = [*wrapper, sys.executable, "-m", "vaex", "train", "-m", *arguments]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=cwd, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(condition: Callable[[], object], seconds: float = 300) -> None:
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
        with RunFolder(run).lock():
            return True
    except UserError:
        return False


@pytest.fixture(scope="module")
def finished(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The folder of a sweep, and what its command wrote to stdout and stderr."""
    folder = tmp_path_factory.mktemp("sweeps") / "sweep"
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        cli.run("train", ["-m", "sweep.workers=2", *GRID, *STEPS, *tiny, f"hydra.sweep.dir={folder}"])
    return folder, out.getvalue(), err.getvalue()


@pytest.fixture
def sweep(finished: tuple[Path, str, str], tmp_path: Path, monkeypatch: Patch) -> Path:
    """A copy of the sweep, which is `sweep` in the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished[0], "sweep")
    return Path("sweep")


# The outcome of each job.


def test_each_combination_is_run_in_a_folder_with_its_name(finished: tuple[Path, str, str]) -> None:
    folder, out, err = finished
    assert statuses(folder) == dict.fromkeys(NAMES, "completed")
    assert json.loads((folder / "sweep.json").read_text())["jobs"] == NAMES
    assert "4 runs: beta × likelihood/scale" in out and "2 of 4 runs" in out
    assert sorted(re.findall(r"^\[\d/4\] (\S+)  completed  \d+ s  elbo ", err, flags=re.MULTILINE)) == NAMES
    table = out[out.index("job ") :]
    for name in NAMES:
        summary = json.loads((folder / name / "status.json").read_text())["summary"]
        assert re.search(rf"^{re.escape(name)} +completed +\d+ +{re.escape(summary['elbo'])} ", table, re.MULTILINE)
    for command in ("vaex report", "vaex eval", "tensorboard --logdir"):
        assert command in table


def test_a_job_has_the_numbers_of_a_run_of_its_own(
    finished: tuple[Path, str, str], here: Here, tiny: list[str]
) -> None:
    run = here("beta=4", "likelihood/scale=shared", *STEPS, *tiny)
    job = finished[0] / "beta=4,scale=shared"
    assert same_weights(run, job)
    assert metrics(run, "train/loss") == metrics(job, "train/loss")
    assert results(run)["test/elbo"] == results(job)["test/elbo"]


def test_a_failed_job_is_recorded_and_does_not_stop_the_others(here: Here, tiny: list[str], capsys: Captured) -> None:
    """One job diverges, one has a config that no run can have; a value given twice is run once."""
    with pytest.raises(SystemExit) as stop:
        here("-m", "objective=vae,ae", "beta=1,1e38,1e38", *tiny, *QUICK, folder=None)
    assert stop.value.code == 1
    (sweep,) = Path.cwd().glob("outputs/sweeps/*")
    assert statuses(sweep) == {
        "beta=1,objective=ae": "completed",
        "beta=1,objective=vae": "completed",
        "beta=1e+38,objective=ae": "failed",
        "beta=1e+38,objective=vae": "failed",
    }
    captured = capsys.readouterr()
    assert "4 runs" in captured.out
    impossible = json.loads((sweep / "beta=1e+38,objective=ae" / "status.json").read_text())
    diverged = json.loads((sweep / "beta=1e+38,objective=vae" / "status.json").read_text())
    assert "this objective has no beta" in impossible["error"]
    assert "diverged" in diverged["error"] and "Traceback" in diverged["traceback"]
    assert re.search(r"^! beta=1e\+38,objective=ae: beta=1e\+38: this objective has no", captured.out, re.MULTILINE)
    assert captured.err.strip().splitlines()[-1] == (
        f"vaex: of 4 jobs 2 failed; vaex train -m sweep=outputs/sweeps/{sweep.name} runs the jobs that are not complete"
    )


def test_a_wrong_value_is_an_error_before_any_job_starts(here: Here, said: Said) -> None:
    for values, part in (
        ("beta=1,-1", "beta=-1.0: must be"),
        ("objective=vae,ave", "objective=ave: no such option; did you mean"),
        ("bta=1,2", "did you mean beta"),
    ):
        assert part in said(here, "-m", values, folder=None)
    assert not list(Path.cwd().glob("outputs/sweeps/*"))


def test_no_argument_leads_a_sweep_out_of_its_folder(here: Here, said: Said, tmp_path: Path) -> None:
    for argument, part in (
        ("hydra.sweep.subdir=../../x", "vaex names the folder of each run"),
        ("+hydra.sweep.subdir=x", "vaex names the folder of each run"),
        ("++hydra.sweep.dir=x", "vaex names the folder of each run"),
        ("hydra.output_subdir=../../x", "leads out of the folder of the run"),
        (f"hydra.output_subdir={tmp_path}/x", "leads out of the folder of the run"),
        ("hydra.job.name=../../x", "leads out of the folder of the run"),
    ):
        error = said(here, "-m", "beta=1,2", argument, "hydra.sweep.dir=sweep", folder=None)
        assert error.startswith(argument) and part in error
    assert not list(tmp_path.iterdir())


def test_a_users_own_options_are_swept(here: Here, tiny: list[str], tmp_path: Path, monkeypatch: Patch) -> None:
    (tmp_path / "mypackage.py").write_text(
        "from vaex.likelihoods.gaussian import Gaussian\n\n\nclass Mine(Gaussian):\n    pass\n"
    )
    (tmp_path / "myconf" / "likelihood").mkdir(parents=True)
    (tmp_path / "myconf" / "likelihood" / "mine.yaml").write_text(
        "defaults: [{scale: shared}, _self_]\n_target_: mypackage.Mine\nbounded_mean: true\ndiscretize: false\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    here("--config-dir", "myconf", "-m", "likelihood=mine", *QUICK, *tiny, "hydra.sweep.dir=s", folder=None)
    assert statuses(Path("s")) == {"run": "completed"}


def test_the_values_of_a_recipe_give_way_to_the_command(here: Here, tiny: list[str]) -> None:
    recipe = ["experiment=beckham_ae", *QUICK, *tiny, "hydra.sweep.dir=sweep", "hydra/launcher=basic"]
    here("-m", *recipe, "likelihood/scale=shared", "seed=1", folder=None)
    assert set(statuses(Path("sweep"))) == {"likelihood=gaussian", "likelihood=laplace"}


def _dies(*_: object) -> None:
    raise ImportError("half of an edit")


def test_a_process_that_cannot_begin_its_run_is_reported(
    here: Here, tiny: list[str], monkeypatch: Patch, capsys: Captured
) -> None:
    monkeypatch.setattr("vaex.sweeps.worker._work", _dies)
    with pytest.raises(SystemExit):
        here("-m", "beta=1", *QUICK, *tiny, "hydra.sweep.dir=sweep", folder=None)
    assert "of 1 jobs 1 failed" in capsys.readouterr().err
    status = json.loads(Path("sweep/run/status.json").read_text())
    assert status == {"status": "failed", "error": "its process ended with code 1, as the traceback above says"}


# Resuming.


def test_a_resumed_sweep_runs_only_what_is_not_complete(
    sweep: Path, here: Here, tiny: list[str], capsys: Captured
) -> None:
    failed = sweep / NAMES[3]
    RunFolder(failed).set_status("failed", error="a full disk")
    written = [
        path for path in sweep.glob("*/*") if path.name not in ("vaex.log", ".hydra") and failed not in path.parents
    ]
    before = {path: path.stat().st_mtime_ns for path in written}
    arguments = ["-m", "beta=0.5,4,8", "likelihood/scale=shared,fixed", *STEPS, *tiny, "sweep=sweep"]
    here(*arguments, folder=None)  # with one more value
    assert "3 of 6 runs already" in capsys.readouterr().out
    assert statuses(sweep) == dict.fromkeys([*NAMES, "beta=8,scale=fixed", "beta=8,scale=shared"], "completed")
    assert len(list(failed.glob("events.out.*"))) == 1  # started again
    here("sweep=sweep", folder=None)  # with the command in sweep.json
    assert "6 of 6 runs already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in written} == before


def test_a_sweep_with_other_settings_is_refused(sweep: Path, here: Here, said: Said, tiny: list[str]) -> None:
    before = {path: path.read_bytes() for path in sweep.glob("*/results.json")}
    other = ["-m", *GRID, "steps=3", *STEPS[1:], *tiny]
    assert "sweep=sweep: began with steps=4" in said(here, *other, "sweep=sweep", folder=None)
    assert "no sweep there" in said(here, "-m", "beta=1", "sweep=nowhere", folder=None)
    assert "name the folder of the sweep once" in said(here, "-m", "sweep=sweep", "hydra.sweep.dir=b", folder=None)
    assert "resumes one run" in said(here, "-m", "beta=1,2", "resume=sweep/run", folder=None)
    # A value that is not in the command, as in a YAML file that was edited, is noticed by the hash of the config.
    command = (sweep / "sweep.json").read_text().replace('"steps": "4"', '"steps": "3"')
    (sweep / "sweep.json").write_text(command)
    error = said(here, *other, "sweep=sweep", folder=None)
    assert "already contains a run with different settings: steps was 4 and is 3" in error
    assert {path: path.read_bytes() for path in before} == before
    assert set(statuses(sweep).values()) == {"completed"}


def test_two_commands_do_not_work_on_one_sweep(here: Here, said: Said, tiny: list[str], tmp_path: Path) -> None:
    with SweepFolder(tmp_path / "sweep").lock():
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


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(min_size=1), min_size=2, max_size=2, unique=True))
def test_other_values_have_other_names_that_a_folder_can_have(values: list[str]) -> None:
    one, other = (job_name([f"a.b={value}"]) for value in values)
    assert one != other and "/" not in one and "\0" not in one and len(one.encode()) < 255


def test_values_are_told_from_what_makes_hydra_run_or_write_something() -> None:
    engine = ["--config-dir", "configs", "hydra/launcher=basic", "+hydra.job.env_set.A=b"]
    values = ["beta=1,2", "experiment=tune", "dataset.source.root='a b'", "~corruption", "+dataset@x=mnist"]
    written = [value.replace("experiment", "+experiment") for value in values]
    command = Command([*engine[:2], "-m", *written, *engine[2:], "sweep=old"])
    assert command.engine == engine and command.values == values


def test_a_planned_job_names_its_folder() -> None:
    jobs = plan([["beta=1", "steps=2"], ["beta=2", "steps=2"]], ["steps"])
    assert list(jobs) == ["beta=1", "beta=2"]
    assert jobs["beta=1"][:2] == ["beta=1", "steps=2"] and planned_name(jobs["beta=1"]) == "beta=1"


def test_keys_with_several_values_are_told_from_the_others() -> None:
    arguments = ["beta=1,2", "likelihood/scale=fixed", "architecture.hidden=[16,16]", "seed=range(3)", "~corruption"]
    parsed = parse_overrides(arguments)
    assert swept_keys(parsed) == ["beta", "seed"]
    constant = {"likelihood/scale": "fixed", "architecture.hidden": "[16,16]", "corruption": ""}
    assert constant_values(parsed) == constant


def test_each_value_is_checked_once_and_not_the_whole_product() -> None:
    jobs = [[f"a={a}", f"b={b}", f"c={c}"] for a in range(4) for b in range(4) for c in range(2)]
    chosen = each_value_once(jobs)
    assert len(chosen) == 1 + 3 + 3 + 1
    assert {value for job in chosen for value in job} == {value for job in jobs for value in job}


def test_the_hash_of_a_config_covers_what_is_trained() -> None:
    base = composed()
    same = composed("device=cpu", "trainer.threads=2", "trainer.compile=false", "sweep.workers=3")
    assert config_hash(base) == config_hash(same) != config_hash(composed("beta=2"))
    assert difference(base, composed("epochs=3", "likelihood.scale.floor=0.5")) == (
        "likelihood.scale.floor was None and is 0.5, epochs was 15 and is 3"
    )


# The machine.


def test_cores_are_shared_out() -> None:
    def share(*arguments: Any) -> tuple[int, int]:
        result = resources.share(*arguments)
        return result.workers, result.threads

    assert share("auto", 8, 2, 0) == (2, 1)
    assert share("auto", 3, 16, 0) == (3, 5)
    assert share("auto", 1, 16, 0) == (1, 16)
    assert share("4", 8, 2, 0) == (4, 1)
    assert share("1", 8, 2, 0) == (1, 2)
    assert share("auto", 8, 16, 1) == (2, 8)
    assert share("auto", 8, 16, 4) == (8, 2)


def test_a_run_starts_only_if_all_could_reach_the_peak_memory(monkeypatch: Patch) -> None:
    def fits(used: list[int], peak: int, available: int) -> bool:
        monkeypatch.setattr(resources, "available_memory", lambda: available * resources.GIB)
        memory = resources.MemoryWatch()
        memory.observe([peak * resources.GIB])
        return memory.another_fits([size * resources.GIB for size in used])

    assert fits([], 0, 2) and not fits([], 0, 1)
    assert fits([3], 3, 4)  # the other run has all that it needs
    assert not fits([1], 3, 5)  # it will need two more
    assert fits([1], 3, 6)


class FakeWorker:
    """A process that ends when it is asked to stop, or when it has been polled three times."""

    def __init__(self, folder: Path, history: list[str]) -> None:
        self.folder, self.history, self.gpu = folder, history, None
        self.polls, self.stopped = 0, False
        self.process = type("Process", (), {"exitcode": 0})
        self.outcomes: list[Outcome] | None = None
        history.append(f"start {folder.name}")

    def handles(self) -> list[Any]:
        return []

    def memory(self) -> int:
        return resources.GIB

    def stop(self) -> None:
        self.stopped = True

    def poll(self) -> bool:
        self.polls += 1
        if not self.stopped and self.polls < 3:
            return False
        self.outcomes = [Outcome(error="interrupted") if self.stopped else Outcome(value=1.0)]
        self.history.append(f"{'stop' if self.stopped else 'complete'} {self.folder.name}")
        return True


def history_of_three_jobs(tmp_path: Path, stop: StopFlag) -> list[str]:
    """What happens to jobs a, b and c when two may run at once."""
    history: list[str] = []
    tasks = []
    for folder in (tmp_path / name for name in "abc"):
        folder.mkdir()
        RunFolder(folder).set_status("running")
        tasks.append(Task([folder], lambda gpu, folder=folder: FakeWorker(folder, history)))  # type: ignore[misc]
    try:
        Scheduler(tasks, most=2, gpus=0, stop=stop).run()
    except Interrupted as interrupted:
        history.append(f"exit {interrupted.exit_code}")
    return history


def test_a_run_is_paused_when_memory_is_short_and_resumed_later(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr("vaex.sweeps.scheduler.INTERVAL", 0)
    free = iter([8 * resources.GIB, 0])  # when b starts, and when both are at work
    monkeypatch.setattr(resources, "available_memory", lambda: next(free, 8 * resources.GIB))
    assert history_of_three_jobs(tmp_path, StopFlag()) == [
        *("start a", "start b", "stop b", "complete a"),
        *("start b", "complete b", "start c", "complete c"),  # one at a time from now on
    ]


def test_a_signal_stops_the_running_jobs_and_starts_no_other(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr("vaex.sweeps.scheduler.INTERVAL", 0)
    stop, looks = StopFlag(), []

    def available_memory() -> int:
        looks.append("look")
        stop.number = signal.SIGTERM if len(looks) == 2 else 0  # when both are at work
        return 8 * resources.GIB

    monkeypatch.setattr(resources, "available_memory", available_memory)
    assert history_of_three_jobs(tmp_path, stop) == ["start a", "start b", "stop a", "stop b", "exit 143"]


@pytest.mark.slow
def test_a_paused_run_is_resumed_from_its_checkpoint(here: Here, tiny: list[str], monkeypatch: Patch) -> None:
    def available() -> int:
        """Little as soon as both runs are at work, until one of them is paused."""
        both = at_work(Path("sweep/beta=1")) and at_work(Path("sweep/beta=2"))
        return 0 if both and "interrupted" not in statuses(Path("sweep")).values() else 8 * resources.GIB

    monkeypatch.setattr(resources, "available_memory", available)
    arguments = ["epochs=40", *LONG[1:], *tiny, "hydra.sweep.dir=sweep", "sweep.workers=2"]
    here("-m", "beta=1,2", *arguments, folder=None)
    assert statuses(Path("sweep")) == {"beta=1": "completed", "beta=2": "completed"}
    assert "from step" in Path("sweep/beta=2/vaex.log").read_text()
    assert "from step" not in Path("sweep/beta=1/vaex.log").read_text()


def test_memory_of_a_process_is_its_own() -> None:
    before = resources.private_memory(os.getpid())
    block = mmap.mmap(-1, 256 * 2**20, flags=mmap.MAP_PRIVATE)  # not memory that this process once used and freed
    block[:: mmap.PAGESIZE] = bytes(len(block) // mmap.PAGESIZE)  # touches each page
    assert 200 * 2**20 < resources.private_memory(os.getpid()) - before < 300 * 2**20
    block.close()
    assert resources.private_memory(2**30) == 0
    assert 0 < resources.available_memory() < 2**50 and resources.cores() >= 1


def test_an_empty_sweep_has_a_table() -> None:
    assert jobs_table([]) == "no jobs"


def test_progress_counts_the_jobs_that_were_complete_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("beta=1", "beta=2"):
        (tmp_path / name).mkdir()
    RunFolder(tmp_path / "beta=1").set_status("completed")
    RunFolder(tmp_path / "beta=2").set_status("running")
    with Watch(SweepFolder(tmp_path)):
        RunFolder(tmp_path / "beta=2").set_status("failed", error="no disk")
    err = capsys.readouterr().err
    assert "[2/2] beta=2  failed  no disk" in err and "beta=1" not in err
