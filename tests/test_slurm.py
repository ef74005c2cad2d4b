"""Sweeps on Slurm: with stand-ins for its commands, and on a real one where there is a Slurm (`pytest -m slow`)."""

import json
import os
import pickle
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from test_sweeps import LONG, at_work, same_weights, started, statuses, until

from vaex.errors import Interrupted
from vaex.runs.folder import RunFolder
from vaex.sweeps.slurm import SlurmLauncher
from vaex.sweeps.slurm_queue import QueuedJob, has_gpus, queued_jobs, remedy
from vaex.training.signals import StopFlag

Here = Callable[..., Path]
Said = Callable[..., str]
Patch = pytest.MonkeyPatch
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: Patch) -> Callable[[str, str], None]:
    """Replaces a command of Slurm by a shell script."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    def replace(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    for name in ("sbatch", "srun", "squeue", "scancel", "sinfo"):
        replace(name, "true")
    return replace


def test_a_refusal_names_the_key_and_its_value() -> None:
    """What sbatch and squeue of Slurm 22.05 say."""
    options = {"gpus_per_node": 1, "mem_gb": 64, "cpus_per_task": 4, "partition": "gpu", "timeout_min": 9, "gres": None}
    for message, change in (
        ("Invalid generic resource (gres) specification", "gpus_per_node=1"),
        ("Memory specification can not be satisfied, Requested node configuration is not available", "mem_gb=64"),
        ("Requested node configuration is not available", "cpus_per_task=4, hydra.launcher.mem_gb=64"),
        ("PartitionConfig", "cpus_per_task=4, hydra.launcher.mem_gb=64"),
        ("invalid partition specified: gpu, Invalid partition name specified", "partition=gpu"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "timeout_min=9"),
        ("PartitionTimeLimit", "timeout_min=9"),
        ("Invalid qos specification", "qos"),
        ("Invalid account or account/partition combination specified", "account"),
        ("AssocGrpCpuLimit", "account"),
        ("Invalid feature specification", "constraint"),
    ):
        assert remedy(message, options).startswith(f"; change hydra.launcher.{change}"), message
    assert remedy("Priority", options) == ""


def test_jobs_that_slurm_refuses_are_an_error_of_one_line(
    commands: Callable[[str, str], None], here: Here, said: Said
) -> None:
    commands("sbatch", "echo 'sbatch: error: Invalid generic resource (gres) specification' >&2; exit 1")
    sweep = ["-m", "hydra/launcher=slurm", "hydra.launcher.gpus_per_node=1", "beta=1,2", "hydra.sweep.dir=sweep"]
    pytest.importorskip("submitit")
    error = said(here, *sweep, folder=None)
    refusal = "Slurm refuses the jobs: Invalid generic resource (gres) specification"
    assert error == f"hydra/launcher=slurm: {refusal}; change hydra.launcher.gpus_per_node=1"
    assert not list(Path("sweep/.submitit").iterdir())
    error = said(here, *sweep, "hydra.launcher.timeout_min=1", folder=None)
    assert error.startswith("hydra.launcher.signal_delay_s=120: ") and "hydra.launcher.timeout_min=1" in error
    commands("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    assert "squeue fails" in said(here, *sweep, folder=None)


def test_without_slurm_the_launcher_says_so(here: Here, said: Said, monkeypatch: Patch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "/nowhere")
    assert "there is no sbatch here" in said(here, "-m", "hydra/launcher=slurm", "beta=1,2", folder=None)


def test_a_gpu_is_requested_only_where_there_is_one(commands: Callable[[str, str], None]) -> None:
    commands("sinfo", "echo 'debug*|(null)'; echo 'gpu|gpu:a100:4'; echo 'gpu|(null)'")
    assert [has_gpus(name) for name in (None, "debug", "gpu", "debug,gpu")] == [False, False, True, True]


def submission(sweep: Path, number: int, *names: str) -> Path:
    """The folder of a submission as the launcher writes it."""
    folder = sweep / ".submitit" / str(number)
    folder.mkdir(parents=True)
    (folder / "names.json").write_text(json.dumps(names))
    return folder


def test_the_jobs_of_a_sweep_are_found_in_the_queue(tmp_path: Path, commands: Callable[[str, str], None]) -> None:
    first, second = submission(tmp_path / "sweep", 7, "a", "b"), submission(tmp_path / "sweep", 12, "b")
    other = submission(tmp_path / "other", 8, "a")
    rows = [
        f"12|N/A|PENDING|Resources|{second}/script.sh",
        f"7|0|RUNNING|None|{first}/script.sh",
        f"7|1|CANCELLED|None|{first}/script.sh",
        f"8|0|PENDING|Priority|{other}/script.sh",
        "9|N/A|RUNNING|None|(null)",
        f"10|N/A|RUNNING|None|{tmp_path}/sweep/.submitit/gone/script.sh",
    ]
    commands("squeue", f"cat <<'END'\n{chr(10).join(rows)}\nEND")
    assert queued_jobs(tmp_path / "sweep") == {
        "a": QueuedJob("7_0", "RUNNING", "None", first / "7_0_0_log.err"),
        "b": QueuedJob("12", "PENDING", "Resources", second / "12_0_log.err"),
    }
    rows = [f"7|0|RUNNING|None|{first}/script.sh", f"7|N/A|CANCELLED|None|{first}/script.sh"]  # before b started
    commands("squeue", f"cat <<'END'\n{chr(10).join(rows)}\nEND")
    jobs = queued_jobs(tmp_path / "sweep") or {}
    assert [(job.number, job.state) for job in jobs.values()] == [("7_0", "RUNNING"), ("7_1", "CANCELLED")]
    commands("squeue", "exit 1")
    assert queued_jobs(tmp_path / "sweep") is None


OPTIONS = {"cpus_per_task": 1, "timeout_min": 60, "signal_delay_s": 120, "max_num_timeout": 1}


@pytest.fixture
def launcher(tmp_path: Path, commands: Callable[[str, str], None], monkeypatch: Patch) -> SlurmLauncher:
    """A launcher of a sweep in `sweep`, which looks again at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vaex.sweeps.slurm.INTERVAL", 0)
    monkeypatch.setattr("vaex.sweeps.slurm.QUEUE_INTERVAL", 0)
    launcher = SlurmLauncher(**OPTIONS)
    config = OmegaConf.create({"hydra": {"sweep": {"dir": "sweep"}}})
    launcher.setup(hydra_context=SimpleNamespace(config_loader=None), task_function=len, config=config)  # type: ignore
    return launcher


