"""The sweep: every point (a budget, a method, a seed) cut and retrained, all of them side by side under Ray Tune.

A trial writes its own row as it ends, and the rows are the truth: what is left to do is what has no ok row.
"""

import logging
import time
import traceback
from dataclasses import asdict
from typing import Any

import ray
import ray.train
import ray.train.torch
import ray.tune
import timm
import torch

import slimsweep
from slimsweep.cluster import cluster  # sets the environment that Ray reads  # noqa: F401
from slimsweep.cluster.search_job import data_parallel, load_gated, worker_resources
from slimsweep.cluster.worker import check_shared, data_for, load_model, save_model, set_threads
from slimsweep.config import Config
from slimsweep.data.images import images_seen
from slimsweep.data.plain_images import training_images
from slimsweep.data.sources import data_name
from slimsweep.errors import StageFailed, explain
from slimsweep.ledger.checkpoints import Checkpoints
from slimsweep.ledger.points import (
    Point,
    baseline_budgets,
    chosen_pace,
    chosen_path,
    distinct_paces,
    fraction,
    load_shape,
    pace_key,
    pace_path,
    path_at,
    smallest_budget,
    to_choose,
)
from slimsweep.ledger.tables import has_ok_row, read_curve, write_row
from slimsweep.methods import METHODS, choose, starting_model
from slimsweep.methods.choice import Choice
from slimsweep.slimming.cut import slim
from slimsweep.slimming.removal_path import size_multiple
from slimsweep.slimming.structure import Structure, macs, params
from slimsweep.storage import Folder
from slimsweep.training.loop import OutOfTime, TrainingDiverged, measure, note_damaged, train

log = logging.getLogger(__name__)


def choose_pace(config: Config, run: Folder, until: float | None = None) -> bool:
    """Let workers try the paces that the configuration proposes, a task each, and keep the best on validation for the run.

    Returns:
        Whether one was chosen: False where `until` (time.time()) came first; the tries that had ended are kept.

    Raises:
        StageFailed: a worker raised. A training that diverges is no failure: its pace is not taken.
    """
    shape = load_shape(run)
    paces = distinct_paces(config, shape.gate_shapes)
    at_once = config.resources.max_concurrent_trials or len(paces)
    gpus = config.resources.gpus_per_worker
    work = ray.remote(num_cpus=config.resources.cpus_per_worker, num_gpus=gpus)(try_pace)
    found: list[dict[str, Any]] = []
    try:
        for first in range(0, len(paces), at_once):
            asked = [(config.model_dump(mode="json"), run.uri, pace, until) for pace in paces[first : first + at_once]]
            ended = ray.get([work.remote(*arguments) for arguments in asked])
            if None in ended:
                return False
            found += ended
    except ray.exceptions.RayError as problem:
        raise StageFailed(f"the paces could not be tried: {explain(problem, 'retrain')}") from problem
    if all(one["error"] for one in found):
        raise StageFailed(f"no pace of the families could be retrained: {found[0]['error']}")
    best = max(found, key=lambda one: one["val_top1"])  # of equals the one given first
    key = pace_key(config, shape.full().macs())
    if best["pace"] != chosen_pace(config, run):
        # What an earlier choice began has other sizes, under the same names.
        for name in run.list("checkpoints"):
            if any(name.startswith(f"{method.name}-") for method in METHODS.values() if method.needs_search):
                Checkpoints(run, name).clear()
                run.delete(f"curves/{name}.parquet")
    run.write_json(pace_path(config), {"pace": best["pace"], "tried": found, "key": key})
    return True


def try_pace(settings: dict[str, Any], uri: str, pace: dict[str, float], until: float | None = None) -> dict[str, Any] | None:
    """Cut the search's model to the smallest budget at one pace and retrain it shortly; None where time ran out."""
    config, run = Config(**settings), Folder(uri)
    dense_macs = load_shape(run).full().macs()
    name = f"pace-{'-'.join(f'{family}{value:g}' for family, value in pace.items())}-{pace_key(config, dense_macs)}"
    if run.exists(f"search/{name}.json"):  # of an earlier start
        return dict(run.read_json(f"search/{name}.json"))
    set_threads(config)
    device = torch.device("cuda" if config.resources.gpus_per_worker > 0 else "cpu")
    dense = load_model(run, "dense")
    gated = load_gated(config, run, dense)
    path = path_at(config, gated.shape, gated.gates, pace)
    budget, recipe = smallest_budget(config, dense_macs), config.pace_recipe()
    data = data_for(config, dense)
    result: dict[str, Any] = {"pace": pace, "budget": fraction(budget, dense_macs), "val_top1": 0.0, "error": ""}
    start = slim(gated, path.solve(budget))
    where: Any = {"run": run, "stage": "retrain", "point": name, "seed": config.seed, "device": device, "until": until}
    try:
        small = train(start, data, config, recipe, teacher=dense, distill=config.retrain.distill, **where)
        result["val_top1"] = measure(small, data.val, config, device, recipe).top1
    except OutOfTime:
        return None
    except TrainingDiverged as problem:
        result["error"] = str(problem)
    run.write_json(f"search/{name}.json", result)
    Checkpoints(run, name).clear()
    run.delete(f"curves/{name}.parquet")  # of no point of the sweep
    return result


