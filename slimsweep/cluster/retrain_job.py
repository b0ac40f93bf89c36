"""The sweep: Ray Tune cuts and retrains all points (one per method, budget and seed) side by side.

Each trial writes its own row when it ends. A point without an ok row is still to be done.
"""

import logging
import re
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import ray
import ray.train
import ray.train.torch
import ray.tune
import timm
import torch
from torch import nn

import slimsweep
from slimsweep import methods
from slimsweep.cluster import failures
from slimsweep.cluster.search_job import data_parallel
from slimsweep.cluster.starting_model import starting_model
from slimsweep.cluster.stopping import EpochReports, StopRates
from slimsweep.cluster.tasks import loading_first, points_are_tasks, trial_as_task
from slimsweep.cluster.worker import (
    check_shared,
    data_of,
    device_of,
    giving_memory_back,
    job_arguments,
    note_begun,
    probe_for,
    run_of,
    save_model,
    set_threads,
    teacher_of,
    worker_resources,
)
from slimsweep.config import Recipe
from slimsweep.data import Data, data_name, images_seen
from slimsweep.errors import OutOfTime, RunLost
from slimsweep.ledger.points import Point
from slimsweep.ledger.recorder import recorder_of
from slimsweep.ledger.run import Run
from slimsweep.saved_models import load
from slimsweep.slimming.budget import Budget, BudgetError
from slimsweep.slimming.cost import COSTS
from slimsweep.slimming.structure import Structure, macs, params
from slimsweep.training.evaluate import Reference, Split, evaluate_split, probed
from slimsweep.training.loop import curve_row, train
from slimsweep.training.recorder import Recorders

log = logging.getLogger(__name__)


def run_sweep(run: Run, points: list[Point], attempt: str, name: str, concurrent: int, until: float | None = None) -> None:
    """Retrain points. A point that fails gets a row with the reason, and the others go on.

    Args:
        points: the points to do; at least one.
        attempt: name of the driver's start.
        name: for Ray's own state; no earlier sweep of this run may have used it.
        concurrent: how many points train at the same time, at most.
        until: no further epoch begins after this time (time.time()); points that are not done by then get no row.
    """
    config = run.config
    alone, resources = config.retrain.workers_per_trial == 1, worker_resources(config)
    arguments = job_arguments(run, attempt=attempt, until=until)
    stopped: dict[str, int] = {}

    def note_stopped(point: Point, epoch: int) -> None:
        stopped[point.name] = epoch
        try:
            write_stopped(run, point, epoch)
        except OSError as problem:  # perhaps a full disk; it is tried again when the sweep ends
            log.warning("%s: its row could not be written (%s)", point.name, problem)

    work: Any = ray.tune.with_parameters(trial, arguments=arguments)
    room: Any = {kind.lower(): amount for kind, amount in resources.items()}
    if not alone:  # a Ray Train job: the trial's own process only waits for the workers, and must not take the CPU of one
        room = {"memory": 1e7}
    elif points_are_tasks(config):  # in a process that has loaded everything
        work = ray.tune.with_parameters(trial_as_task, work=loading_first(trial), arguments=arguments, resources=resources)
        room = ray.tune.PlacementGroupFactory([{}, resources])
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(work, room),
        param_space={"point": ray.tune.grid_search([asdict(p) for p in points])},
        tune_config=ray.tune.TuneConfig(
            max_concurrent_trials=concurrent,
            reuse_actors=alone,
            trial_dirname_creator=trial_folder,
            scheduler=scheduler_of(run, points, note_stopped),
        ),
        run_config=ray.tune.RunConfig(
            name=f"sweep-{name}",
            storage_path=run.ray_folder.uri,
            verbose=0,
            failure_config=ray.tune.FailureConfig(max_failures=config.resources.max_failures),
            callbacks=[],
        ),
    )
    results = tuner.fit()
    # Tune makes and lists the trials in the order of the points. A result itself names its point only where its trial reported
    # something, and a process that Ray ended while it started has not.
    for point, result in zip(points, (results[index] for index in range(len(results))), strict=False):
        error = (result.metrics or {}).get("error", "")
        if result.error is not None:  # its process died more than max_failures times
            error = process_died(result.error)
        if point.name in stopped and not run.has_row(point.name):
            write_stopped(run, point, stopped[point.name])
        if error and not run.has_row(point.name):  # the trial could not write its row
            write_failed(run, point, error)


def scheduler_of(run: Run, points: list[Point], stopped: Callable[[Point, int], None]) -> StopRates | None:
    """What stops learning rates that are behind; None where none is to be stopped.

    Args:
        points: those to train.
        stopped: called with a point and the epoch after which it is stopped.
    """
    if run.config.retrain.stopping is None or not any(point.one_of_rates for point in points):
        return None
    groups, training = {point.rate_group for point in points}, {point.name for point in points}
    plan = run.plan()
    others = training | set(run.rows.point[run.rows.status == "failed"])  # what has failed is ahead of nothing
    earlier = [p for p in (plan.points if plan is not None else ()) if p.rate_group in groups and p.name not in others]
    curves = {
        point: {row["epoch"]: row[run.config.quality] for row in run.curve(point.name)}
        for point in earlier
        if point.one_of_rates
    }
    return StopRates(run.config.retrain, points, stopped, curves)


