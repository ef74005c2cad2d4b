"""Read the environment that torchrun gives a process, and adapt its command line. Imports no torch."""

import os
import re

from vaex.errors import UserError

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
RANK_0_ONLY = re.compile(r"resume=|[+~]*hydra\.(run\.dir|output_subdir)=|[+~]*hydra/job_logging=")


def processes(on_this_machine: bool = False) -> int:
    """Number of processes in this run; 1 without torchrun."""
    if not all(name in os.environ for name in VARIABLES):
        return 1
    return int(os.environ["LOCAL_WORLD_SIZE" if on_this_machine else "WORLD_SIZE"])


def rank(on_this_machine: bool = False) -> int:
    """Number of this process, from 0."""
    return int(os.environ["LOCAL_RANK" if on_this_machine else "RANK"]) if processes() > 1 else 0


def process_arguments(arguments: list[str]) -> list[str]:
    """The command line for this process: only rank 0 has a run folder and a log, and reads the run that it resumes.

    Raises:
        UserError: the command is a sweep, each of whose runs would need these processes.
    """
    if processes() == 1:
        return arguments
    for argument in arguments:
        multirun = argument in ("-m", "--multirun") or argument.startswith("sweep=")
        if multirun or re.match(r"[+~]*hydra(/(launcher|sweeper)\b|\.mode=)", argument):
            raise UserError(f"{argument}: torchrun starts one run; leave it out, or start the sweep without torchrun")
    if rank() == 0:
        return arguments
    others = [argument for argument in arguments if not RANK_0_ONLY.match(argument)]
    return [*others, "hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none"]