def choose_baselines(config: Config, run: Folder) -> None:
    """Let workers choose what the baselines keep, as far as the run's folder does not hold it; a task a method.

    Raises:
        StageFailed: a worker raised. A budget that a method cannot meet is no failure of the others: its point says so.
    """
    gpus = config.resources.gpus_per_worker
    work = ray.remote(num_cpus=config.resources.cpus_per_worker, num_gpus=gpus)(choose_baseline)
    tasks = [work.remote(config.model_dump(mode="json"), run.uri, *wanted) for wanted in to_choose(config, run, again=True)]
    try:
        ray.get(tasks)
    except ray.exceptions.RayError as problem:
        raise StageFailed(f"what the baselines keep could not be chosen: {explain(problem, 'retrain')}") from problem


def choose_baseline(settings: dict[str, Any], uri: str, method: str, seed: int) -> None:
    """Write what a method keeps at each budget to baselines/ of the run's folder, or why it cannot."""
    config, run = Config(**settings), Folder(uri)
    set_threads(config)
    dense = load_model(run, "dense")
    data = data_for(config, dense)
    images, labels = training_images(data, config)
    dense.to("cuda" if config.resources.gpus_per_worker > 0 else "cpu")
    budgets = baseline_budgets(config, run)
    search, shape = config.search, load_shape(run)
    found = choose(
        method,
        Choice(
            dense=dense,
            shape=shape,
            budgets=budgets,
            granularity=search.granularity,
            families=search.families,
            floors=search.floors.model_dump(),
            round_to=size_multiple(shape, search.round_to),
            seed=seed,
            images=images,
            labels=labels,
        ),
    )
    total = shape.full().macs()
    for budget, structure in zip(budgets, found, strict=True):
        kept, error = (structure.to_json(), "") if isinstance(structure, Structure) else ("", str(structure))
        run.write_json(chosen_path(config, method, fraction(budget, total), seed), {"structure": kept, "error": error})


def run_sweep(
    config: Config, run: Folder, points: list[Point], attempt: str, concurrent: int, until: float | None = None
) -> None:
    """Retrain points. One that fails leaves a row that says why, and the others go on.

    Args:
        points: those to do; at least one.
        attempt: a name that no earlier start used.
        concurrent: how many points train at the same time, at most.
        until: when (time.time()) no further epoch begins: points that are not done by then have no row.
    """
    alone = config.retrain.workers_per_trial == 1
    # A trial of several workers is a Ray Train job: its own actor only waits, and must not take a worker's CPU.
    resources = {k.lower(): v for k, v in worker_resources(config).items()} if alone else {"memory": 1e7}
    arguments = {"config": config.model_dump(mode="json"), "run": run.uri, "attempt": attempt, "until": until}
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(ray.tune.with_parameters(trial, arguments=arguments), resources),
        param_space={"point": ray.tune.grid_search([asdict(p) for p in points])},
        tune_config=ray.tune.TuneConfig(
            max_concurrent_trials=concurrent, reuse_actors=alone, trial_dirname_creator=trial_folder
        ),
        run_config=ray.tune.RunConfig(
            name=f"sweep-{attempt}",
            storage_path=(run / "ray").uri,
            verbose=0,
            failure_config=ray.tune.FailureConfig(max_failures=config.resources.max_failures),
            callbacks=[],
        ),
    )
    results = tuner.fit()
    for result in (results[index] for index in range(len(results))):
        point = Point(**(result.config or {})["point"])
        error = (result.metrics or {}).get("error", "")
        if result.error is not None:  # its process died, more often than it may
            error = f"the trial's process died: {str(result.error).strip().splitlines()[-1]}"
        if error and not run.exists(f"results/{point.name}.parquet"):  # it could not write its row itself
            write_failed(run, config, point, error)


def trial_folder(trial: Any) -> str:
    return f"trial-{trial.trial_id}"


