"""Work that Ray does as plain tasks. A task's process stays and keeps what it has loaded for the next task, unlike an actor's.

Loading torch, timm and slimsweep takes a process some seconds, which a short training notices. So the tries of paces and, on
CPUs, the points of a sweep are tasks, and the processes for them load while the search still trains. Where points are tasks and
one worker searches, the search is a task too: on a cluster of the run's own its process loads while the driver does.

Nothing here loads torch: a trial of Tune imports this module.
"""

import importlib
import logging
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import cloudpickle
from ray.tune.execution import class_cache
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from slimsweep.config import Config
from slimsweep.imports import load_timm

log = logging.getLogger(__name__)

Resources = Mapping[str, float]

LOADED = "slimsweep.cluster.choose_job", "slimsweep.cluster.retrain_job"  # what the tasks of a run need
LOOK_SECONDS, LONGEST_PAUSE = 0.5, 30.0  # between two looks whether there is room to load
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
    loaded = loading_first(function)

    def call(argument: Any) -> Iterator[Any]:  # in here, so that Ray sends it whole, and imports nothing before it begins
        yield "begun"
        yield loaded(argument)

    work = as_task(call, resources, name=function.__name__, **environment())
    answers: list[Any] = [None] * len(arguments)  # of each call, what it returned or its error
    failures = [0] * len(arguments)
    begun: set[int] = set()
    try:
        left: dict[Any, int] = {work.remote(argument): index for index, argument in enumerate(arguments)}
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
                        left[work.remote(arguments[index])] = index
        return ray.get(answers)
    finally:
        plain.waiting, plain.placed = [], []


def error_of(answer: Any) -> Exception | None:
    """Why a task has no answer; None where it has one."""
    try:
        ray.get(answer)
    except ray.exceptions.RayError as problem:
        return problem
    return None


def loading_first(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function for Ray, which sends it whole: the process loads torch and timm first, and then the function's own module."""
    packed = cloudpickle.dumps(function)

    def call(*arguments: Any) -> Any:
        load_timm()
        return cloudpickle.loads(packed)(*arguments)

    return call


def as_task(function: Callable[..., Any], resources: Resources, **options: Any) -> Any:
    """A function as Ray's task, which is never started again by Ray.

    Args:
        options: further ones of `ray.remote`.
    """
    options |= {"num_cpus": resources.get("CPU", 0), "num_gpus": resources.get("GPU", 0), "max_retries": 0}
    return ray.remote(**options)(function)


def environment() -> dict[str, Any]:
    """The option with which the driver's tasks run in the same processes as the tasks below trials.

    Ray lets tasks share a process only where their environments are the same. Tune sets variables for its trials, and the tasks
    below a trial have them too.
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


def trial_as_task(parameters: Any, work: Callable[..., Any], arguments: Any, resources: Resources) -> Any:
    """What Tune runs for a point on CPUs: the work is a task in the trial's place, and the trial waits for it.

    Args:
        parameters: of the trial.
        work: as `loading_first` returns it; is given `parameters` and `arguments`.
        resources: that the trial holds for the task.
    """
    return ray.get(as_task(work, resources, name="trial").remote(parameters, arguments))


def search_is_task(config: Config) -> bool:
    """Whether the search is a task below its worker: where points are tasks, and one worker searches."""
    return config.resources.search_workers == 1 and points_are_tasks(config)


def in_workers_place(function: Callable[..., Any], loading: Sequence[Any]) -> Callable[..., Any]:
    """A function for a worker of Ray Train: a task on its node does the work, while the worker keeps its CPUs for it and waits.

    Args:
        function: the work.
        loading: what loads in a process for it, as `load_for_search` returns it.
    """
    task = as_task(loading_first(function), {}, name=function.__name__, **environment())

    def call(*arguments: Any) -> Any:  # in here, so that Ray sends it whole
        ray.wait(list(loading), num_returns=len(loading))
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        return ray.get(task.options(scheduling_strategy=here).remote(*arguments))

    return call


def load_for_search(configs: Collection[Config]) -> list[Any]:
    """Let a process load what the search needs, where the search of each of these models is a task; returns what loads."""
    if not configs or not all(map(search_is_task, configs)):
        return []
    return [as_task(load, {}, **environment()).remote(1, {})]


@contextmanager
def loading_ahead(processes: int, at_once: int, resources: Resources, may_begin: Callable[[], bool]) -> Iterator[list[Any]]:
    """While the block runs, let processes load what tasks need.

    Args:
        processes: how many tasks there will be at the same time.
        at_once: how many of the processes may load at the same time; 0 to load nothing.
        resources: of each task, in Ray's names.
        may_begin: whether there is room for them by now; asked less and less often until it is so.

    Yields:
        For `wait_for_loads` after the block, what loads then.
    """
    ended, shares = threading.Event(), min(at_once, processes)
    loading: list[Any] = []

    def begin() -> None:
        pause = LOOK_SECONDS
        while not may_begin():
            if ended.wait(pause):
                return
            pause = min(1.5 * pause, LONGEST_PAUSE)
        try:
            work = as_task(load, resources, **environment())
            # One after another where there are more processes than room: one that waits for another holds no CPU.
            sizes = [len(range(first, processes, shares)) for first in range(shares)]
            loading.extend(work.remote(size, resources) for size in sizes)
        except Exception as problem:  # a cluster that is gone ends the run elsewhere, with its reason
            log.debug("processes do not load ahead (%s)", problem)

    thread = threading.Thread(target=begin, daemon=True, name="load")
    if shares:
        thread.start()
    try:
        yield loading
    finally:
        ended.set()
        if shares:
            thread.join()


def wait_for_loads(loading: Sequence[Any]) -> None:
    """Wait until processes have loaded what the next tasks need: these would only begin to load the same.

    Those that take too long are ended, so that they hold no CPU.
    """
    late = ray.wait(list(loading), num_returns=len(loading), timeout=LOAD_SECONDS)[1] if loading else []
    for task in late:
        ray.cancel(task, force=True, recursive=True)


def load(processes: int, resources: Resources) -> None:
    """Load what tasks need in this process, and then in `processes` - 1 others.

    A process that waits for a task takes no other one, so that each of these tasks within tasks gets a process of its own.
    """
    load_timm()
    for module in LOADED:
        importlib.import_module(module)
    if processes > 1:
        ray.get(as_task(load, resources).remote(processes - 1, resources))
