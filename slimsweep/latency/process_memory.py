"""Memory that this process has freed: kept for what comes next, or given back. A copy of this lies beside exported models."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # constants of glibc's malloc.h
KEEP = 2**31 - 1  # bytes of freed memory that a process keeps: the most that can be set


def keep_memory() -> None:
    """Let glibc keep freed memory in this process; does nothing with another C library.

    By default each large tensor is a new mapping whose pages the system clears first, which takes 8 % of a training step on
    CPUs (reports/training). What it takes of a model's latency depends on what the process did before, and is more for larger
    models: with 8 images the latency of a cut of DeiT-S, as a share of the dense model's, differs by 3 % between processes, and
    by 0.5 % where they keep memory. In onnxruntime, some processes take a tenth to a quarter longer for the same cut where they
    do not. To be called before models are loaded.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, KEEP)


def give_memory_back() -> None:
    """Return what this thread has freed to the system, after `keep_memory`; does nothing with another C library than glibc.

    glibc keeps memory that a thread freed for a later thread, which need not be one that computes. So a process that trains
    models one after the other, each in a thread of its own, would keep the memory of several.
    """
    libc = _glibc()
    if libc is None:
        return
    libc.malloc_trim(0)
    # It leaves the end of each thread's memory, up to 64 MiB, which only goes when that thread frees a block beside it.
    libc.mallopt(M_TRIM_THRESHOLD, 0)
    libc.free(libc.malloc(2**20))
    libc.mallopt(M_TRIM_THRESHOLD, KEEP)


def _glibc() -> ctypes.CDLL | None:
    """This process's C library; None where it is another than glibc."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        return None
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    return libc
