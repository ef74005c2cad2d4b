"""A process that trains one job of a sweep on this machine."""

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

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
from vaex.training.signals import request_stop

NICE_TO_KILL = "500"  # of 1000: if memory runs out, the system ends a run rather than the sweep


@dataclass(frozen=True)
class Outcome:
    """What became of a job: the number it returned, or an error."""

    value: float | None = None
    error: str | None = None

    def job_return(self, overrides: Sequence[str]) -> JobReturn:
        """The same, as Hydra's sweepers read it."""
        result = JobReturn(overrides=overrides, status=JobStatus.FAILED if self.error else JobStatus.COMPLETED)
        result.return_value = UserError(self.error) if self.error else self.value
        return result


class Worker:
    """The process of one job, seen from the sweep.

    Args:
        train: trains the job; it is pickled for the process.
        gpu: the only GPU that the process sees; None for no restriction.
    """

    def __init__(self, context: ForkServerContext, train: Callable[[], float | None], gpu: int | None) -> None:
        self.gpu = gpu
        self.outcome: Outcome | None = None
        self.connection, remote = context.Pipe(duplex=False)
        environment = dict(os.environ) | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)})
        self.process = context.Process(target=_work, args=(remote, train, environment))
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
        """Receive the outcome if there is one. Returns whether the process has ended."""
        ended = not self.process.is_alive()  # looked up first, so that no outcome can arrive afterwards
        if self.connection.poll():
            with suppress(EOFError):
                self.outcome = self.connection.recv()
        if ended:
            self.process.join()
            self.connection.close()
        return ended


def _work(connection: Connection, train: Callable[[], float | None], environment: dict[str, str]) -> None:
    """Train one job in this process, and send its Outcome."""
    os.environ.clear()  # the environment of the server that forked this process
    os.environ.update(environment)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(NICE_TO_KILL)
    try:
        connection.send(Outcome(value=train()))
    except (Exception, KeyboardInterrupt) as error:
        connection.send(Outcome(error=str(error) or type(error).__name__))


def train_job(
    config: DictConfig, loader: ConfigLoader, overrides: list[str], number: int, threads: int
) -> float | None:
    """Train job `number` of a sweep in this process, as the launchers of Hydra do.

    Raises:
        UserError: the job failed.
    """
    import torch
    from tqdm import tqdm

    from vaex.sweeps.job import sweep_job

    torch.set_num_threads(threads)
    tqdm.set_lock(threading.RLock())  # its default is shared by processes; Python warns if one is stopped
    setup_globals()
    version.setbase("1.3")
    with one_line_errors(loader, overrides):
        composed = loader.load_sweep_config(config, overrides)
    with open_dict(composed):
        composed.hydra.job.id = composed.hydra.job.num = number
    HydraConfig.instance().set_config(composed)
    result = run_job(
        hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks()),
        task_function=sweep_job,
        config=composed,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    value = result._return_value
    if result.status == JobStatus.FAILED:
        raise UserError(str(value))
    return None if value is None else float(value)
