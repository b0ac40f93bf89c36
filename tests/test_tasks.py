"""Tasks of Ray: their processes stay, are shared by paces and points, and load ahead."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import ray
from processes import parent
from ray import cloudpickle, tune

from slimsweep.cluster import tasks
from slimsweep.cluster.failures import explained
from slimsweep.cluster.search_job import data_parallel, search_alone, search_worker
from slimsweep.cluster.tasks import (
    as_task,
    environment,
    in_workers_place,
    load_for_search,
    loading_ahead,
    loading_first,
    run_tasks,
    trial_as_task,
    wait_for_loads,
)
from slimsweep.config import load_config
from slimsweep.errors import OutOfTime, TrainingDiverged
from slimsweep.ledger.run import Run

CPU = {"CPU": 1.0}


@pytest.fixture(autouse=True)
def _workers_cannot_import_tests() -> Iterator[None]:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def meet(folder: Path) -> tuple[int, bool]:
    """This process, and whether it had loaded what tasks need, when a second task has met it: two need two processes."""
    known = all(name in sys.modules for name in tasks.LOADED)
    (folder / f"{os.getpid()}.here").touch()
    end = time.monotonic() + 60
    while len(list(folder.glob("*.here"))) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    return os.getpid(), known


def titles() -> Iterator[str]:
    """What the processes of this machine are called."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            yield file.read_text()


def children_of(pid: int) -> set[int]:
    """The processes that another has started and that are still there."""
    return {int(place.name) for place in Path("/proc").glob("[0-9]*") if parent(place.name) == pid}


def trial(parameters: dict, arguments: dict) -> dict[str, int]:
    """The work of a trial."""
    if parameters["number"] == arguments["dies"]:
        os._exit(1)
    return {"process": os.getpid(), "number": parameters["number"]}


def fit(folder: Path, work: Callable, dies: int | None = None) -> tune.ResultGrid:
    """A sweep of four trials that work as tasks, two at a time."""
    work = tune.with_parameters(trial_as_task, work=work, arguments={"dies": dies}, resources=CPU)
    return tune.Tuner(
        tune.with_resources(work, tune.PlacementGroupFactory([{}, CPU])),
        param_space={"number": tune.grid_search([0, 1, 2, 3])},
        tune_config=tune.TuneConfig(max_concurrent_trials=2, reuse_actors=True),
        run_config=tune.RunConfig(storage_path=str(folder), verbose=0, callbacks=[]),
    ).fit()


def test_trials_work_in_the_processes_in_which_other_tasks_have_run(ray_cluster: None, tmp_path: Path) -> None:
    before = {pid for pid, _ in run_tasks(meet, [tmp_path, tmp_path], CPU)}
    assert len(before) == 2
    results = [one.metrics or {} for one in fit(tmp_path, loading_first(trial))]
    assert [one["number"] for one in results] == [0, 1, 2, 3]
    assert {one["process"] for one in results} <= before


