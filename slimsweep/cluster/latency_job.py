"""What a worker times while nothing else of the run is at work: removal paths, budgets in ms, and the structures of points.

Each is one task, which has the resources of a training worker, and the driver starts nothing beside it. What was timed is in
the run's folder, so that a later start does not time it again.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ray
from torch import nn

from slimsweep import methods
from slimsweep.cluster.cluster import Cluster
from slimsweep.cluster.failures import explained
from slimsweep.cluster.tasks import run_tasks
from slimsweep.cluster.worker import attention_as_loaded, job_arguments, run_of, worker_resources
from slimsweep.config import Config, ConfigError
from slimsweep.errors import StageFailed
from slimsweep.latency.calls import DeviceTimer, check_device
from slimsweep.latency.curve import (
    DENSE,
    PREFIXES,
    PREFIXES_OF_A_TRY,
    LatencyCurve,
    Solved,
    TimedStructure,
    branch_cost,
    curve_of_times,
    measure_curve,
    solve_ms,
    solved_by_curve,
    time_structures,
)
from slimsweep.latency.from_table import TableOfTimes
from slimsweep.ledger.checkpoints import Checkpoints
from slimsweep.ledger.cuts import table_of
from slimsweep.ledger.planning import distinct_paces, is_timed, to_time
from slimsweep.ledger.points import Point, is_in_ms
from slimsweep.ledger.run import Run
from slimsweep.saved_models import load
from slimsweep.slimming.budget import Budget
from slimsweep.slimming.removal_path import RemovalPath
from slimsweep.slimming.structure import Structure

POINTS_AT_ONCE = 20  # that are timed in the same rounds, of those that are done
CLEARLY = 1.05  # a budget is compared at where it is so far above the path's end

Pace = Mapping[str, float]


def timing_resources(config: Config) -> dict[str, float]:
    """The resources of the task that times, in Ray's names: of a training worker, with the CPUs of its threads."""
    resources, setting = worker_resources(config), config.latency_setting
    if setting.device == "cpu" and setting.threads is not None:
        resources["CPU"] = max(resources["CPU"], float(setting.threads))
    return resources


def check_room(config: Config, cluster: Cluster) -> None:
    """Refuse more threads than any node has: Ray would wait for room forever.

    Raises:
        ConfigError: names the field, and the most that a node has.
    """
    most = max((node.get("CPU", 0.0) for node in cluster.nodes), default=0.0)
    grows = config.resources.max_workers is not None  # then a larger node may come
    if config.times_models and timing_resources(config)["CPU"] > most and not grows:
        threads = config.latency_setting.threads
        raise ConfigError(f"latency.threads is {threads}, but no node has more than {most:g} CPUs: take at most that many")


def check_worker(run: Run, cluster: Cluster) -> None:
    """Refuse a setting that a worker of a joined cluster cannot time, before anything is trained for it.

    On a cluster of the run's own `checks.check` has looked at the same machine.

    Raises:
        StageFailed: as for `run_alone`; says what is not there.
    """
    if run.config.times_models and not cluster.is_own:
        run_alone(run, look_at_device)


def look_at_device(arguments: dict[str, Any]) -> None:
    """The task of `check_worker`."""
    check_device(run_of(arguments).config.latency_setting)


def run_alone(run: Run, function: Callable[[Any], Any], **more: Any) -> Any:
    """Call a function as one task, beside which nothing of the run is at work, and return its answer.

    Raises:
        StageFailed: it raised, or its process died too often.
    """
    try:
        (answer,) = run_tasks(
            function, [job_arguments(run, **more)], timing_resources(run.config), run.config.resources.max_failures
        )
    except ray.exceptions.RayError as problem:
        raise StageFailed(f"models could not be timed: {explained(problem, None, run.logs.add_error)}") from problem
    return answer


# The paces of the families, compared at equal latency.


def paces_in_ms(run: Run) -> list[dict[str, float]]:
    """The paces that are compared at equal latency: those of search.paces, with a table those that it has times of."""
    paces = distinct_paces(run.config, run.shape.gate_shapes)
    table = table_of(run.config)
    return paces if table is None else [pace for pace in paces if is_timed(run, pace, table)]


