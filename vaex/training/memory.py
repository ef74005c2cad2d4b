"""The process's memory, for a step that asks for the same tensors again and again."""

import ctypes
import platform

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt(3)


def keep_freed_memory() -> bool:
    """Let malloc keep what is freed, rather than give it back to the system; returns whether it could be asked to.

    By default glibc gives large blocks back and gets them anew, page after page, in every step: a fifth of the time of
    a convolutional network on a CPU.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, 2**30)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def ran_out(error: BaseException) -> bool:
    """Whether memory, the device's or the machine's, was too small for what was asked of it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