def process_died(problem: BaseException | str) -> str:
    """Why Tune could not bring a trial to its end, in one line.

    Args:
        problem: the error of Tune's result: an exception, or the text of the trial's error.txt, which has each failure.
    """
    last = re.split(r"^Failure # \d+ \(occurred at .*\)$", str(problem), flags=re.MULTILINE)[-1]
    said = (None if isinstance(problem, str) else failures.sentence(problem)) or failures.sentence(last)
    return said or f"the trial's process died: {failures.last_of(last)}"


def trial_folder(trial: Any) -> str:
    """The name of Tune's folder for a trial: its own names hold all parameters and become too long."""
    return f"trial-{trial.trial_id}"


@giving_memory_back
def trial(parameters: dict[str, Any], arguments: dict[str, Any]) -> dict[str, str]:
    """What Tune runs for each point: the retraining in this process, or as a Ray Train job of several workers.

    Returns:
        error: why the point failed; empty where it is done or time ran out.
    """
    run, point = run_of(arguments), Point(**parameters["point"])
    if run.has_ok_row(point.name):
        return {"error": ""}  # the process died after it wrote its row, and Tune started the trial again
    if arguments["until"] is not None and time.time() >= arguments["until"]:
        return {"error": ""}
    try:
        check_shared(run)
        run.delete_row(point.name)  # the row of an earlier try that failed
        note_begun(run, point.name, arguments["attempt"])
        if run.config.retrain.workers_per_trial == 1:
            set_threads(run.config)
            retrain(run, point, device_of(run.config), 0, arguments["until"])
        else:
            name = f"{point.name}-{arguments['attempt']}-{time.time_ns()}"
            workers = run.config.retrain.workers_per_trial
            data_parallel(loading_first(retrain_worker), {**arguments, **parameters}, run, name=name, workers=workers).fit()
    except (OutOfTime, RunLost):
        pass  # no row: the next start, or the driver that took the run, goes on from the last checkpoint
    except Exception as problem:
        # A second try would fail in the same way: the row says why, and the other points go on.
        log.warning("%s failed:\n%s", point.name, traceback.format_exc())
        error = failures.explained(problem, "retrain", run.logs.add_error)
        try:
            write_failed(run, point, error)
        except OSError as unwritten:  # perhaps a full disk; the driver tries again when the sweep ends
            log.warning("%s: its row could not be written (%s)", point.name, unwritten)
        return {"error": error}
    return {"error": ""}


def retrain_worker(arguments: dict[str, Any]) -> None:
    """What each worker runs in a trial with several workers."""
    run, point = run_of(arguments), Point(**arguments["point"])
    set_threads(run.config)
    try:
        check_shared(run)
        retrain(run, point, ray.train.torch.get_device(), ray.train.get_context().get_world_rank(), arguments["until"])
    except (OutOfTime, RunLost):  # if it left this function, Ray would start the workers again
        return


def retrain(run: Run, point: Point, device: torch.device, rank: int, until: float | None = None) -> None:
    """Cut a point's model, train it, evaluate it on the test split once, save it, and write its row.

    Args:
        rank: of this worker; only rank 0 writes.
        until: no further epoch begins after this time (time.time()).

    Raises:
        ValueError: the point's method cannot meet its budget.
        OutOfTime: `until` came first.
        TrainingDiverged: the loss became NaN or infinite.
    """
    config = run.config
    if not point.structure:
        raise BudgetError(why_no_structure(run, point))
    dense = load(run.dense)
    recipe = config.retrain.at(point.lr, point.epochs)
    data = data_of(run, dense)
    start = starting_model(run, point, dense, data, device)
    recorder = recorder_of(run, "retrain", point.name)
    if config.retrain.stopping is not None and point.one_of_rates:
        recorder = Recorders(recorder, EpochReports(config.quality))
    teacher = teacher_of(run, "retrain", dense, data) if recipe.epochs else None
    reference = Reference(dense, data) if config.backbone else None
    evaluated: dict[str, float] = {}  # by the last epoch; empty where none was trained here
    how: dict[str, Any] = {"teacher": teacher, "reference": reference, "until": until, "evaluated": evaluated}
    small = train(start.model, data, recipe, recorder, seed=point.seed, device=device, **how)
    if reference is None:
        val = evaluated or {"val_top1": evaluate_split(small, data, "val", device, recipe).top1}
        test = evaluate_split(small, data, "test", device, recipe)
        found = {**val, "test_top1": test.top1, "test_top5": test.top5, "test_loss": test.loss}
    else:
        found = quality_of_backbone(small, reference, probe_for(config, dense), device, recipe, config.seed, evaluated)
    if rank != 0:
        return
    recorder.damaged(data.test.damaged)
    if not recipe.epochs:  # its curve is where a training would start from
        recorder.damaged(data.val.damaged)
        recorder.epoch(curve_row(recorder, small, epoch=0, loss=None, quality=found, seconds=0.0, lr=point.lr))
    path = run.model_path(point.name)
    counted = {name: value for name, value in found.items() if name not in ("test_top5", "test_loss")}
    described_by = {**counted, "budget": point.budget, "method": point.method}
    described_by |= {"unit": point.unit} if point.unit != "macs" else {}
    row = {**known_before(run, point), "macs": macs(small), "params": params(small), "epochs": point.epochs}
    size = save_model(run, path, small, data, described_by, row)
    curve = run.curve(point.name)
    whole = [epoch["epoch"] for epoch in curve] == list(range(point.epochs + 1))  # not where its file was lost in between
    row |= {
        "model_bytes": size,
        "repair_seconds": start.repair_seconds,
        f"{config.quality}_cut": curve[0][config.quality] if whole else None,
        **found,
        "samples_seen": point.epochs * images_seen(data),
        "train_seconds": sum(r["seconds"] for r in curve) if whole else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "model_path": path,
    }
    recorder.finished(row)


