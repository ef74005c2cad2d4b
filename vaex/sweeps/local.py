"""The launcher of `hydra/launcher=local`: the jobs of a sweep side by side on this machine, each in its own process.

A process is forked from one that has only imported PyTorch, so it starts quickly and shares the memory of the
libraries.
"""

import multiprocessing
from collections.abc import Sequence
from functools import partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from vaex.sweeps import resources
from vaex.sweeps.plan import PlannedJob, plan_groups, planned_name
from vaex.sweeps.scheduler import Scheduler, Task
from vaex.sweeps.worker import Outcome, Worker, train_jobs
from vaex.training.signals import block_signals, stop_on_signals

# All of vaex, so that no job mixes in an edit made during the sweep. An optimizer imports torch._dynamo.
PRELOADED = ["vaex.sweeps.job", "vaex.sweeps.worker", "vaex.train", "torch._dynamo"]


class LocalLauncher(Launcher):
    """Hydra's launcher of `hydra/launcher=local`.

    Args:
        workers: auto, or the number of processes at once.
        together: whether runs that differ only in values are trained in one step: auto (on a GPU), true or false.
    """

    def __init__(self, workers: str, together: str) -> None:
        self.workers, self.together = str(workers), str(together).lower()

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader, self.config = hydra_context.config_loader, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs, even if some fail.

        Raises:
            Interrupted: a signal asked the sweep to stop, and the runs saved a checkpoint.
        """
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        _start_server()
        may_use_gpu = str(self.config.get("device", "auto")) != "cpu" and Path("/dev/nvidiactl").exists()
        gpus = _gpu_count(context) if may_use_gpu else 0
        planned = [PlannedJob(number, list(job)) for number, job in enumerate(job_overrides, start=initial_job_idx)]
        groups = [[job] for job in planned]
        hydra = self.config.hydra.job
        if (self.together == "true" or (self.together == "auto" and gpus)) and not (hydra.chdir or hydra.env_set):
            groups = plan_groups(planned, at_least=gpus)
        share = resources.share(self.workers, len(groups), resources.cores(), gpus)
        if initial_job_idx == 0:
            threads = f"{share.threads} thread{'s' * (share.threads > 1)}"
            sizes = sorted(map(len, groups), reverse=True)
            largest, runs = sizes[0], f"{sum(sizes[: share.workers])} of {len(planned)} runs"
            if largest > 1:
                runs += f", up to {largest} of them in one step"
            each = "each" if largest == 1 else "for each process"
            print(f"{'at once':>10}  {runs}, {threads} {each} ({share.reason})", flush=True)
        sweep = Path(self.config.hydra.sweep.dir)
        tasks = []
        for group in groups:
            train = partial(train_jobs, self.config, self.loader, group, share.threads, self.together == "true")
            folders = [sweep / planned_name(job.overrides) for job in group]
            tasks.append(Task(folders, partial(Worker, context, train, len(group))))
        with stop_on_signals() as stop:
            Scheduler(tasks, share.workers, gpus, stop).run()
        outcomes: dict[int, Outcome] = {}
        for group, task in zip(groups, tasks, strict=True):
            results = task.outcomes or [Outcome(error="not run")] * len(group)
            outcomes |= {job.number: outcome for job, outcome in zip(group, results, strict=True)}
        return [outcomes[job.number].job_return(job.overrides) for job in planned]


def _start_server() -> None:
    """Start the process from which the jobs are forked, so that a signal to all processes does not end it.

    Its end would look like the end of all jobs.
    """
    with block_signals():
        resource_tracker.ensure_running()
    with block_signals():  # again, since this tracker lets signals through once it has started
        forkserver.ensure_running()


def _gpu_count(context: ForkServerContext) -> int:
    """Count GPUs in another process, since PyTorch would take memory on each of them in this one."""
    connection, remote = context.Pipe(duplex=False)
    process = context.Process(target=_send_gpu_count, args=(remote,))
    process.start()
    remote.close()
    try:
        return int(connection.recv())
    except EOFError:
        return 0
    finally:
        process.join()


def _send_gpu_count(connection: Connection) -> None:
    import torch

    connection.send(torch.cuda.device_count())
