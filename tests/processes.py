"""Processes of a test's own, and what the system says of others: not in conftest.py, whose code the former would run again."""

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any


def in_processes(function: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> None:
    """Call a function in one process for each of these arguments, at the same time; where one fails, the others are ended.

    They are forks of a process that has loaded torch and timm, and has done nothing else.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["timm", "slimsweep.data", "pytest"])
    processes = [context.Process(target=function, args=given, daemon=True) for given in arguments]
    for process in processes:
        process.start()
    left = {process.sentinel: process for process in processes}
    try:
        while left:
            for sentinel in wait(list(left)):
                process = left.pop(sentinel)
                process.join()
                assert process.exitcode == 0
    finally:
        for process in left.values():
            process.terminate()
            process.join()


def parent(pid: int | str) -> int:
    """The process that started another one; 0 where it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[1])


def title(pid: int | str) -> str:
    """What a process calls itself; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode().strip()
    except OSError:
        return ""
