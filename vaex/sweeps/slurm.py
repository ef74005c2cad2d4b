"""The launcher of `hydra/launcher=slurm`: the jobs of a sweep as a job array of Slurm, submitted with submitit.

A command that was killed and is called again follows the jobs that the first one submitted. What became of a job stands
in its run folder. The pickles of submitit are read only by the jobs, since the folder may come from somebody else.
"""

import json
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from vaex.errors import Interrupted, UserError
from vaex.runs.folder import RunFolder
from vaex.runs.writing import replace_file
from vaex.sweeps.folder import SweepFolder
from vaex.sweeps.plan import PlannedJob, planned_name
from vaex.sweeps.slurm_queue import NAMES, SUBMISSIONS, QueuedJob, cancel, has_gpus, queued_jobs, remedy
from vaex.sweeps.worker import Outcome, train_job
from vaex.training.signals import StopFlag, stop_on_signals

INTERVAL = 1.0  # seconds between two looks at the run folders
QUEUE_INTERVAL = 10.0  # seconds between two calls of squeue
UNREMARKABLE = ("None", "BeginTime", "JobArrayTaskLimit")  # why a job is pending that will run soon
SHARED = ("name", "timeout_min", "cpus_per_task", "gpus_per_node", "mem_gb", "stderr_to_stdout")  # by all of submitit


