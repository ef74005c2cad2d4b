"""One run in several processes, as torchrun starts them: each trains on its part of every batch.

All hold the same weights and the same random state. A step draws its noise for the whole batch in each process, and the
gradients and the logged numbers of the parts are averaged: the run is that of a single process, up to the rounding of
sums in another order. The first process alone has the run's folder.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from itertools import chain
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from vaex.build import build
from vaex.config.schema import Config
from vaex.errors import Interrupted, UserError
from vaex.evaluation.bound import Share, Totals
from vaex.experiment import Experiment
from vaex.runs.folder import RunFolder
from vaex.training import torchrun
from vaex.training.checkpoint import random_state, restore_random_state

T = TypeVar("T")
Gradients = tuple[Tensor | None, ...]  # of each parameter; None where the loss doesn't depend on it
Metrics = dict[str, Tensor]  # each [], a mean over the images of a batch

ERROR = "vaex/error"  # in torchrun's store: what the first process is to say of another one's end
PATIENCE = timedelta(seconds=10)  # for the first process to tell of an error that all have, before torchrun ends it


class PeerLost(UserError):
    """Another process of the run has ended."""


class Ranks:
    """The processes of a run, of which this is the `rank`-th of `size`. A single one exchanges nothing.

    What exchanges anything, all methods but `where` and `farewell`, is to be called by all processes alike, and raises
    PeerLost when one of them has ended.

    Args:
        store: torchrun's, where a process leaves its last words; None for a single one.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Store | None = None) -> None:
        self.rank, self.size, self.store = rank, size, store
        self.group: dist.ProcessGroup | None = None  # for tensors on the device; None: the one for the host's
        self.poll_every = 1  # steps between looks at whether to stop

    @property
    def first(self) -> bool:
        """Whether this process has the run's folder."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """Of an evaluation."""
        return Share(self.rank, self.size, self._add_up)

    def where(self, device: torch.device) -> str:
        """The device, or of how many processes each has one, in words."""
        return str(device) if self.size == 1 else f"{self.size} processes, each on {device.type}"

    def use(self, device: torch.device) -> None:
        """Exchange what lies on a GPU by NCCL."""
        if self.size > 1 and device.type == "cuda":
            torch.cuda.set_device(device)
            group = dist.new_group(backend="nccl")
            assert isinstance(group, dist.ProcessGroup)
            self.group = group
            self.poll_every = 10  # the host waits for the others then, and the GPU must not run out of steps meanwhile

    def mean(self, gradients: Gradients, metrics: Metrics) -> tuple[Gradients, Metrics]:
        """Of the parts' gradients and metrics, those of the whole batch: each one's mean, in one exchange.

        All are float32, and a gradient that is None is so in every process.
        """
        if self.size == 1:
            return gradients, metrics
        given = [gradient for gradient in gradients if gradient is not None] + list(metrics.values())
        flat = torch.cat([tensor.reshape(-1) for tensor in given])
        with self._all_there():
            dist.all_reduce(flat, group=self.group)
        means = iter(torch.split(flat / self.size, [tensor.numel() for tensor in given]))
        # Where a gradient lies in memory in another order of its dimensions, the fused update takes it to do so.
        of_gradients = tuple(
            None if gradient is None else torch.empty_like(gradient).copy_(next(means).view_as(gradient))
            for gradient in gradients
        )
        return of_gradients, {name: next(means).view_as(metric) for name, metric in metrics.items()}

    def agreed(self, number: int) -> int:
        """The greatest of the processes' numbers: a signal that one of them got, if any did."""
        if self.size == 1:
            return number
        greatest = torch.tensor(number)
        with self._all_there():
            dist.all_reduce(greatest, dist.ReduceOp.MAX)
        return int(greatest)

    def broadcast_from_rank0(self, make: Callable[[], T]) -> T:
        """What the first process makes, which it alone does."""
        if self.size == 1:
            return make()
        made = [make() if self.first else None]
        with self._all_there():
            dist.broadcast_object_list(made, 0)
        return made[0]  # type: ignore[return-value]

    def copy_first(self, tensors: Iterator[Tensor]) -> None:
        """Put the first process's values into each."""
        if self.size > 1:
            for tensor in tensors:
                with self._all_there():
                    dist.broadcast(tensor.detach(), 0, group=self.group)

    @contextmanager
    def one_first(self) -> Iterator[None]:
        """One process of each machine goes through this before the others: what it downloads, they find."""
        ahead = torchrun.rank(on_this_machine=True) == 0
        if not ahead:
            self.agreed(0)
        yield
        if ahead:
            self.agreed(0)

    def farewell(self, error: Exception) -> None:
        """Leave the last words of this process to the first one, and let it go first if it has the same error."""
        if self.first or isinstance(error, PeerLost) or self.store is None:
            return
        with suppress(RuntimeError):
            self.store.set(ERROR, f"process {self.rank}: {error}")
            if isinstance(error, UserError | Interrupted):
                waiting = dist.irecv(torch.zeros(()), 0)  # which nobody sends: it ends with the first process
                assert waiting is not None
                waiting.wait(PATIENCE)

    def _add_up(self, totals: Totals) -> Totals:
        if self.size == 1:
            return totals
        all_totals: list[Totals] = [{} for _ in range(self.size)]
        with self._all_there():
            dist.all_gather_object(all_totals, {name: total.cpu() for name, total in totals.items()})
        names = dict.fromkeys(chain.from_iterable(all_totals))
        return {name: torch.stack([own[name] for own in all_totals if name in own]).sum(0) for name in names}

    @contextmanager
    def _all_there(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # gloo has no kind of its own
            assert self.store is not None
            told = ""
            with suppress(RuntimeError):
                if self.store.check([ERROR]):
                    told = f" ({self.store.get(ERROR).decode()})"
            raise PeerLost(f"another process of this run has ended, or doesn't answer{told}") from error


@contextmanager
def joined(folder: RunFolder) -> Iterator[Ranks]:
    """This process connected with the others of its run; alone without torchrun.

    Raises:
        PeerLost: with how to go on; another process has ended.
    """
    if torchrun.processes() == 1:
        yield Ranks()
        return
    store, rank, size = next(rendezvous("env://"))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    ranks = Ranks(rank, size, store)
    if not ranks.first:
        logging.disable()
    try:
        yield ranks
    except PeerLost as error:
        raise PeerLost(f"{error}; resume={folder.path} goes on from its last checkpoint") from error
    except Exception as error:
        ranks.farewell(error)
        raise
    dist.destroy_process_group()  # after an error some of it may never end


def build_alike(config: Config, ranks: Ranks) -> Experiment:
    """The experiment, the same in all processes: its weights and its random state are the first one's.

    Raises:
        UserError: as build; or its batch can't be shared out, or there is no device for each process.
    """
    if config.batch_size % ranks.size:
        lower = config.batch_size - config.batch_size % ranks.size
        raise UserError(
            f"batch_size={config.batch_size}: is shared by {ranks.size} processes; give a multiple of that, such as "
            f"{lower or ranks.size}"
        )
    with ranks.one_first():
        experiment = build(replace(config, device=_own_device(config.device, ranks)))
    _check_linear(experiment, ranks)
    ranks.use(experiment.device)
    ranks.copy_first(chain(experiment.model.parameters(), experiment.model.buffers(), experiment.objective.buffers()))
    restore_random_state(ranks.broadcast_from_rank0(lambda: random_state(experiment.device)), experiment.device)
    return experiment


def _own_device(device: str, ranks: Ranks) -> str:
    if ranks.size == 1 or device == "cpu" or not torch.cuda.is_available():
        return device
    if device.startswith("cuda:"):
        raise UserError(f"device={device}: each of {ranks.size} processes takes a GPU of its own; give device=cuda")
    wanted, there = torchrun.processes(on_this_machine=True), torch.cuda.device_count()
    if wanted > there:
        raise UserError(
            f"--nproc-per-node={wanted}: there are {there} GPUs, one for each process; give {there}, or device=cpu"
        )
    return f"cuda:{torchrun.rank(on_this_machine=True)}"


def _check_linear(experiment: Experiment, ranks: Ranks) -> None:
    """The loss of a batch must be the mean of those of its parts. Raises UserError where it isn't."""
    if ranks.size == 1:
        return
    scale = getattr(experiment.model.likelihood, "scale", None)
    if getattr(scale, "depends_on_x", False):
        raise UserError(
            "likelihood/scale=optimal…: is computed from the errors of a batch, of which each process has a part; "
            "take likelihood/scale=shared, or a single process"
        )
    if free_bits := getattr(experiment.objective, "free_bits", 0):
        raise UserError(
            f"objective.free_bits={free_bits}: is of the mean rate over a batch, of which each process has a part; "
            "set it to 0, or take a single process"
        )