def trial(parameters: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """What Tune runs for each point: the retraining in this process, or as a Ray Train job of several workers."""
    config, run, point = Config(**arguments["config"]), Folder(arguments["run"]), Point(**parameters["point"])
    if has_ok_row(run, point.name):
        return {"ok": 1.0}  # the process died after its row was written: Tune starts it again, there is nothing to do
    if arguments["until"] is not None and time.time() >= arguments["until"]:
        return {"ok": 0.0}
    run.delete(f"results/{point.name}.parquet")  # of an earlier try that failed: this one is under way
    try:
        check_shared(run)
        if config.retrain.workers_per_trial == 1:
            set_threads(config)
            device = torch.device("cuda" if config.resources.gpus_per_worker > 0 else "cpu")
            retrain(config, run, point, device, 0, arguments["until"])
        else:
            name = f"{point.name}-{arguments['attempt']}-{time.time_ns()}"
            workers = config.retrain.workers_per_trial
            data_parallel(retrain_worker, {**arguments, **parameters}, config, run, name=name, workers=workers).fit()
    except OutOfTime:
        return {"ok": 0.0}
    except Exception as problem:
        # Training this point went wrong, and would again: its row says why, and the other points go on.
        log.warning("%s failed:\n%s", point.name, traceback.format_exc())
        error = explain(problem, "retrain")
        try:
            write_failed(run, config, point, error)
        except OSError as unwritten:  # a full disk may be what went wrong: the driver tries again, and says so if it cannot
            log.warning("%s: its row could not be written (%s)", point.name, unwritten)
        return {"ok": 0.0, "error": error}
    return {"ok": 1.0}


def retrain_worker(arguments: dict[str, Any]) -> None:
    """What each worker of a trial of several workers runs."""
    config = Config(**arguments["config"])
    set_threads(config)
    rank = ray.train.get_context().get_world_rank()
    run, point = Folder(arguments["run"]), Point(**arguments["point"])
    check_shared(run)
    try:
        retrain(config, run, point, ray.train.torch.get_device(), rank, arguments["until"])
    except OutOfTime:  # on all ranks alike; no failure, which Ray would start again
        return


def retrain(config: Config, run: Folder, point: Point, device: torch.device, rank: int, until: float | None = None) -> None:
    """Cut a point's model, train it, save it, read the test split once, and write the row."""
    if not point.structure:
        raise ValueError(run.read_json(chosen_path(config, point.method, point.budget, point.seed))["error"])
    dense = load_model(run, "dense")
    # The dense point starts from the dense weights: it shows what the retraining alone gives.
    if point.start:
        source = load_model(run, f"models/{point.start}")
    else:
        source = load_gated(config, run, dense) if METHODS[point.method].from_searched else dense
    small = starting_model(point.method, source, Structure.from_json(point.structure), point.seed)
    recipe = config.retrain.at(point.lr, point.epochs)
    data = data_for(config, dense)
    small = train(
        small,
        data,
        config,
        recipe,
        run=run,
        stage="retrain",
        point=point.name,
        seed=point.seed,
        device=device,
        teacher=dense,
        distill=config.retrain.distill,
        until=until,
    )
    val = measure(small, data.val, config, device, config.retrain)
    test = measure(small, data.test, config, device, config.retrain)
    if rank != 0:
        return
    note_damaged(run, data.test.damaged)
    path = f"models/{point.name}"
    size = save_model(
        run, path, small, data, {"val_top1": val.top1, "test_top1": test.top1, "budget": point.budget, "method": point.method}
    )
    curve = read_curve(run, point.name)
    row = {
        **described(run, config, point),
        "macs": macs(small),
        "params": params(small),
        "model_bytes": size,
        "val_top1_cut": curve[0]["val_top1"],
        "val_top1": val.top1,
        "test_top1": test.top1,
        "test_top5": test.top5,
        "test_loss": test.loss,
        "epochs": point.epochs,
        "samples_seen": point.epochs * images_seen(data, config),
        "train_seconds": sum(r["seconds"] for r in curve),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "model_path": path,
    }
    write_row(run, row)
    Checkpoints(run, point.name).clear()


def write_failed(run: Folder, config: Config, point: Point, error: str) -> None:
    """The row of a point that went wrong; its next ok row replaces it."""
    write_row(run, {**described(run, config, point), "status": "failed", "error": error})


def described(run: Folder, config: Config, point: Point) -> dict[str, Any]:
    """The columns that are known before training."""
    structure = Structure.from_json(point.structure) if point.structure else None
    full = load_shape(run).full()
    return {
        "run": config.name,
        "point": point.name,
        "model": config.model.name,
        "data": data_name(config),
        "method": point.method,
        "terms": point.terms,
        "shares": point.shares,
        "seed": point.seed,
        "budget": point.budget,
        "lr": point.lr,
        "macs": structure.macs() if structure else None,
        "macs_dense": full.macs(),
        "params": structure.params() if structure else None,
        "params_dense": full.params(),
        "test_top1_untouched": run.read_json("dense/config.json")["metrics"]["test_top1"],
        "structure": point.structure or None,
        "point_hash": point.hash,
        "slimsweep_version": slimsweep.__version__,
        "torch_version": torch.__version__,
        "timm_version": timm.__version__,
        "ray_version": ray.__version__,
    }