def queue_of(monkeypatch: Patch, *looks: Callable[[], dict[str, str]]) -> None:
    """Have squeue list these states, `name: state`, one dict after another; the last one remains."""
    remaining = list(looks)

    def queued(sweep: Path) -> dict[str, QueuedJob]:
        look = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        return {name: QueuedJob(f"12_{name}", state, "PartitionConfig", Path("log")) for name, state in look().items()}

    monkeypatch.setattr("vaex.sweeps.slurm.queued_jobs", queued)


def status(name: str, text: str, **details: object) -> dict[str, str]:
    """Write the status of a run, between two looks at the queue."""
    Path("sweep", name).mkdir(parents=True, exist_ok=True)
    RunFolder(Path("sweep", name)).set_status(text, **details)
    return {}


def read_status(name: str) -> dict[str, object]:
    content: dict[str, object] = json.loads(Path("sweep", name, "status.json").read_text())
    return content


def test_the_command_waits_for_the_other_jobs_when_one_is_cancelled(
    launcher: SlurmLauncher, monkeypatch: Patch, capsys: Captured
) -> None:
    queue_of(
        monkeypatch,
        lambda: status("c", "running") | {"a": "PENDING", "b": "RUNNING", "c": "RUNNING", "d": "RUNNING"},
        lambda: {"a": "CANCELLED", "b": "RUNNING", "c": "OUT_OF_MEMORY", "d": "RUNNING"},
        lambda: {"a": "CANCELLED", "b": "COMPLETING", "c": "OUT_OF_MEMORY", "d": "FAILED"},
        lambda: status("d", "failed", error="diverged") | {"b": "RUNNING"},
        lambda: {"b": "RUNNING"},
        lambda: status("b", "completed", monitored=-3.5) | {"b": "RUNNING"},
    )
    outcomes = launcher._wait(["a", "b", "c", "d"], StopFlag())
    assert outcomes["b"].value == -3.5 and outcomes["d"].error == "diverged"
    assert outcomes["a"].error == read_status("a")["reason"] == "Slurm job 12_a was cancelled"
    assert outcomes["c"].error == read_status("c")["reason"] == "Slurm job 12_c ended as OUT_OF_MEMORY, and wrote log"
    assert [read_status(name)["status"] for name in "abcd"] == ["interrupted", "completed", "interrupted", "failed"]
    pending = "1 job pending in the queue of Slurm: PartitionConfig; change hydra.launcher.cpus_per_task=1\n"
    assert pending in capsys.readouterr().err


