"""Work that Ray does as plain tasks. A task's process stays and keeps what it has loaded for the next task, unlike an actor's.

Loading torch, timm and slimsweep takes a process some seconds, which a short training notices. So the tries of paces and, on
CPUs, the points of a sweep are tasks, and the processes for them load while the search still trains.

Nothing here loads torch: a trial of Tune imports this module.
"""

import importlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import cloudpickle
from ray.tune.execution import class_cache

from slimsweep.config import Config

Resources = Mapping[str, float]

LOADED = "slimsweep.cluster.choose_job", "slimsweep.cluster.retrain_job"  # what the tasks of a run need
LOOK_SECONDS = 0.5
LOAD_SECONDS = 30.0  # for which a search that has ended waits for processes that load


@dataclass
class Held:
    """The room that a run has and asks for: per placement group or plain task, the resources of its parts, each on one node."""

    waiting: list[list[Resources]] = field(default_factory=list)
    placed: list[list[Resources]] = field(default_factory=list)


plain = Held()  # of the plain tasks that this process waits for


def run_tasks(
    function: Callable[[Any], Any],
    arguments: Sequence[Any],
    resources: Resources,
    max_failures: int = 0,
    ended: Callable[[Any], None] = lambda answer: None,
) -> list[Any]:
    """Call a function once per argument, each call as a Ray task.

    Args:
        function: what each task calls.
        arguments: of the calls.
        resources: of each task, in Ray's names (CPU, GPU).
        max_failures: how often each task is started again where its process or node died. Ray itself would start a task again
            without an end where its node is out of memory.
        ended: is told what each call returned, when it has.

    Returns:
        What the calls returned, in the order of their arguments.

    Raises:
        ray.exceptions.RayError: a call raised, or its process or node died more often than max_failures.
    """
    packed, work = cloudpickle.dumps(function), as_task(call, resources, **environment())
    answers: list[Any] = [None] * len(arguments)  # of each call, what it returned or its error
    failures = [0] * len(arguments)
    begun: set[int] = set()
    try:
        left: dict[Any, int] = {work.remote(packed, argument): index for index, argument in enumerate(arguments)}
        while left:
            plain.waiting = [[resources] for index in left.values() if index not in begun]
            plain.placed = [[resources] for index in left.values() if index in begun]
            ready: list[Any] = ray.wait(list(left), num_returns=1)[0]
            for task in ready:
                index = left[task]
                answers[index] = next(task)  # that it has begun, what it returned, or its error
                problem = error_of(answers[index])
                if problem is None and index not in begun:
                    begun.add(index)
                    continue
                del left[task]
                if problem is None:
                    ended(ray.get(answers[index]))
                elif not isinstance(problem, ray.exceptions.RayTaskError):  # it raised nothing: it died
                    failures[index] += 1
                    if failures[index] <= max_failures:
                        begun.discard(index)
                        left[work.remote(packed, arguments[index])] = index
        return ray.get(answers)
    finally:
        plain.waiting, plain.placed = [], []


def call(packed: bytes, argument: Any) -> Iterator[Any]:
    """The task of `run_tasks`."""
    yield "begun"  # before the modules of the function are imported, which takes seconds
    yield cloudpickle.loads(packed)(argument)


def error_of(answer: Any) -> Exception | None:
    """Why a task has no answer; None where it has one."""
    try:
        ray.get(answer)
    except ray.exceptions.RayError as problem:
        return problem
    return None


def as_task(function: Callable[..., Any], resources: Resources, **options: Any) -> Any:
    """A function as Ray's task, which is never started again by Ray.

    Args:
        options: further ones of `ray.remote`.
    """
    options |= {"num_cpus": resources.get("CPU", 0), "num_gpus": resources.get("GPU", 0), "max_retries": 0}
    return ray.remote(**options)(function)


def environment() -> dict[str, Any]:
    """The option of the driver's tasks by which they share processes with the tasks that trials start.

    Ray gives a task a process of its own environment only. Tasks of a trial have the trial's, for which Tune sets variables.
    """
    set_here = {name: os.environ[name] for name in class_cache.ENV_VARS_TO_PROPAGATE if name in os.environ}
    return {"runtime_env": {"env_vars": class_cache.DEFAULT_ENV_VARS | set_here}}


def points_are_tasks(config: Config) -> bool:
    """Whether the points of a sweep are tasks below their trials.

    On a GPU they are not: Ray ends a task's process there, which would still hold the GPU, and so each would load everything
    again. Nor where rates are stopped: only a trial's own process can tell Tune its epochs. A point with several workers is a
    job of Ray Train.
    """
    retrain = config.retrain
    return not config.resources.gpus_per_worker and retrain.workers_per_trial == 1 and retrain.stopping is None


def trial_as_task(parameters: Any, packed: bytes, arguments: Any, resources: Resources) -> Any:
    """What Tune runs for a point on CPUs: the work is a task in the trial's place, and the trial waits for it.

    Args:
        parameters: of the trial.
        packed: the pickled function of the work, which is given `parameters` and `arguments`.
        resources: that the trial holds for the task.
    """
    return ray.get(as_task(unpacked, resources).remote(packed, parameters, arguments))


def unpacked(packed: bytes, *arguments: Any) -> Any:
    """The task of `trial_as_task`."""
    return cloudpickle.loads(packed)(*arguments)


@contextmanager
def loading_ahead(processes: int, at_once: int, resources: Resources, may_begin: Callable[[], bool]) -> Iterator[None]:
    """While the block runs, let processes load what tasks need.

    Args:
        processes: how many tasks there will be at the same time.
        at_once: how many of the processes may load at the same time; 0 to load nothing.
        resources: of each task, in Ray's names.
        may_begin: whether there is room for them by now; asked until it is so.
    """
    at_once = min(at_once, processes)
    if not at_once:
        yield
        return
    ended = threading.Event()
    loading: list[Any] = []

    def begin() -> None:
        while not may_begin():
            if ended.wait(LOOK_SECONDS):
                return
        work = as_task(load, resources, **environment())
        # One after another where there are more processes than room: one that waits for another holds no CPU.
        shares = [len(range(first, processes, at_once)) for first in range(at_once)]
        loading.extend(work.remote(share, resources) for share in shares)

    thread = threading.Thread(target=begin, daemon=True, name="load")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if loading:
        ray.wait(loading, num_returns=len(loading), timeout=LOAD_SECONDS)


def load(processes: int, resources: Resources) -> None:
    """Load what tasks need in this process, and then in `processes` - 1 others, which are others as this one waits for them."""
    for module in LOADED:
        importlib.import_module(module)
    if processes > 1:
        ray.get(as_task(load, resources).remote(processes - 1, resources))
