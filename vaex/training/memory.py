"""The memory of the process: keep what a step frees for the next one, and recognize errors for lack of memory."""

import ctypes
import platform

import torch


def keep_freed_memory() -> None:
    """Make glibc's malloc keep freed memory for the next step.

    By default glibc returns large blocks to the system and requests them again, page by page, in every step. That takes
    a fifth of the time of a convolutional network on a CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def ran_out(error: BaseException) -> bool:
    """Whether the error means that the device or the machine has too little memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
