"""At which pace the families leave: which paces are tried, what is chosen and kept, and for how long it holds."""

from typing import Any

import pytest
import torch
from conftest import changed
from safetensors.torch import load as load_tensors

from slimsweep.cluster import choose_job
from slimsweep.cluster.choose_job import choose_pace, try_pace
from slimsweep.cluster.tasks import run_tasks
from slimsweep.cluster.worker import job_arguments
from slimsweep.config import Config
from slimsweep.ledger.planning import (
    distinct_paces,
    pace_is_open,
    pace_key,
    paces_tried,
    plan_points,
    search_macs,
    smallest_budget,
)
from slimsweep.ledger.run import Run
from slimsweep.report.page import page_data, read_run
from slimsweep.slimming.budget import Budget
from slimsweep.slimming.structure import Structure


@pytest.mark.usefixtures("ray_cluster")
def test_the_pace_that_is_best_on_validation_holds_for_all_budgets(finished: Run) -> None:
    run = changed(finished, **{"search.paces": [{}, {"mlp": 1.4, "token": 0.5}]})
    assert pace_is_open(run)
    assert choose_pace(run)
    found = run.pace_choice()
    assert found is not None
    assert [one["pace"] for one in found["tried"]] == [pace.model_dump() for pace in run.config.search.paces]
    assert [one["budget"] for one in found["tried"]] == [0.25, 0.25]
    best = max(found["tried"], key=lambda one: one["val_top1"])
    assert run.pace == found["pace"] == best["pace"]
    path = run.path_at(best["pace"])
    for point in plan_points(changed(run, budgets=[0.5, 0.25, 0.12])):  # also for one that was asked for later
        assert point.method == "dense" or Structure.from_json(point.structure) == path.solve(point.budget)
    curves = run.curves()
    assert set(curves[curves.stage == "retrain"].point) == set(run.refresh().rows.point)  # the tries are no points

    run.write_config()
    assert page_data([read_run(Run(run.folder))])["runs"][0]["pace"]["chosen"] == found["pace"]

    assert not pace_is_open(run)
    assert pace_is_open(changed(run, **{"search.floors.mlp": 0.2}))
    assert not pace_is_open(changed(run, **{"search.paces": [{"token": 0.7}]}))

    # It holds for the points that were made with it; before there are any, what it depends on may still change.
    changes: tuple[dict[str, Any], ...] = ({"budgets": [0.5, 0.12]}, {"retrain.lr": 1e-4}, {"search.recovery": 2})
    assert not any(pace_is_open(changed(run, **change)) for change in changes[:2])
    for name in run.rows.point:
        run.delete_row(name)
    assert not pace_is_open(run.refresh())
    assert all(pace_is_open(changed(run, **change)) for change in changes)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_no_more_paces_are_tried_at_a_time_than_trials_may_run(finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run = changed(
        finished,
        **{"search.paces": [{}, {"token": 0.5}, {"mlp": 2.0}], "resources.max_concurrent_trials": 2, "data.limit": 64},
    )
    asked: list[int] = []

    def counted(function: Any, arguments: list[Any], *more: Any) -> list[Any]:
        asked.append(len(arguments))
        return run_tasks(function, arguments, *more)

    monkeypatch.setattr(choose_job, "run_tasks", counted)
    assert choose_pace(run)
    assert asked == [2, 1]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_what_was_begun_at_another_pace_is_begun_anew(finished: Run) -> None:
    run = changed(finished, **{"search.paces": [{}, {"token": 0.5}], "data.limit": 64})
    run.write_pace_choice({"pace": {"attention": 1.0, "mlp": 9.0, "token": 1.0}, "tried": [], "key": "another"})
    for point in ("searched-0.5000-s0-aaaa", "uniform-0.5000-s0-bbbb"):
        run.folder.write_bytes(f"checkpoints/{point}/epoch-00001.safetensors", b"sizes of that pace")
    for name in run.rows.point:
        run.delete_row(name)
    assert pace_is_open(run.refresh())
    assert choose_pace(run)
    assert run.folder.list("checkpoints/searched-0.5000-s0-aaaa") == []
    assert run.folder.list("checkpoints/uniform-0.5000-s0-bbbb") != []


def test_a_pace_of_families_without_gates_is_no_other_pace() -> None:
    default = Config()
    assert len(distinct_paces(default, ["attention", "mlp", "token"])) == len(default.search.paces) == 6
    assert distinct_paces(default, ["attention", "mlp"]) == [{"attention": 1.0, "mlp": 1.0}, {"attention": 1.0, "mlp": 1.4}]
    assert distinct_paces(default, ["mlp"]) == [{"mlp": 1.0}]  # what one family keeps follows from the budget


def test_a_pace_is_tried_by_the_weights_that_were_trained() -> None:
    """A moving average would still be what was cut; and a worker alone holds no more of a batch than each of several."""
    config = Config().changed(
        **{"retrain.ema_decay": 0.9999, "retrain.workers_per_trial": 4, "retrain.accumulate": 2, "retrain.lr": [1e-3, 2e-3]}
    )
    recipe = config.pace_recipe()
    assert (recipe.ema_decay, recipe.accumulate, recipe.lr, recipe.warmup_epochs) == (None, 8, 1e-3, 0)


def test_trying_paces_is_part_of_what_the_search_cost(finished: Run) -> None:
    epochs, path = finished.config.search.epochs, finished.path
    dense = path.shape.full().macs()
    one = changed(finished, **{"search.paces": [{}]})
    assert search_macs(one.config, path, one) == epochs * dense
    three = changed(finished, **{"search.paces": [{}, {"mlp": 2}, {"token": 0.5}], "search.recovery": 2})
    assert search_macs(three.config, path, three) == epochs * dense + 3 * 2 * path.solve(0.25).macs()
    tried = [{"pace": {}, "budget": 0.5, "val_top1": 0.0, "error": ""}] * 2
    three.write_pace_choice({"pace": three.config.search.paces[0].model_dump(), "tried": tried})
    assert search_macs(three.config, path, three) == epochs * dense + 2 * 2 * path.solve(0.5).macs()  # as it was done


def test_the_path_that_is_left_is_the_one_that_points_are_cut_by(finished: Run) -> None:
    for changes in ({}, {"search.paces": [{"mlp": 2}]}, {"search.floors.mlp": 0.3}):
        run = changed(finished, **changes)
        run.write_path()
        left = load_tensors(run.folder.read_bytes("search/path.safetensors"))
        assert all(torch.equal(left[name], tensor) for name, tensor in run.path.tensors().items())


def test_a_pace_whose_training_diverges_is_not_taken(finished: Run) -> None:
    wild = changed(finished, **{"retrain.lr": 1e30, "retrain.clip_grad": None, "search.recovery": 2})
    pace = {"attention": 1.0, "mlp": 1.4, "token": 1.0}
    found = try_pace(job_arguments(wild, pace=pace, until=None))
    assert found is not None
    assert found["val_top1"] == 0
    assert "not finite" in found["error"]
    # With a recipe that works, it is tried again.
    fixed = changed(finished, **{"search.recovery": 2})
    assert try_pace(job_arguments(fixed, pace=pace, until=0.0)) is None


@pytest.mark.parametrize(
    ("budgets", "smallest"),
    [
        ([0.5, 0.25, "10% params"], Budget(0.25)),
        (["60% params", "30% params"], Budget(0.3, "params")),
        ([0.5, "60% params"], Budget(0.5)),
    ],
)
def test_paces_are_compared_at_the_smallest_budget_in_macs_where_there_is_one(
    finished: Run, budgets: list[float | str], smallest: Budget
) -> None:
    run = changed(finished, budgets=budgets, **{"search.paces": [{}, {"mlp": 1.4}]})
    assert smallest_budget(run.config, run.shape) == smallest
    assert paces_tried(run.config, run.shape, run) == (2, smallest)
    structure = run.path.solve(smallest)
    trying = 2 * run.config.search.recovery * structure.macs()
    assert search_macs(run.config, run.path, run) == run.config.search.epochs * run.shape.full().macs() + trying


def test_a_pace_that_was_chosen_holds_where_a_budget_in_parameters_is_added(finished: Run) -> None:
    run = changed(finished, **{"search.paces": [{}, {"mlp": 1.4}]})
    key = pace_key(run)
    assert pace_key(changed(run, budgets=[0.5, 0.25, "10% params"])) == key
    assert pace_key(changed(run, budgets=[0.5])) != key
    assert pace_key(changed(run, budgets=["25% params"])) != key
