"""What a run is besides its experiment: its settings, its writer, its processes, and the request to stop."""

from dataclasses import dataclass

from vaex.config.schema import FiguresConfig, TrainerConfig
from vaex.training.checkpoint import State
from vaex.training.distributed import Processes
from vaex.training.signals import StopFlag
from vaex.training.writer import Writer


class StopRequested(Exception):
    """A signal asks the run to stop."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"signal {signal_number}")
        self.signal_number = signal_number


@dataclass(frozen=True)
class Settings:
    """The values of the config that the loop uses; conf/train.yaml describes them."""

    batch_size: int
    seed: int
    trainer: TrainerConfig  # with `compile` and `capture` "true" or "false"
    figures: FiguresConfig


@dataclass(frozen=True)
class Run:
    """
    Attributes:
        writer: writes the run folder; a NullWriter in all processes but rank 0.
        processes: the processes that share each batch.
        stop: set by a signal.
        checkpoint: the state to resume from; None to start at step 0.
    """

    writer: Writer
    processes: Processes
    stop: StopFlag
    checkpoint: State | None = None

    def poll(self) -> None:
        """Raise StopRequested, in every process, if any process received a signal."""
        if number := self.processes.maximum(self.stop.number):
            raise StopRequested(number)
