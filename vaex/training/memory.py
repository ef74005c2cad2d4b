"""The memory of the process: keep what a step frees for the next one, and recognize errors for lack of memory."""

import ctypes
import platform

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt(3)


def keep_freed_memory() -> None:
    """Make glibc's malloc keep freed memory for the next step.

    By default glibc returns large blocks to the system and requests them again, page by page, in every step. That takes
    a fifth of the time of a convolutional network on a CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def ran_out(error: BaseException) -> bool:
    """Whether the error means that the device or the machine has too little memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