def time_paces(run: Run) -> bool:
    """Find what a budget in ms leaves at each pace, unless the folder has it already: the smallest that can be reached.

    Returns:
        Whether there is one: where no budget in ms can be reached at any pace, there is nothing to compare.

    Raises:
        StageFailed: as for `run_alone`.
    """
    table = table_of(run.config)
    if table is None:
        run_alone(run, cuts_of_paces)
    else:
        paces = paces_in_ms(run)
        paths = [run.path_at(pace, run.latency.depth) for pace in paces]
        curves = [curve_of_times(path, table.ms, table.where, busy=table.busy) for path in paths]
        budget = budget_of_tries(run.config, curves)
        for pace, path, curve in zip(paces, paths, curves, strict=True):
            run.latency.write_solved(pace, {str(budget): solved_by_curve(path, curve, [budget])[0]}, trying=True)
    return any(cut_of_try(run, pace)[1].length is not None for pace in paces_in_ms(run))


def cuts_of_paces(arguments: dict[str, Any]) -> None:
    """The task of `time_paces`: a coarse curve per pace, on which one budget is looked for."""
    run = run_of(arguments)
    paces = paces_in_ms(run)
    if all(run.latency.solved(pace, trying=True) for pace in paces):
        return
    timer = timer_of(run)
    measure_branches(run, timer)
    paths = [run.path_at(pace, run.latency.depth) for pace in paces]
    curves = [measure_curve(path, timer, PREFIXES_OF_A_TRY) for path in paths]
    budget = budget_of_tries(run.config, curves)
    for pace, path, curve in zip(paces, paths, curves, strict=True):
        run.latency.write_solved(pace, {str(budget): solve_ms(path, curve, [budget], timer)[0]}, trying=True)


def measure_branches(run: Run, timer: DeviceTimer) -> None:
    """Measure what a branch costs by itself, unless it is given or known, or branches stay."""
    config = run.config
    if config.depth_in_ms and config.timing.branch_cost is None and run.latency.branch_cost is None:
        run.latency.write_branch_cost(branch_cost(run.shape, timer), timer.about)


def budget_of_tries(config: Config, curves: Sequence[LatencyCurve]) -> Budget:
    """The budget in ms at which paces are compared: the smallest that all can reach, or else that one can; or the largest.

    Args:
        curves: of the path at each pace.
    """
    dense = curves[0].ms[0]

    def limit(budget: Budget) -> float:
        return budget.amount * dense if budget.relative else budget.amount

    rising = sorted(config.budgets_in_ms, key=limit)
    ends = [min(curve.ms) * CLEARLY for curve in curves]
    reached = [[end <= limit(budget) for end in ends] for budget in rising]
    by_all = (budget for budget, by in zip(rising, reached, strict=True) if all(by))
    by_any = (budget for budget, by in zip(rising, reached, strict=True) if any(by))
    return next(by_all, None) or next(by_any, None) or rising[-1]


def cut_of_try(run: Run, pace: Pace) -> tuple[Budget, Solved]:
    """The budget in ms at which a pace is tried, and what it leaves."""
    ((text, solved),) = run.latency.solved(pace, trying=True).items()
    return Budget.parse(text), solved


# Budgets in ms.


def solve_budgets(run: Run) -> list[str]:
    """Find what each budget in ms leaves of the removal path, unless the folder has it already.

    Returns:
        Why budgets cannot be reached, one sentence each.

    Raises:
        RefusedInput: latency.table has none of the path's structures.
        StageFailed: as for `run_alone`.
    """
    pace, before = run.pace_of("ms"), set(run.latency.times())
    if to_time(run):
        if (table := table_of(run.config)) is None:
            run_alone(run, cuts_of_budgets)
        else:
            solve_by_table(run, pace, table)
        if not before:
            forget_other_sizes(run)
    solved = run.latency.solved(pace)
    return [solved[str(budget)].error for budget in run.config.budgets_in_ms if solved[str(budget)].error]


def cuts_of_budgets(arguments: dict[str, Any]) -> None:
    """The task of `solve_budgets`."""
    run = run_of(arguments)
    timer = timer_of(run)
    measure_branches(run, timer)
    pace, left, path = run.pace_of("ms"), to_time(run), run.path_of("ms")
    curve = run.latency.curve(pace)
    if curve is None or run.latency.about(pace).get("hardware") != timer.about["hardware"]:  # else of another machine
        curve = measure_curve(path, timer, PREFIXES)
        run.latency.write_curve(pace, curve, timer.about)
    found = solve_ms(path, curve, left, timer)
    run.latency.write_times(times_of(path, found), timer.about)
    run.latency.write_solved(pace, run.latency.solved(pace) | dict(zip(map(str, left), found, strict=True)))


