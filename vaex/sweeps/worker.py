"""A process that trains one job of a sweep on this machine."""

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.callbacks import Callbacks
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from vaex.config.compose import one_line_errors
from vaex.errors import UserError
from vaex.sweeps import resources
from vaex.sweeps.plan import PlannedJob
from vaex.training.signals import request_stop

NICE_TO_KILL = "500"  # of 1000: if memory runs out, the system ends a run rather than the sweep


@dataclass(frozen=True)
class Outcome:
    """What became of a job: the number it returned, or an error."""

    value: float | None = None
    error: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> "Outcome":
        return cls(error=str(error) or type(error).__name__)

    def job_return(self, overrides: Sequence[str]) -> JobReturn:
        """The same, as Hydra's sweepers read it."""
        result = JobReturn(overrides=overrides, status=JobStatus.FAILED if self.error else JobStatus.COMPLETED)
        result.return_value = UserError(self.error) if self.error else self.value
        return result


class Worker:
    """The process of one job, or of several that are trained together, seen from the sweep.

    Args:
        train: trains the jobs; it is pickled for the process.
        jobs: the number of jobs.
        gpu: the only GPU that the process sees; None for no restriction.
    """

    def __init__(
        self, context: ForkServerContext, train: Callable[[], list[Outcome]], jobs: int, gpu: int | None
    ) -> None:
        self.gpu = gpu
        self.outcomes: list[Outcome] | None = None
        self.connection, remote = context.Pipe(duplex=False)
        environment = dict(os.environ) | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)})
        self.process = context.Process(target=_work, args=(remote, train, jobs, environment))
        self.process.start()
        remote.close()

    def handles(self) -> tuple[int, Connection]:
        """What becomes ready when the process ends or sends its outcome."""
        return self.process.sentinel, self.connection

    def memory(self) -> int:
        """Bytes that the process does not share with others."""
        return resources.private_memory(self.process.pid or 0)

    def stop(self) -> None:
        """Ask the run to save a checkpoint and end."""
        request_stop(self.process.pid or 0)

    def poll(self) -> bool:
        """Receive the outcomes if they are there. Returns whether the process has ended."""
        ended = not self.process.is_alive()  # looked up first, so that no outcome can arrive afterwards
        if self.connection.poll():
            with suppress(EOFError):
                self.outcomes = self.connection.recv()
        if ended:
            self.process.join()
            self.connection.close()
        return ended


def _work(connection: Connection, train: Callable[[], list[Outcome]], jobs: int, environment: dict[str, str]) -> None:
    """Train the jobs in this process, and send their outcomes."""
    os.environ.clear()  # the environment of the server that forked this process
    os.environ.update(environment)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(NICE_TO_KILL)
    try:
        connection.send(train())
    except (Exception, KeyboardInterrupt) as error:
        connection.send([Outcome.of(error)] * jobs)


def train_jobs(
    config: DictConfig, loader: ConfigLoader, jobs: Sequence[PlannedJob], threads: int, required: bool
) -> list[Outcome]:
    """Train one job in this process, or several together.

    Args:
        required: if True, jobs that cannot share a step fail; otherwise they are trained one after another.
    """
    if len(jobs) == 1:
        return [Outcome(value=train_job(config, loader, jobs[0], threads))]
    from vaex.sweeps.together import train_together

    set_up(threads)
    return train_together(config, loader, jobs, required=required)


def train_job(config: DictConfig, loader: ConfigLoader, job: PlannedJob, threads: int) -> float | None:
    """Train a job of a sweep in this process.

    Raises:
        UserError: the job failed.
    """
    from vaex.sweeps.job import sweep_job

    set_up(threads)
    value = run_task(config, loader, job, sweep_job)
    return None if value is None else float(value)


def set_up(threads: int) -> None:
    """Prepare this process for jobs with this number of threads."""
    import torch
    from tqdm import tqdm

    torch.set_num_threads(threads)
    tqdm.set_lock(threading.RLock())  # its default is shared by processes; Python warns if one is stopped
    setup_globals()
    version.setbase("1.3")


def run_task(config: DictConfig, loader: ConfigLoader, job: PlannedJob, task: Callable[[DictConfig], Any]) -> Any:
    """Compose the config of a job and call `task` with it, as the launchers of Hydra do.

    Raises:
        UserError: the task failed.
    """
    overrides = list(job.overrides)
    with one_line_errors(loader, overrides):
        composed = loader.load_sweep_config(config, overrides)
    with open_dict(composed):
        composed.hydra.job.id = composed.hydra.job.num = job.number
    HydraConfig.instance().set_config(composed)
    result = run_job(
        hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks()),
        task_function=task,
        config=composed,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    value = result._return_value
    if result.status == JobStatus.FAILED:
        raise UserError(str(value))
    return value
