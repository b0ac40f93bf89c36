"""The device that models are timed on: its name, its threads, its clock, and work of a known cost."""

import ctypes
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

REFERENCE_SIZE = {"cpu": 384, "cuda": 2048}  # of the square matrices whose product is the reference: a few milliseconds

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # constants of glibc's malloc.h
KEEP, USUAL = 2**31 - 1, 2**17  # bytes of freed memory that a process keeps: the most that can be set, and without being set

Call = Callable[[], object]


def hardware(device: torch.device) -> str:
    """The name of a device's processor, such as a GPU's or a CPU's model name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def reference(device: torch.device, waits: bool = False) -> Call:
    """A product of two square matrices: work of a known cost (2 n^3 operations), by which a busy machine is seen.

    Args:
        waits: a call returns when a GPU has computed it, and not when it is queued, so that a thread's clock can time it.
    """
    size = REFERENCE_SIZE[device.type]
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(0)).to(device)
    result = torch.empty_like(matrix)

    def product() -> None:
        torch.mm(matrix, matrix, out=result)
        if waits and device.type == "cuda":
            torch.cuda.synchronize(device)

    return product


def seconds_without_pause(call: Call, count: int, device: torch.device) -> float:
    """GPU seconds of `count` calls that are queued without waiting in between."""
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    start.record()
    for _ in range(count):
        call()
    stop.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(stop) / 1e3


@contextmanager
def torch_threads(threads: int | None) -> Iterator[int]:
    """Set the number of torch's CPU threads while the block runs; yields the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def keep_memory() -> None:
    """Let glibc keep freed memory in this process; does nothing with another C library.

    By default each large tensor is a new mapping whose pages the system clears first, which takes 8 % of a training step on
    CPUs (reports/training). What it takes of a model's latency depends on what the process did before, and is more for larger
    models: with 8 images the latency of a cut of DeiT-S, as a share of the dense model's, differs by 3 % between processes, and
    by 0.5 % where they keep memory.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, KEEP)


def give_memory_back() -> None:
    """Return to the system what this thread has freed, and keep none until `keep_memory` is called again; with glibc alone.

    glibc keeps memory that a thread freed for a later thread, which need not be one that computes. So a process that trains
    models one after the other, as Tune does each in a thread of its own, would keep the memory of several.
    """
    libc = _glibc()
    if libc is None:
        return
    libc.malloc_trim(0)
    # That leaves the end of each thread's memory, up to 64 MiB, which only goes when that thread frees a block beside it.
    libc.mallopt(M_TRIM_THRESHOLD, 0)
    libc.free(libc.malloc(2**20))
    libc.mallopt(M_TRIM_THRESHOLD, USUAL)


def _glibc() -> ctypes.CDLL | None:
    """This process's C library; None where it is another than glibc."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        return None
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    return libc


@contextmanager
def room_for_graphs(graphs: int) -> Iterator[None]:
    """Raise torch.compile's limit of graphs for the same code: models share timm's, and beyond the limit torch runs eager."""
    room = 8 * graphs
    limits = {"recompile_limit": room, "accumulated_recompile_limit": 8 * room, "fail_on_recompile_limit_hit": True}
    with torch._dynamo.config.patch(limits):
        yield