def test_a_requeued_job_is_not_taken_for_one_that_ended(launcher: SlurmLauncher, monkeypatch: Patch) -> None:
    queue_of(
        monkeypatch,
        lambda: {"a": "RUNNING"},
        lambda: status("a", "interrupted", reason="stopped at step 5") | {"a": "PREEMPTED"},  # for a moment
        lambda: {"a": "PENDING"},
        lambda: {"a": "RUNNING"},
        lambda: status("a", "completed", monitored=1.0) | {"a": "COMPLETED"},
    )
    assert launcher._wait(["a"], StopFlag())["a"].value == 1.0


def test_a_stopped_sweep_cancels_its_jobs_but_not_when_the_terminal_is_closed(
    launcher: SlurmLauncher, commands: Callable[[str, str], None], monkeypatch: Patch, tmp_path: Path
) -> None:
    commands("scancel", f'echo "$@" > {tmp_path}/cancelled')
    queue_of(monkeypatch, lambda: {"a": "RUNNING", "b": "COMPLETED"})
    stop = StopFlag()
    stop.number = signal.SIGHUP
    with pytest.raises(Interrupted, match="stay in the queue"):
        launcher._wait(["a"], stop)
    assert not (tmp_path / "cancelled").exists()
    queue_of(monkeypatch, lambda: {"a": "RUNNING", "b": "COMPLETED"}, lambda: {"a": "CANCELLED"})
    stop.number = signal.SIGTERM
    with pytest.raises(Interrupted, match="its jobs were cancelled") as interrupted:
        launcher._wait(["a"], stop)
    assert interrupted.value.exit_code == 143 and (tmp_path / "cancelled").read_text() == "12_a\n"
    assert read_status("a")["status"] == "interrupted"


def test_jobs_in_the_queue_are_not_submitted_again(
    launcher: SlurmLauncher, commands: Callable[[str, str], None], monkeypatch: Patch, tmp_path: Path, capsys: Captured
) -> None:
    """`a` was submitted by a command that was killed, `b` has failed, `c` is complete, `d` is new."""
    pytest.importorskip("submitit")
    status("b", "failed", error="a full disk")
    status("c", "completed", monitored=3.0)
    commands("sbatch", f'cat "$1" >> {tmp_path}/script; echo Submitted batch job 13')

    def complete() -> dict[str, str]:
        for name in "abd":
            status(name, "completed", monitored=2.0)
        return {}

    queue_of(monkeypatch, lambda: {"a": "RUNNING", "b": "FAILED"}, lambda: {"a": "RUNNING"}, complete)
    returned = launcher.launch([[f"beta={n}", f"hydra.sweep.subdir='{n}'"] for n in "abcd"], 0)
    assert [job.return_value for job in returned] == [2.0, 2.0, 3.0, 2.0]
    (names,) = Path("sweep/.submitit").glob("*/names.json")
    assert json.loads(names.read_text()) == ["b", "d"]
    script = (tmp_path / "script").read_text()
    assert script.count("--array=0-1%2") == 1 and "--requeue" in script and "gpus" not in script
    out = capsys.readouterr().out
    assert "1 of 4 jobs already" in out and "2 as job 13 of Slurm" in out


