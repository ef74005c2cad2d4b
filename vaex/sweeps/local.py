"""Runs of a sweep side by side on this machine, each in a process of its own.

A new process is forked from one that has imported PyTorch already, and nothing else: it starts in a moment, and shares
the memory that the libraries take.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from vaex.commands.train import job_name
from vaex.errors import Interrupted, UserError
from vaex.runs.folder import STATUS, RunFolder
from vaex.sweeps import resources
from vaex.training.signals import StopFlag, stop_on_signals

log = logging.getLogger("vaex")

POLL = 0.25  # seconds between looks at signals and memory


@dataclass
class _Job:
    number: int
    overrides: list[str]
    folder: Path
    outcome: tuple[bool, Any] = (False, "not run")  # whether it returned, and what; else what it said


@dataclass
class _Worker:
    job: _Job
    process: ForkServerProcess
    answers: Connection
    gpu: int | None
    stopped: bool = False  # by us, for want of memory


class LocalLauncher(Launcher):
    """Hydra's launcher of `hydra/launcher=local`.

    Args:
        workers: auto, or how many runs at once.
    """

    def __init__(self, workers: str) -> None:
        self.workers = str(workers)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs, whatever becomes of each.

        Raises:
            Interrupted: a signal asked to stop, and the runs have saved themselves.
        """
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        sweep = Path(self.config.hydra.sweep.dir)
        constant = self.config.hydra.job.config.override_dirname.exclude_keys
        jobs = [
            _Job(number, list(overrides), sweep / job_name(overrides, constant))
            for number, overrides in enumerate(job_overrides, start=initial_job_idx)
        ]
        context = multiprocessing.get_context("forkserver")
        # All of vaex, so that an edit while a sweep is on is not mixed in; an optimizer imports torch._dynamo.
        context.set_forkserver_preload(["vaex.commands.train", "vaex.train", "torch._dynamo"])
        gpus = _on_one(context, _gpus) if self._may_use_gpu() else 0
        plan = resources.plan(self.workers, len(jobs), resources.cores(), gpus)
        if not initial_job_idx:
            threads = f"{plan.threads} thread{'s' * (plan.threads > 1)}"
            print(f"{'at once':>10}  {plan.workers} of {len(jobs)} runs, {threads} each ({plan.why})", flush=True)
        with stop_on_signals() as stop:
            _Pool(context, jobs, plan, self.config, self.hydra_context.config_loader, stop).run()
        return [_as_hydra_wants(job) for job in jobs]

    def _may_use_gpu(self) -> bool:
        return str(self.config.get("device", "auto")) != "cpu" and Path("/dev/nvidiactl").exists()


