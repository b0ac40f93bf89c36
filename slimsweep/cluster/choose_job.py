"""What workers choose once before the sweep: the pace of the families of gates, and the structures that methods keep."""

import itertools
from collections.abc import Callable
from typing import Any

import ray

from slimsweep import methods
from slimsweep.cluster.failures import explained
from slimsweep.cluster.latency_job import BudgetsOfMethods, cut_of_try, paces_in_ms, timer_of, timing_resources
from slimsweep.cluster.starting_model import cut_and_repaired
from slimsweep.cluster.tasks import run_tasks
from slimsweep.cluster.worker import (
    data_of,
    device_of,
    giving_memory_back,
    job_arguments,
    run_of,
    set_threads,
    teacher_of,
    worker_resources,
)
from slimsweep.data import calibration_images, training_images
from slimsweep.errors import OutOfTime, StageFailed, TrainingDiverged
from slimsweep.ledger.checkpoints import Checkpoints
from slimsweep.ledger.cuts import Cuts
from slimsweep.ledger.planning import baseline_targets, distinct_paces, pace_key, smallest_budget, to_choose
from slimsweep.ledger.points import is_in_ms
from slimsweep.ledger.recorder import recorder_of
from slimsweep.ledger.run import Run
from slimsweep.ledger.searched_model import load_searched
from slimsweep.methods.choice import Choice
from slimsweep.saved_models import load
from slimsweep.slimming.axes import principal_axes
from slimsweep.slimming.gates import add_gates
from slimsweep.slimming.removal_path import size_multiple
from slimsweep.slimming.structure import Structure
from slimsweep.training.backbone import families_to_cut
from slimsweep.training.evaluate import Reference, evaluate_split
from slimsweep.training.loop import train


def choose_pace(
    run: Run,
    until: float | None = None,
    unit: str = "macs",
    tell: Callable[[dict[str, Any], int, int], None] = lambda tried, ended, count: None,
) -> bool:
    """Try each of search.paces on a worker of its own, and store the best on validation as the run's pace.

    Args:
        until: no further epoch begins after this time (time.time()).
        unit: "ms" to compare paces at equal latency, for the budgets in ms (`latency_job.time_paces` has found the cuts).
        tell: is told what each try found when it ends (as `try_pace` returns it), how many have ended, and how many there are.

    Returns:
        Whether a pace was chosen: False where time ran out. Tries that had ended are not repeated.

    Raises:
        StageFailed: a worker raised, or the training of every pace diverged. A pace whose training diverges is not chosen.
    """
    config = run.config
    paces = paces_in_ms(run) if unit == "ms" else distinct_paces(config, run.shape.gate_shapes)
    # A choice whose file was damaged, while all its tries are whole, comes out as it was.
    same = run.pace_choice(unit) is None and run.pace_file_of(unit) in run.damaged
    same = same and all(run.pace_try(name_of_try(run, pace, unit)) is not None for pace in paces)
    at_once = config.resources.max_concurrent_trials or len(paces)
    found: list[dict[str, Any]] = []
    counted = itertools.count(1)

    def ended(tried: dict[str, Any] | None) -> None:
        if tried is not None:  # time has not run out
            tell(tried, next(counted), len(paces))

    try:
        for first in range(0, len(paces), at_once):
            arguments = [job_arguments(run, pace=pace, until=until, unit=unit) for pace in paces[first : first + at_once]]
            results = run_tasks(try_pace, arguments, worker_resources(config), config.resources.max_failures, ended)
            if None in results:
                return False
            found += results
    except ray.exceptions.RayError as problem:
        raise StageFailed(f"the paces could not be tried: {explained(problem, 'retrain', run.logs.add_error)}") from problem
    if all(one["error"] for one in found):
        raise StageFailed(f"no pace could be tried by a retraining: {found[0]['error']}")
    best = max((one for one in found if not one["error"]), key=lambda one: one[config.quality])  # the first of equals
    if best["pace"] != run.pace_of(unit) and not same:
        # Points that began at the earlier pace have other sizes under the same names.
        stale = tuple(f"{method.name}-" for method in methods.METHODS.values() if method.needs_search)
        for name in run.checkpoint_names():
            if name.startswith(stale) and is_in_ms(name) == (unit == "ms"):
                Checkpoints(run, name).clear()
                run.delete_curve(name)
    run.write_pace_choice({"pace": best["pace"], "tried": found, "key": pace_key(run, unit)}, unit)
    return True


