"""Processes of a test's own: not in conftest.py, whose code they would run again."""

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from typing import Any


def in_processes(function: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> None:
    """Call a function in one process for each of these arguments, at the same time; where one fails, the others are ended.

    They are forks of a process that has loaded torch and timm, and has done nothing else.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["timm", "slimsweep.data", "pytest"])
    processes = [context.Process(target=function, args=given, daemon=True) for given in arguments]
    left = {process.sentinel: process for process in map(started, processes)}
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


def started(process: Any) -> Any:
    """A process that was started."""
    process.start()
    return process