def solve_by_table(run: Run, pace: Pace, table: TableOfTimes) -> None:
    """Find what the budgets leave by the times of a table, and write those."""
    path, left = run.path_of("ms"), to_time(run)
    curve = curve_of_times(path, table.ms, table.where, busy=table.busy)
    run.latency.write_curve(pace, curve, table.about)
    found = solved_by_curve(path, curve, left)
    run.latency.write_times(times_of(path, found), table.about)
    run.latency.write_solved(pace, run.latency.solved(pace) | dict(zip(map(str, left), found, strict=True)))


def times_of(path: RemovalPath, solved: Iterable[Solved]) -> dict[str, TimedStructure]:
    """By `Structure.id`, the latencies of what budgets leave."""
    return {path.prefix(one.length).id: one.timed for one in solved if one.length is not None}


def forget_other_sizes(run: Run) -> None:
    """Delete what was begun of points whose budget is in ms: where latencies are lost and measured anew, sizes are others."""
    done = set(run.rows.point[run.rows.status == "ok"])
    for name in run.checkpoint_names():
        if is_in_ms(name) and name not in done:
            Checkpoints(run, name).clear()
            run.delete_curve(name)


# The structures of points.


def time_points(run: Run, points: Sequence[Point]) -> None:
    """Time the structures of points, and the dense model, that the folder has no latency of.

    Raises:
        StageFailed: as for `run_alone`.
    """
    if run.config.times_models:
        time_missing(run, {point.structure: point.method for point in points if point.structure})


def time_missing(run: Run, methods_of: Mapping[str, str]) -> None:
    """Time those of some structures that the folder has no latency of, and the dense model beside them.

    Args:
        methods_of: by a structure's JSON, the method that chose it.

    Raises:
        StageFailed: as for `run_alone`.
    """
    known = run.latency.times()
    missing = {text: method for text, method in methods_of.items() if Structure.from_json(text).id not in known}
    if missing:
        run_alone(run, times_of_points, structures=missing)


def time_done_points(run: Run, names: Sequence[str], until: float | None) -> None:
    """Time the structures of points that are done, and add the latencies to their rows, some points at a time.

    Args:
        names: `planning.untimed_points`.
        until: no further points are timed after this time (time.time()).

    Raises:
        StageFailed: as for `run_alone`; what was timed before stays.
    """
    for first in range(0, len(names), POINTS_AT_ONCE):
        if until is not None and time.time() > until:
            break
        rows = [run.row(name) for name in names[first : first + POINTS_AT_ONCE]]
        time_missing(run, {row["structure"]: row["method"] for row in rows})
        for row in rows:
            run.write_row({**row, **run.latency.columns_of(Structure.from_json(row["structure"]))})
    run.refresh()


@attention_as_loaded()
def times_of_points(arguments: dict[str, Any]) -> None:
    """The task of `time_points`: all structures are timed in the same rounds."""
    run = run_of(arguments)
    dense = load(run.dense)
    structures = {DENSE: run.shape.full()}
    method_of: dict[str, str] = {}
    for text, method in arguments["structures"].items():
        structure = Structure.from_json(text)
        if structure.id != structures[DENSE].id:
            structures[structure.id] = structure
            method_of[structure.id] = method

    def build(structure: Structure) -> nn.Module:  # a method may make models of an architecture of its own
        return methods.starting_model(method_of[structure.id], dense, structure, run.config.seed)

    timer = DeviceTimer(dense, run.config.latency_setting, build=build)
    found = time_structures(structures, timer)
    found[structures[DENSE].id] = found.pop(DENSE)
    run.latency.write_times(found, timer.about)


def timer_of(run: Run) -> DeviceTimer:
    """What times structures of a run's dense model in the run's setting, on this machine."""
    with attention_as_loaded():
        dense = load(run.dense)
    return DeviceTimer(dense, run.config.latency_setting)


class BudgetsOfMethods:
    """What a method that ranks gates itself gets for its budgets in ms: its path is timed as the search's is.

    Args:
        timer: times structures of the dense model.
    """

    def __init__(self, timer: DeviceTimer) -> None:
        self.timer = timer
        self.times: dict[str, TimedStructure] = {}  # by Structure.id, of what was chosen

    def __call__(self, path: RemovalPath, budgets: Sequence[Budget]) -> list[Solved]:
        """What each budget leaves of a path."""
        curve: LatencyCurve = measure_curve(path, self.timer)
        found = solve_ms(path, curve, budgets, self.timer)
        self.times |= times_of(path, found)
        return found
