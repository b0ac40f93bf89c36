"""The device that models are timed on: its name, its threads, its clock, and work of a known cost."""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

REFERENCE_SIZE = {"cpu": 384, "cuda": 2048}  # of the square matrices whose product is the reference: a few milliseconds

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


def reference(device: torch.device) -> Call:
    """A product of two square matrices: work of a known cost (2 n^3 operations), by which a busy machine is seen."""
    size = REFERENCE_SIZE[device.type]
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(0)).to(device)
    result = torch.empty_like(matrix)
    return lambda: torch.mm(matrix, matrix, out=result)


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


@contextmanager
def room_for_graphs(graphs: int) -> Iterator[None]:
    """Raise torch.compile's limit of graphs for the same code: models share timm's, and beyond the limit torch runs eager."""
    room = 8 * graphs
    limits = {"recompile_limit": room, "accumulated_recompile_limit": 8 * room, "fail_on_recompile_limit_hit": True}
    with torch._dynamo.config.patch(limits):
        yield
