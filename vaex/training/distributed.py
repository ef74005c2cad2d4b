"""One run in several processes, which torchrun starts: each trains on its part of every batch.

All processes hold the same weights and the same random state. In a step each process draws the noise of the whole
batch, and the gradients and logged metrics of the parts are averaged: the run is that of a single process, except that
sums are rounded in another order. Only rank 0 writes to the run folder.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import chain
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from vaex.errors import Interrupted, UserError
from vaex.evaluation.split import Share, Totals
from vaex.training import torchrun

T = TypeVar("T")
Gradients = tuple[Tensor | None, ...]  # of each parameter; None where the loss does not depend on it
Metrics = dict[str, Tensor]  # each [], a mean over the images of a batch

ERROR_KEY = "vaex/error"  # of torchrun's store, for the error of another process, which rank 0 prints
PATIENCE = timedelta(seconds=10)  # rank 0 has this long to print an error of all processes before torchrun kills it


class PeerLost(UserError):
    """Another process of the run has ended."""


class Processes:
    """The processes of a run. A single process exchanges nothing.

    All processes must call every method but `report_error` equally often. Each of these exchanges data and raises
    PeerLost if another process has ended.

    Args:
        rank: number of this process, from 0.
        size: number of processes in this run.
        store: torchrun's key-value store, through which a process reports its error; None for a single process.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Store | None = None) -> None:
        self.rank, self.size, self.store = rank, size, store
        self.group: dist.ProcessGroup | None = None  # for tensors on a GPU; None for the default group, on the host
        self.poll_every = 1  # steps between checks for a request to stop

    @property
    def share(self) -> Share:
        """This process's share of an evaluation."""
        return Share(self.rank, self.size, self._add_up)

    def use(self, device: torch.device) -> None:
        """Exchange tensors on a GPU by NCCL."""
        if self.size > 1 and device.type == "cuda":
            torch.cuda.set_device(device)
            group = dist.new_group(backend="nccl")
            assert isinstance(group, dist.ProcessGroup)
            self.group = group
            self.poll_every = 10  # each check waits for the other processes, and the GPU must not run out of work

    def mean(self, gradients: Gradients, metrics: Metrics) -> tuple[Gradients, Metrics]:
        """The mean of each gradient and metric over the processes, in one exchange.

        All tensors are float32, and a gradient that is None is None in every process.
        """
        if self.size == 1:
            return gradients, metrics
        tensors = [gradient for gradient in gradients if gradient is not None] + list(metrics.values())
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with self._detect_lost_peer():
            dist.all_reduce(flat, group=self.group)
        means = iter(torch.split(flat / self.size, [tensor.numel() for tensor in tensors]))
        # The fused update goes through weight and gradient in the order of memory, so each mean keeps its strides.
        mean_gradients = tuple(
            None if gradient is None else torch.empty_like(gradient).copy_(next(means).view_as(gradient))
            for gradient in gradients
        )
        return mean_gradients, {name: next(means).view_as(metric) for name, metric in metrics.items()}

    def maximum(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if self.size == 1:
            return number
        largest = torch.tensor(number)
        with self._detect_lost_peer():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def broadcast_from_rank0(self, make: Callable[[], T]) -> T:
        """What `make` returns in rank 0, which alone calls it."""
        if self.size == 1:
            return make()
        values = [make() if self.rank == 0 else None]
        with self._detect_lost_peer():
            dist.broadcast_object_list(values, 0)
        return values[0]  # type: ignore[return-value]

    def copy_from_rank0(self, tensors: Iterator[Tensor]) -> None:
        """Copy the values of rank 0 into each tensor."""
        if self.size > 1:
            for tensor in tensors:
                with self._detect_lost_peer():
                    dist.broadcast(tensor.detach(), 0, group=self.group)

    @contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """One process of each machine runs the `with` block before the others, which then use what it downloaded."""
        is_first = torchrun.rank(on_this_machine=True) == 0
        if not is_first:
            self.maximum(0)  # waits for the first process
        yield
        if is_first:
            self.maximum(0)

    def report_error(self, error: BaseException) -> None:
        """Report this process's error to rank 0. If rank 0 may have the same error, wait until it ends."""
        if self.rank == 0 or isinstance(error, PeerLost) or self.store is None:
            return
        with suppress(RuntimeError):
            self.store.set(ERROR_KEY, f"process {self.rank}: {error}")
            if isinstance(error, UserError | Interrupted):
                message = dist.irecv(torch.zeros(()), 0)  # rank 0 never sends one: the wait ends when rank 0 does
                assert message is not None
                message.wait(PATIENCE)

    def _add_up(self, totals: Totals) -> Totals:
        if self.size == 1:
            return totals
        all_totals: list[Totals] = [{} for _ in range(self.size)]
        with self._detect_lost_peer():
            dist.all_gather_object(all_totals, {name: total.cpu() for name, total in totals.items()})
        names = dict.fromkeys(chain.from_iterable(all_totals))
        return {name: torch.stack([part[name] for part in all_totals if name in part]).sum(0) for name in names}

    @contextmanager
    def _detect_lost_peer(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # gloo raises no more specific exception
            assert self.store is not None
            reason = ""
            with suppress(RuntimeError):
                if self.store.check([ERROR_KEY]):
                    reason = f" ({self.store.get(ERROR_KEY).decode()})"
            raise PeerLost(f"another process of this run has ended or does not answer{reason}") from error


@contextmanager
def join_processes() -> Iterator[Processes]:
    """Connect this process to the others of its run. Without torchrun it is the only one."""
    if torchrun.processes() == 1:
        yield Processes()
        return
    store, rank, size = next(rendezvous("env://"))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    processes = Processes(rank, size, store)
    if rank > 0:
        logging.disable()
    try:
        yield processes
    except (Exception, Interrupted) as error:
        processes.report_error(error)
        raise
    dist.destroy_process_group()  # not after an error, since it may then wait forever