def test_nothing_in_the_folder_of_submitit_is_unpickled(
    launcher: SlurmLauncher, monkeypatch: Patch, tmp_path: Path
) -> None:
    """A foreign sweep could contain the result of each job that may come."""

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    folder = submission(Path("sweep"), 12, "a")
    for name in ("12_0_result.pkl", "12_0_0_result.pkl", "12_submitted.pkl"):
        (folder / name).write_bytes(pickle.dumps(Bomb()))
    queue_of(monkeypatch, lambda: {"a": "COMPLETED"})
    assert launcher._wait(["a"], StopFlag())["a"].error
    assert not (tmp_path / "exploded").exists()


# On a real Slurm.


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout


def job_numbers(sweep: Path) -> dict[str, str]:
    return {name: job.number for name, job in (queued_jobs(sweep) or {}).items() if not job.ended}


def start_requeued_jobs() -> None:
    """Slurm lets a job that was queued again wait for two minutes."""
    for line in slurm("squeue", "--noheader", "--array", "--states=PENDING", "--format=%i %r").splitlines():
        number, reason = line.split()
        if reason == "BeginTime":
            slurm("scontrol", "update", f"JobId={number}", "StartTime=now")


@pytest.mark.slow
def test_a_sweep_on_slurm_survives_time_outs_preemption_and_a_killed_command(tiny: list[str], tmp_path: Path) -> None:
    """Its weights are those of an undisturbed sweep, and a job that is cancelled is named and can be resumed."""
    if not slurm("sinfo", "--noheader"):
        pytest.skip("there is no Slurm here")
    values = ["beta=1,2,4", *LONG, *tiny, "trainer.threads=1"]
    launcher = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=2"]
    sweep, whole = tmp_path / "sweep", tmp_path / "whole"
    one, two, four = (sweep / f"beta={beta}" for beta in (1, 2, 4))
    with started(*values, *launcher, "hydra.sweep.dir=sweep", cwd=tmp_path) as process:
        until(lambda: at_work(one) and at_work(two), 300)
        numbers = job_numbers(sweep)
        slurm("scancel", "--signal=USR2", numbers["beta=1"])  # as Slurm does some time before a job is out of time
        slurm("scontrol", "requeue", numbers["beta=2"])  # as at preemption
        process.send_signal(signal.SIGKILL)
        until(lambda: statuses(sweep)["beta=1"] == statuses(sweep)["beta=2"] == "interrupted")
    assert job_numbers(sweep) == numbers
    with started(*launcher, "sweep=sweep", cwd=tmp_path) as process:
        until(lambda: four.exists() and at_work(four), 300)
        assert job_numbers(sweep) == numbers  # nothing is submitted twice
        slurm("scancel", numbers["beta=4"])
        while process.poll() is None:
            start_requeued_jobs()
            time.sleep(1)
        out, error = process.communicate()
    assert "3 of 3 jobs already" in out and f"! beta=4: Slurm job {numbers['beta=4']} was cancelled; stopped at" in out
    assert process.returncode == 1 and "of 3 jobs 1 interrupted" in error
    assert statuses(sweep) == {"beta=1": "completed", "beta=2": "completed", "beta=4": "interrupted"}
    with started(*launcher, "sweep=sweep", cwd=tmp_path) as process:
        out, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    with started(*values, "hydra.sweep.dir=whole", "sweep.workers=2", cwd=tmp_path) as process:
        assert process.wait(600) == 0
    for run in (one, two, four):
        assert (run / "vaex.log").read_text().count("from step") == 1
        assert same_weights(run, whole / run.name)


@pytest.mark.slow
def test_a_stopped_command_cancels_its_jobs_on_slurm(tiny: list[str], tmp_path: Path) -> None:
    if not slurm("sinfo", "--noheader"):
        pytest.skip("there is no Slurm here")
    sweep = tmp_path / "sweep"
    launcher = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=2"]
    with started("beta=1,2,4", *LONG, *tiny, *launcher, "hydra.sweep.dir=sweep", cwd=tmp_path) as process:
        until(lambda: at_work(sweep / "beta=1"), 300)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=120)
    assert process.returncode == 130 and not job_numbers(sweep)
    assert error.strip().endswith(f"resume it with vaex train -m {' '.join(launcher)} sweep=sweep")
    assert set(statuses(sweep).values()) == {"interrupted"}
    assert "stopped at step" in str(json.loads((sweep / "beta=1/status.json").read_text())["reason"])
