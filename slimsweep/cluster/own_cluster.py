"""The start of the cluster that a run has for itself on this machine, while the driver loads torch and checks its input.

Ray's start takes seconds in which its own processes are at work. `cluster.connected` takes the cluster over; where the input is
refused, `end_unused` ends it. Nothing here loads torch.
"""

import importlib
import logging
import os
import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import ray

from slimsweep.cluster.joining import named_cluster
from slimsweep.cluster.tasks import environment, load_for_search, points_are_tasks
from slimsweep.config import Config, ConfigError

SETTINGS = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # no provider takes the node away, so nothing has to watch for that
    # Training has the priority of other programs. Ray would give it so little (nice 15) that beside two busy programs on two
    # CPUs it does not even begin.
    "RAY_worker_niceness": "0",
    "RAY_prestart_worker_first_driver": "0",  # no task or actor of a run would take the processes that Ray starts for any
}
# Where points are tasks, processes that have loaded what tasks need stay for the next ones: for a week, however few CPUs there
# are. With a higher limit of idle processes (RAY_num_workers_soft_limit) they stayed too, but Ray would start a process for
# each task that waits for a CPU.
PROCESSES_STAY = {"RAY_idle_worker_killing_time_threshold_ms": str(7 * 24 * 3600 * 1000)}
# By `ray.init`. It runs in a thread beside the import of torch, and two threads that import modules that need each other can
# fail. Workers, which import this module too, would load them for nothing.
IMPORTED_BY_INIT = "ray.autoscaler.v2.utils", "ray.dashboard.optional_deps"
# Tune logs a traceback for each trial that dies: the point's row, the table at the end and the exit code report it already.
QUIET = {name: logging.ERROR for name in ("ray", "ray.train", "ray.data", "ray._private")} | {"ray.tune": logging.CRITICAL}


class Start:
    """A start of Ray in a thread. As a context manager it keeps settings in the environment; Ray has to be shut down in it.

    The thread waits until then: the system ends Ray's processes with the thread that has started them.
    """

    def __init__(self, configs: Collection[Config], verbose: bool) -> None:
        self.problem: BaseException | None = None  # why it failed
        self.loading: list[Any] = []
        self.tried, self.over = threading.Event(), threading.Event()
        self.settings = ExitStack()
        self.settings.enter_context(in_environment(settings_for(configs)))
        threading.Thread(target=self._run, args=[configs, verbose], daemon=True, name="ray start").start()

    def _run(self, configs: Collection[Config], verbose: bool) -> None:
        try:
            self.loading = start(configs, verbose)
        except BaseException as problem:  # raised by `wait`
            self.problem = problem
        self.tried.set()
        self.over.wait()

    def wait(self) -> list[Any]:
        """When Ray has started, return what loads for the search.

        Raises:
            Exception: what `ray.init` raised.
        """
        self.tried.wait()
        if self.problem is not None:
            raise self.problem
        return self.loading

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.settings.close()


begun: list[Start] = []  # at most one, that nobody has taken over


def start_ahead(configs: Collection[Config], verbose: bool) -> None:
    """Begin to start a cluster on this machine, where a run would not join one, and torch is still to be loaded.

    Args:
        configs: of the models that are to be swept.
        verbose: show Ray's own log.
    """
    try:
        joins = ray.is_initialized() or named_cluster() is not None
    except ConfigError:  # said when it is joined
        return
    if not joins and not begun and "torch" not in sys.modules:
        keep_quiet(verbose)
        for module in IMPORTED_BY_INIT:
            importlib.import_module(module)
        begun.append(Start(configs, verbose))


def starts_ahead() -> bool:
    """Whether a start was begun that nobody has taken over."""
    return bool(begun)


def take_over() -> Start | None:
    """The start that `start_ahead` has begun, for the caller to end; None where there is none."""
    return begun.pop() if begun else None


def end_unused() -> None:
    """End the cluster that `start_ahead` has begun to start, where it was not taken over."""
    if (unused := take_over()) is not None:
        with unused:
            unused.tried.wait()
            ray.shutdown()


def settings_for(configs: Collection[Config]) -> dict[str, str]:
    """Ray's settings, as environment variables, of a cluster that sweeps these models on this machine."""
    return SETTINGS | (PROCESSES_STAY if configs and all(map(points_are_tasks, configs)) else {})


def start(configs: Collection[Config], verbose: bool) -> list[Any]:
    """Start Ray on this machine, with its settings in the environment.

    Returns:
        What loads for the search, as `load_for_search` does.
    """
    # The dashboard's nine processes would take time from a training on a few CPUs. With the tasks' environment for the whole
    # job, Ray writes it in the same way wherever a task is asked for: it compares what is written, not what it means.
    ray.init("local", include_dashboard=False, **environment(), **logging_of(verbose))
    return load_for_search(configs)


def logging_of(verbose: bool) -> dict[str, Any]:
    """The arguments of `ray.init` that say what of Ray's log is shown."""
    return {"log_to_driver": verbose, "logging_level": logging.INFO if verbose else logging.ERROR}


def keep_quiet(verbose: bool) -> None:
    """Unless `verbose`, show only errors of Ray's log."""
    for name, level in {} if verbose else QUIET.items():
        logging.getLogger(name).setLevel(level)


@contextmanager
def in_environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Environment variables while the block runs; those that are set already keep their values."""
    names = [name for name in defaults if name not in os.environ]
    os.environ.update({name: defaults[name] for name in names})
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