def test_tasks_that_wait_for_a_cpu_start_no_processes(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", tmp_path.name)  # an environment that no process has yet
    work = as_task(meet, CPU, **environment())
    at_work = {pid for pid, _ in ray.get([work.remote(tmp_path) for _ in range(2)])}
    raylet = parent(at_work.pop())
    before = children_of(raylet)
    assert at_work <= before
    work = as_task(lambda: time.sleep(0.5), CPU, **environment())
    ray.get([work.remote() for _ in range(8)])  # Ray would start processes within some hundredths of a second
    assert children_of(raylet) <= before


def test_a_task_that_dies_fails_its_trial_and_no_other(ray_cluster: None, tmp_path: Path) -> None:
    found = fit(tmp_path, trial, dies=2)
    results = [found[index] for index in range(len(found))]
    assert [one.error is None for one in results] == [True, True, False, True]
    assert "worker died" in str(results[2].error)


def test_processes_load_ahead_when_they_may_and_each_is_another(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", tmp_path.name)  # an environment in which no process has loaded anything
    asked: list[bool] = []

    def may_begin() -> bool:
        asked.append(len(asked) >= 2)
        return asked[-1]

    with loading_ahead(2, 1, CPU, may_begin) as loading:
        while not any(asked):
            time.sleep(0.05)
    assert asked == [False, False, True]
    wait_for_loads(loading)
    found = run_tasks(meet, [tmp_path, tmp_path], CPU)
    assert len({pid for pid, _ in found}) == 2
    assert all(known for _, known in found)


@pytest.mark.parametrize(("at_once", "may_begin"), [(0, lambda: True), (1, lambda: False)])
def test_nothing_is_loaded_without_room(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch, at_once: int, may_begin: Callable[[], bool]
) -> None:
    tried: list[object] = []
    monkeypatch.setattr(tasks, "as_task", lambda *given, **_: tried.append(given))

    def search_that_fails() -> None:
        with loading_ahead(2, at_once, CPU, may_begin):
            time.sleep(2 * tasks.LOOK_SECONDS)
            raise OutOfTime

    with pytest.raises(OutOfTime):
        search_that_fails()
    assert not tried
    assert not [thread for thread in threading.enumerate() if thread.name == "load"]


def test_processes_that_load_too_long_are_ended_and_hold_no_cpu(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "LOAD_SECONDS", 1.0)

    def forever(path: Path) -> None:
        path.write_text(str(os.getpid()))
        time.sleep(600)

    slow = as_task(forever, CPU, **environment()).remote(tmp_path / "pid")
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.05)
    wait_for_loads([slow])
    with pytest.raises(ray.exceptions.RayError):
        ray.get(slow, timeout=60)
    assert run_tasks(lambda _: 1, [None, None], {"CPU": 2.0}) == [1, 1]  # which needs its CPU


def test_tasks_below_tasks_share_their_environment(ray_cluster: None) -> None:
    def below() -> str:
        return str(ray.get_runtime_context().get_runtime_env_string())

    def above() -> tuple[str, str]:
        return below(), ray.get(as_task(below, CPU).remote())

    assert len(set(ray.get(as_task(above, CPU, **environment()).remote()))) == 1


def test_a_search_is_a_task_that_waits_for_its_process_and_shares_it_with_other_tasks(
    ray_cluster: None, tmp_path: Path
) -> None:
    def load() -> None:
        end = time.monotonic() + 60
        while not any("RayTrainWorker" in title for title in titles()):
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(1)  # in which a search that did not wait would begin
        (tmp_path / "loaded").touch()

    def about_process(_: object = None) -> dict[str, object]:
        context = ray.get_runtime_context()
        return {
            "environment": context.get_runtime_env_string(),
            "pid": os.getpid(),
            "loaded": (tmp_path / "loaded").exists(),
            "parent": context.get_actor_id(),  # None in a task
        }

    def search(arguments: dict) -> None:
        (tmp_path / "search.json").write_text(json.dumps(about_process()))

    run = Run(tmp_path / "run", load_config([])[0])
    loading = [as_task(load, {}, **environment()).remote()]
    data_parallel(in_workers_place(search, loading), {}, run, name="search", workers=1).fit()
    searched = json.loads((tmp_path / "search.json").read_text())
    assert searched["loaded"]
    assert searched["parent"] is None
    (other,) = run_tasks(about_process, [None], CPU)
    assert other["environment"] == searched["environment"]


@pytest.mark.slow
def test_an_error_of_a_search_as_a_task_keeps_its_sentence(ray_cluster: None, tmp_path: Path) -> None:
    def search(arguments: dict) -> None:
        raise TrainingDiverged("the loss of search is not finite")

    run = Run(tmp_path / "run", load_config(["--resources.max_failures", "0"])[0])
    with pytest.raises(ray.train.TrainingFailedError) as raised:
        data_parallel(in_workers_place(search, []), {}, run, name="search", workers=1).fit()
    assert explained(raised.value, "search", None) == "the loss of search is not finite"


@pytest.mark.parametrize(
    ("words", "is_task"),
    [
        ([], True),
        (["--resources.search_workers", "2"], False),
        (["--resources.gpus_per_worker", "1"], False),
        (["--retrain.workers_per_trial", "2"], False),
    ],
)
def test_a_process_loads_for_a_search_that_is_a_task(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch, words: list[str], is_task: bool
) -> None:
    given: list[dict] = []

    def as_task_that_ends_at_once(function: Callable, resources: dict, **options: object) -> object:
        given.append(resources)
        return as_task(lambda *_: None, resources, **options)

    monkeypatch.setattr(tasks, "as_task", as_task_that_ends_at_once)
    ordinary, asked = load_config([])[0], load_config(words)[0]
    assert len(load_for_search([asked])) == is_task
    assert len(load_for_search([ordinary, asked])) == is_task
    assert given == [{}] * 2 * is_task  # beside the search's worker, which holds the CPU
    assert load_for_search([]) == []


def test_workers_have_the_priority_of_the_program_that_started_them(ray_cluster: None) -> None:
    def priority(_: None) -> int:
        return os.nice(0)

    assert run_tasks(priority, [None], CPU) == [os.nice(0)]


def test_only_the_workers_of_a_process_group_make_rays_controller_load_torch(tmp_path: Path) -> None:
    """The controller starts before the workers, so they would wait for it."""
    run = Run(tmp_path, load_config([])[0])
    code = """
import sys
from ray import cloudpickle
for name in sys.argv[1:]:
    with open(name, "rb") as file:
        cloudpickle.load(file)
    print("torch" in sys.modules)
"""
    given = []
    for work, workers in (
        (in_workers_place(search_alone, []), 1),
        (loading_first(search_worker), 1),
        (loading_first(search_worker), 2),
    ):
        trainer = data_parallel(work, {}, run, name="search", workers=workers)
        given.append(tmp_path / str(len(given)))
        given[-1].write_bytes(cloudpickle.dumps((trainer.train_run_context, trainer._create_default_callbacks())))
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["False", "False", "True"]
