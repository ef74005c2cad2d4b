"""What torchrun tells a process in its environment, and what follows for its command line. Imports no torch."""

import os
import re

from vaex.errors import UserError

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def processes(on_this_machine: bool = False) -> int:
    """Of the run; 1 without torchrun."""
    if not all(name in os.environ for name in VARIABLES):
        return 1
    return int(os.environ["LOCAL_WORLD_SIZE" if on_this_machine else "WORLD_SIZE"])


def rank(on_this_machine: bool = False) -> int:
    """Of this process, from 0."""
    if processes() == 1:
        return 0
    return int(os.environ["LOCAL_RANK" if on_this_machine else "RANK"])


def arguments_here(arguments: list[str]) -> list[str]:
    """The command line of this process: only the first has a folder and a log, or looks at the run it goes on with.

    Raises:
        UserError: a sweep, whose runs would each want the same processes.
    """
    if processes() == 1:
        return arguments
    for argument in arguments:
        many = argument in ("-m", "--multirun") or argument.startswith("sweep=")
        if many or re.match(r"[+~]*hydra(/(launcher|sweeper)\b|\.mode=)", argument):
            raise UserError(f"{argument}: torchrun starts one run; leave it out, or start the sweep without torchrun")
    if rank() == 0:
        return arguments
    of_the_first = re.compile(r"resume=|[+~]*hydra\.(run\.dir|output_subdir)=|[+~]*hydra/job_logging=")
    rest = [argument for argument in arguments if not of_the_first.match(argument)]
    return [*rest, "hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none"]