class _Pool:
    """Starts jobs while there is room, and takes what they answer."""

    def __init__(
        self,
        context: multiprocessing.context.ForkServerContext,
        jobs: Sequence[_Job],
        plan: resources.Plan,
        config: DictConfig,
        loader: ConfigLoader,
        stop: StopFlag,
    ) -> None:
        self.context, self.plan, self.config, self.loader, self.stop = context, plan, config, loader, stop
        self.waiting = deque(jobs)
        self.workers: list[_Worker] = []
        self.peak = 0  # bytes, of any run so far
        self.most = plan.workers

    def run(self) -> None:
        """Raises Interrupted."""
        try:
            while self.waiting or self.workers:
                if self.stop.number:
                    self._stop_all()
                    raise Interrupted(self.stop.number, "the sweep was stopped, and its runs saved themselves")
                while self.waiting and self._has_room():
                    self._start(self.waiting.popleft())
                self._wait()
                self._look_at_memory()
        finally:
            self._stop_all()

    def _has_room(self) -> bool:
        if not self.workers:
            return True
        running = [resources.own_memory(worker.process.pid or 0) for worker in self.workers]
        return len(running) < self.most and resources.fits_another(running, self.peak, resources.available_memory())

    def _start(self, job: _Job) -> None:
        answers, theirs = self.context.Pipe(duplex=False)
        taken = [worker.gpu for worker in self.workers]
        gpu = min(range(self.plan.gpus), key=taken.count) if self.plan.gpus > 1 else None
        machine = (self.plan.threads, gpu, dict(os.environ))
        process = self.context.Process(
            target=_work, args=(theirs, self.config, self.loader, job.overrides, job.number, *machine)
        )
        process.start()
        theirs.close()
        self.workers.append(_Worker(job, process, answers, gpu))

    def _wait(self) -> None:
        """Until a worker ends, or it is time to look around."""
        wait([worker.process.sentinel for worker in self.workers] + [w.answers for w in self.workers], timeout=POLL)
        for worker in list(self.workers):
            alive = worker.process.is_alive()  # before its answers are looked at, so that none comes after that
            if worker.answers.poll():
                try:
                    worker.job.outcome = worker.answers.recv()
                except EOFError:
                    worker.process.join()
            if not alive:
                self.workers.remove(worker)
                self._ended(worker)

    def _ended(self, worker: _Worker) -> None:
        worker.process.join()
        worker.answers.close()
        code = worker.process.exitcode or 0
        if worker.stopped and not worker.job.outcome[0] and not self.stop.number:
            self.waiting.appendleft(worker.job)  # it made room for others, and goes on later
            return
        folder = RunFolder(worker.job.folder)
        there = (folder.path / STATUS).exists()
        if code < 0:
            reason = f"its process was ended by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                reason += ", as by a machine that is out of memory"
            worker.job.outcome = (False, reason)
            if there and folder.read_status().get("status") == "running":
                folder.set_status("interrupted", reason=reason)
        elif code and not there:  # before it came to the run
            worker.job.outcome = (False, f"its process ended with code {code}, as the traceback above says")
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.set_status("failed", error=worker.job.outcome[1])

    def _look_at_memory(self) -> None:
        """Ask the youngest run to stop and save itself before there is no memory left; it goes on later."""
        for worker in self.workers:
            self.peak = max(self.peak, resources.own_memory(worker.process.pid or 0))
        if len(self.workers) > 1 and resources.available_memory() < resources.LEAST // 2:
            youngest = self.workers[-1]
            if not youngest.stopped:
                youngest.stopped = True
                self.most = len(self.workers) - 1
                name = youngest.job.folder.name
                log.warning(f"{name}: waits, memory is short; from here on {self.most} at once")
                youngest.process.terminate()

    def _stop_all(self) -> None:
        """Ask all to save themselves and end, and wait for that."""
        for worker in self.workers:
            worker.process.terminate()
        while self.workers:
            self._wait()


def _work(
    answers: Connection,
    config: DictConfig,
    loader: ConfigLoader,
    overrides: list[str],
    number: int,
    threads: int,
    gpu: int | None,
    environment: dict[str, str],
) -> None:
    """A worker's process: one job, of which it answers what came out."""
    os.environ.clear()
    os.environ.update(environment)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _be_the_first_to_go()

    import torch
    from hydra import version
    from hydra._internal.callbacks import Callbacks
    from hydra.core.hydra_config import HydraConfig
    from tqdm import tqdm

    from vaex.commands.train import job

    torch.set_num_threads(threads)
    tqdm.set_lock(threading.RLock())  # its own is shared by processes, and Python complains of it when one is stopped
    setup_globals()
    version.setbase("1.3")
    try:
        composed = loader.load_sweep_config(config, overrides)
        with open_dict(composed):
            composed.hydra.job.id = composed.hydra.job.num = number
        HydraConfig.instance().set_config(composed)
        done = run_job(
            hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks()),
            task_function=job,
            config=composed,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        answers.send((done.status == JobStatus.COMPLETED, _plain(done._return_value)))
    except (Exception, KeyboardInterrupt) as error:
        answers.send((False, str(error)))


def _plain(value: object) -> float | str | None:
    """What can be sent: a number, or what an error says."""
    return value if value is None or isinstance(value, float) else str(value)


def _end_with_parent() -> None:
    """When the sweep's own process is gone, however it went, stop as if asked to."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _be_the_first_to_go() -> None:
    """A machine without memory shall end a run, and not the sweep."""
    try:
        Path("/proc/self/oom_score_adj").write_text("500")
    except OSError:
        pass


def _gpus(answers: Connection) -> None:
    import torch

    answers.send(torch.cuda.device_count())


def _on_one(context: multiprocessing.context.ForkServerContext, function: Any) -> int:
    """What a function sends, called in a process that ends: asking for GPUs here would take memory of them."""
    answers, theirs = context.Pipe(duplex=False)
    process = context.Process(target=function, args=(theirs,))
    process.start()
    theirs.close()
    try:
        return int(answers.recv())
    except EOFError:
        return 0
    finally:
        process.join()


def _as_hydra_wants(job: _Job) -> JobReturn:
    returned, value = job.outcome
    status = JobStatus.COMPLETED if returned else JobStatus.FAILED
    done = JobReturn(overrides=job.overrides, status=status)
    done.return_value = value if returned else UserError(str(value))
    return done