class TrainingJob:
    """What submitit calls on a node."""

    def __init__(self, train: "partial[float | None]") -> None:
        self.train = train

    def __call__(self) -> float | None:
        return self.train()

    def checkpoint(self) -> Any:
        """What submitit queues again when Slurm ends the job early: the same, which resumes the run."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class SlurmLauncher(Launcher):
    """Hydra's launcher of `hydra/launcher=slurm`.

    Args:
        options: those in conf/hydra/launcher/slurm.yaml; any other option of submitit for Slurm can be added.
    """

    def __init__(self, **options: Any) -> None:
        self.options: dict[str, Any] = {
            k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in options.items()
        }

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader, self.config = hydra_context.config_loader, config
        self.sweep = SweepFolder(Path(config.hydra.sweep.dir))

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit the jobs that are not queued or complete, and wait until all have ended, even if some fail.

        Raises:
            UserError: there is no Slurm here, or it refuses the jobs.
            Interrupted: a signal asked the sweep to stop.
        """
        self._check()
        overrides = {planned_name(job): list(job) for job in job_overrides}
        queue = queued_jobs(self.sweep.path)
        if queue is None:
            raise UserError("hydra/launcher=slurm: squeue fails, so Slurm is not at work here; choose another launcher")
        queued = {name for name, job in queue.items() if name in overrides and not job.ended}
        if queued:
            print(f"{'queued':>10}  {len(queued)} of {len(overrides)} jobs already", flush=True)
        with stop_on_signals() as stop:
            jobs = {}
            for number, (name, job) in enumerate(overrides.items(), start=initial_job_idx):
                if name not in queued and self.sweep.job(name).status != "completed":
                    threads = int(self.options["cpus_per_task"])
                    jobs[name] = TrainingJob(
                        partial(train_job, self.config, self.loader, PlannedJob(number, job), threads)
                    )
            if jobs:
                self._submit(jobs)
            outcomes = self._wait(list(overrides), stop)
        return [outcomes[name].job_return(job) for name, job in overrides.items()]

    def _check(self) -> None:
        """Raises UserError if no jobs can be submitted from here."""
        if not find_spec("submitit"):
            raise UserError("hydra/launcher=slurm: needs submitit; pip install 'vaex-autoencoders[submitit]'")
        if not shutil.which("sbatch"):
            raise UserError(
                "hydra/launcher=slurm: there is no sbatch here; call vaex on a machine that submits jobs to Slurm, or "
                "choose another launcher, such as hydra/launcher=local"
            )
        delay, minutes = self.options["signal_delay_s"], self.options["timeout_min"]
        if delay >= 60 * minutes:
            raise UserError(
                f"hydra.launcher.signal_delay_s={delay}: is not less than the {minutes} minutes of "
                f"hydra.launcher.timeout_min={minutes}, so no run could begin; raise the latter"
            )

    def _submit(self, jobs: Mapping[str, TrainingJob]) -> None:
        """Raises UserError if Slurm refuses the jobs."""
        from submitit import AutoExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        folder = self.sweep.path / SUBMISSIONS / f"{datetime.now():%Y-%m-%d_%H-%M-%S_%f}"
        folder.mkdir(parents=True)
        replace_file(folder / NAMES, json.dumps(list(jobs)).encode())
        options = {key: value for key, value in self.options.items() if value is not None}
        if options.get("gpus_per_node") == "auto":
            uses_gpu = self.config.get("device") != "cpu" and "gres" not in options
            options["gpus_per_node"] = int(uses_gpu and has_gpus(options.get("partition")))
        if not options.get("gpus_per_node"):
            options.pop("gpus_per_node", None)  # a cluster without GPUs may not know the option
        options["additional_parameters"] = {"requeue": True} | options.get("additional_parameters", {})
        executor = AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=options.pop("max_num_timeout"))
        try:
            executor.update_parameters(**{k if k in SHARED else f"slurm_{k}": v for k, v in options.items()})
            with redirect_stderr(StringIO()):  # submitit prints what is in the error
                submitted = executor.submit_array(list(jobs.values()))
        except (FailedJobError, FailedSubmissionError, ValueError) as error:
            shutil.rmtree(folder)
            lines = dict.fromkeys(line.removeprefix("sbatch: error: ") for line in str(error).splitlines() if line)
            message = ", ".join(lines).replace("Batch job submission failed: ", "")
            raise UserError(
                f"hydra/launcher=slurm: Slurm refuses the jobs: {message}{remedy(message, options)}"
            ) from error
        print(f"{'submitted':>10}  {len(jobs)} as job {submitted[0].job_id.partition('_')[0]} of Slurm", flush=True)

    def _wait(self, names: Sequence[str], stop: StopFlag) -> dict[str, Outcome]:
        """Wait until all jobs have ended, and correct the status of those that could not write it."""
        outcomes: dict[str, Outcome] = {}
        jobs: dict[str, QueuedJob] = {}
        ended: set[str] = set()
        reported: set[str] = set()  # reasons why jobs are pending
        next_look, cancelled = 0.0, False
        while missing := [name for name in names if name not in outcomes]:
            if stop.number == signal.SIGHUP:  # a closed terminal is no reason to lose a place in the queue
                raise Interrupted(stop.number, "the jobs stay in the queue of Slurm, and the same command follows them")
            if stop.number and not cancelled:
                live = [job for job in (queued_jobs(self.sweep.path) or {}).values() if not job.ended]
                cancel(live)
                next_look, cancelled = 0.0, True
            completed = [name for name in missing if self.sweep.job(name).status == "completed"]
            outcomes |= {name: self._outcome(name, None) for name in completed}
            if time.monotonic() >= next_look and (queue := queued_jobs(self.sweep.path)) is not None:
                jobs |= queue
                # A job has ended if it is so at two looks: a requeued one passes through such a state, and a file may
                # arrive late from another machine.
                before, ended = ended, {name for name in missing if name not in queue or queue[name].ended}
                outcomes |= {name: self._outcome(name, jobs.get(name)) for name in (ended & before) - set(outcomes)}
                self._report_pending([queue[name] for name in missing if name in queue], reported)
                next_look = time.monotonic() + (INTERVAL if ended - set(outcomes) else QUEUE_INTERVAL)
            time.sleep(INTERVAL)
        if stop.number:
            raise Interrupted(stop.number, "the sweep was stopped, and its jobs were cancelled")
        return outcomes

    def _outcome(self, name: str, job: QueuedJob | None) -> Outcome:
        """What the run folder says, or else what Slurm says, which is then written into the run folder."""
        state = self.sweep.job(name)
        if state.status == "completed":
            return Outcome(value=RunFolder(self.sweep.path / name).read_status().get("monitored"))
        if state.status == "failed":
            return Outcome(error=state.error)
        if job is None:
            reason = "its job is not in the queue of Slurm"
        elif job.state == "CANCELLED":
            reason = f"Slurm job {job.number} was cancelled"
        elif not job.ended:  # when it was last seen
            reason = f"Slurm job {job.number} is no longer in the queue"
        else:
            reason = f"Slurm job {job.number} ended as {job.state}, and wrote {job.log}"
        if state.status == "interrupted" and state.error:
            reason = f"{reason}; {state.error}"
        folder = self.sweep.path / name
        folder.mkdir(parents=True, exist_ok=True)
        RunFolder(folder).set_status("interrupted", reason=reason)
        return Outcome(error=reason)

    def _report_pending(self, jobs: Sequence[QueuedJob], reported: set[str]) -> None:
        """Print each reason why jobs are pending once."""
        for reason, count in Counter(job.reason for job in jobs if job.state == "PENDING").items():
            if reason not in reported and reason not in UNREMARKABLE:
                reported.add(reason)
                text = f"{count} job{'s' * (count > 1)} pending in the queue of Slurm: {reason}"
                tqdm.write(text + remedy(reason, self.options), file=sys.stderr)