def quality_of_backbone(
    model: nn.Module,
    reference: Reference,
    probe: Data | None,
    device: torch.device,
    recipe: Recipe,
    seed: int,
    evaluated: Mapping[str, float],
) -> dict[str, float]:
    """How near a backbone is to the dense model on validation and test, and what its embeddings are worth, by columns.

    Args:
        probe: labelled images; None leaves the columns of k-NN and linear probe out.
        seed: of the linear probe.
        evaluated: the columns of validation, where they are known; else empty.
    """
    found: dict[str, float] = dict(evaluated)
    splits: tuple[Split, ...] = ("test",) if evaluated else ("val", "test")
    for split in splits:
        agreed = reference.agreement(model, split, device, recipe)
        found |= {f"{split}_{name}": value for name, value in agreed._asdict().items()}
    return found if probe is None else {**found, **probed(model, probe, device, recipe, seed)}


def why_no_structure(run: Run, point: Point) -> str:
    """Why a point's budget cannot be met."""
    method = methods.METHODS[point.method]
    if method.chooses:
        return run.choice_error(method.name, point.budget, point.unit, point.seed if method.draws else None)
    in_ms = point.budget_ms is not None
    budget = Budget(point.budget_ms if point.budget_ms is not None else point.budget, "ms", relative=not in_ms)
    return run.latency.solved(run.pace_of("ms"))[str(budget)].error


def write_failed(run: Run, point: Point, error: str) -> None:
    """Write the row of a point that failed; a later ok row replaces it."""
    run.write_row({**known_before(run, point), "status": "failed", "error": error})


def write_stopped(run: Run, point: Point, epoch: int) -> None:
    """Write the row of a point that was stopped after an epoch, and delete its checkpoints. The test split is not read."""
    curve = {row["epoch"]: row for row in run.curve(point.name)}
    quality, nothing = run.config.quality, {run.config.quality: None}
    row = {
        **known_before(run, point),
        "status": "stopped",
        "error": f"stopped after epoch {epoch} of {point.epochs}: another learning rate was ahead (retrain.stopping)",
        "epochs": epoch,
        quality: curve.get(epoch, nothing)[quality],
        f"{quality}_cut": curve.get(0, nothing)[quality],
    }
    run.write_row(row)
    run.checkpoints(point.name).delete("")


def known_before(run: Run, point: Point) -> dict[str, Any]:
    """The columns of a point's row that are known before training."""
    structure = Structure.from_json(point.structure) if point.structure else None
    return {
        "run": run.config.name,
        "point": point.name,
        "model": run.config.model.name,
        "data": data_name(run.config),
        "method": point.method,
        "terms": point.terms,
        "shares": point.shares,
        "seed": point.seed,
        "budget": point.budget,
        "unit": point.unit,
        "budget_ms": point.budget_ms,
        **(run.latency.columns_of(structure) if structure else {}),
        "lr": point.lr,
        "teacher": run.config.teacher_in_words("retrain") if point.epochs else "",
        **{name: cost.of(structure) if structure else None for name, cost in COSTS.items()},
        **{f"{name}_dense": cost.of_dense(run.shape) for name, cost in COSTS.items()},
        **{f"{split}_images": number for split, number in images_of_splits(run).items()},
        "classes": run.dense_description.get("num_classes"),
        "test_top1_untouched": run.dense_description["metrics"].get("test_top1"),
        "structure": point.structure or None,
        "point_hash": point.hash,
        "slimsweep_version": slimsweep.__version__,
        "torch_version": torch.__version__,
        "timm_version": timm.__version__,
        "ray_version": ray.__version__,
    }


def images_of_splits(run: Run) -> dict[str, int | None]:
    """The number of images of validation and test, as the run's fingerprint of its data has them; None where not known."""
    splits = (run.known_data or {}).get("splits", {})
    return {split: splits.get(split, {}).get("images") for split in ("val", "test")}