@giving_memory_back
def try_pace(arguments: dict[str, Any]) -> dict[str, Any] | None:
    """Cut the searched model to the smallest budget at one pace, retrain it for a few epochs, and store the result.

    Returns:
        pace, budget, unit, val_top1 (percent; 0 where the training diverged) or of a backbone val_r2 (None there), macs of the
        model, and error; None where time ran out.
    """
    run, pace, unit = run_of(arguments), arguments["pace"], arguments.get("unit", "macs")
    config = run.config
    name = name_of_try(run, pace, unit)
    if (known := run.pace_try(name)) is not None:  # an earlier start tried it
        return known
    set_threads(config)
    device = device_of(config)
    dense = load(run.dense)
    gated = load_searched(run, dense)
    data = data_of(run, dense)
    structure, fraction, unit, refused = structure_of_try(run, pace, unit)
    recipe = config.pace_recipe()
    result: dict[str, Any] = {"pace": pace, "budget": fraction, "unit": unit, "macs": structure.macs(), "error": refused}
    result |= {"val_r2": None} if config.backbone else {"val_top1": 0.0}
    if refused:
        run.write_pace_try(name, result)
        return result
    start = cut_and_repaired(run, gated.to(device), structure, data).model
    recorder = recorder_of(run, "retrain", name)
    teacher = teacher_of(run, "retrain", dense, data) if recipe.epochs else None
    reference = Reference(dense, data) if config.backbone else None
    evaluated: dict[str, float] = {}  # by the last epoch; empty where none was trained here
    how: dict[str, Any] = {"teacher": teacher, "reference": reference, "until": arguments["until"], "evaluated": evaluated}
    try:
        small = train(start, data, recipe, recorder, seed=config.seed, device=device, **how)
        if evaluated:
            result[config.quality] = evaluated[config.quality]
        elif reference is None:
            result["val_top1"] = evaluate_split(small, data, "val", device, recipe).top1
        else:
            result["val_r2"] = reference.agreement(small, "val", device, recipe).r2
    except OutOfTime:
        return None
    except TrainingDiverged as problem:
        result["error"] = str(problem)
    run.write_pace_try(name, result)
    recorder.finished(None)
    run.delete_curve(name)  # curves in the folder are those of stages and points
    return result


def structure_of_try(run: Run, pace: dict[str, float], unit: str) -> tuple[Structure, float, str, str]:
    """What a try of a pace is cut to, its budget as a fraction of dense, in which unit, and why it cannot be met.

    Args:
        unit: "ms" for the smallest budget in ms; any other for the smallest of the other budgets.
    """
    if unit != "ms":
        budget, path = smallest_budget(run.config, run.shape), run.path_at(pace)
        return path.solve(budget), Cuts(path=path).fraction(budget), budget.unit, ""
    budget, solved = cut_of_try(run, pace)
    path = run.path_at(pace, run.latency.depth)
    cuts = Cuts(path=path, path_in_ms=path, solved={str(budget): solved})
    return path.prefix(path.length if solved.length is None else solved.length), cuts.fraction(budget), "ms", solved.error


def name_of_try(run: Run, pace: dict[str, float], unit: str = "macs") -> str:
    """The name of the training that tries a pace."""
    return f"pace-{'-'.join(f'{family}{value:g}' for family, value in pace.items())}-{pace_key(run, unit)}"


def choose_structures(run: Run) -> None:
    """Let workers choose the structures that methods keep and that the folder does not have yet: one task per method and seed.

    With budgets in ms, each method's path is timed: one task after another then, so that nothing else is at work.

    Raises:
        StageFailed: a worker died. Where a method fails or cannot meet a budget, only its points fail.
    """
    arguments = [job_arguments(run, method=method, seed=seed) for method, seed in to_choose(run, again=True)]
    alone = bool(run.config.budgets_in_ms)
    resources = timing_resources(run.config) if alone else worker_resources(run.config)
    try:
        for tasks in [[one] for one in arguments] if alone else [arguments]:
            run_tasks(choose_structure, tasks, resources, run.config.resources.max_failures)
    except ray.exceptions.RayError as problem:
        reason = explained(problem, None, run.logs.add_error)
        raise StageFailed(f"what the methods keep could not be chosen: {reason}") from problem


@giving_memory_back
def choose_structure(arguments: dict[str, Any]) -> None:
    """Write the structure that a method keeps at each budget to the run's folder, or why it has none."""
    run, method, seed = run_of(arguments), methods.METHODS[arguments["method"]], arguments["seed"]
    config = run.config
    set_threads(config)
    dense = load(run.dense)
    data = data_of(run, dense)
    images, labels = training_images(data, config.seed)
    dense.to(device_of(config))
    if method.repaired and config.search.axes:
        dense = principal_axes(dense, calibration_images(data, config.seed, dense))
    targets, settings = baseline_targets(run), config.search
    families = families_to_cut(config, dense)
    shape = add_gates(dense, settings.granularity, families).shape
    timed = BudgetsOfMethods(timer_of(run)) if config.budgets_in_ms else None
    choice = Choice(
        granularity=settings.granularity,
        families=families,
        floors=settings.floors.model_dump(),
        depth=settings.depth,
        round_to=size_multiple(shape, settings.round_to),
        dense=dense,
        shape=shape,
        budgets=[target.given for target in targets],
        seed=seed,
        images=images,
        labels=labels,
        depth_in_ms=run.latency.depth,
        solve_ms=timed,
    )
    try:
        found: list[Any] = list(methods.choose(method.name, choice))
    except (MemoryError, OSError):  # of this machine, not of the method: tried elsewhere
        raise
    except Exception as problem:  # a method's fault costs its own points, and not the sweep
        reason = f"{method.name} could not choose what to keep: {explained(problem, None, run.logs.add_error)}"
        found = [reason] * len(targets)
    if timed is not None and timed.times:
        run.latency.write_times(timed.times, timed.timer.about)
    for target, structure in zip(targets, found, strict=True):
        kept, error = (structure.to_json(), "") if isinstance(structure, Structure) else ("", str(structure))
        run.write_choice(method.name, target.budget, target.unit, seed if method.draws else None, structure=kept, error=error)
