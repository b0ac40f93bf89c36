"""Points: what a configuration asks for, with budgets and with shares of the gates, on a finished run of digits."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from conftest import changed
from rich.console import Console

from slimsweep.checks import check_cuts
from slimsweep.cluster.retrain_job import retrain, trial, write_failed
from slimsweep.cluster.worker import data_for, job_arguments
from slimsweep.config import Config, ConfigError
from slimsweep.data import TooManyDamaged
from slimsweep.earlier_start import refuse_incomparable, start_or_continue
from slimsweep.ledger.lock import hold
from slimsweep.ledger.planning import (
    baseline_targets,
    cuts_apart,
    exact_fraction,
    expected_points,
    forget_failed,
    make_plan,
    plan_points,
    points_to_come,
    points_to_do,
    search_macs,
    shares_text,
    to_choose,
)
from slimsweep.ledger.points import Point
from slimsweep.ledger.run import Run
from slimsweep.ledger.status import Status, read_status
from slimsweep.report.page import page_data, read_run
from slimsweep.report.pareto import best_rates
from slimsweep.saved_models import load
from slimsweep.slimming.budget import Budget
from slimsweep.slimming.cost import COSTS
from slimsweep.slimming.cut import slim
from slimsweep.slimming.structure import Structure, params
from slimsweep.tools.display import final_table
from slimsweep.training.dense_model import check_model
from slimsweep.training.evaluate import evaluate_split

BOTH = {"attention": 0.7, "mlp": 0.7}
ALL = {"attention": 0.7, "mlp": 0.5, "token": 0.8}


def expected(run: Run) -> list[Point]:
    return expected_points(run.config, run.shape, run.gates, run.pace)


def status_of(run: Run) -> Status:
    """The status after a driver has written its plan."""
    run.write_plan(make_plan(run.refresh(), "start"))
    return read_status(run)


def test_points_of_one_cut_are_apart_and_each_cut_s_first_one_comes_first(finished: Run) -> None:
    """So that the first one has repaired the cut when the others begin."""
    rates = changed(finished, **{"retrain.lr": [1e-3, 1e-4], "budgets": [0.7, 0.5]})
    planned = [point for point in plan_points(rates) if point.method == "searched"]
    assert [(point.budget, point.lr) for point in planned] == [(0.7, 1e-3), (0.7, 1e-4), (0.5, 1e-3), (0.5, 1e-4)]
    assert [(point.budget, point.lr) for point in cuts_apart(planned)] == [(0.7, 1e-3), (0.5, 1e-3), (0.7, 1e-4), (0.5, 1e-4)]


def keep(run: Run, method: str) -> None:
    """Write that a method which draws nothing keeps the whole model at every budget."""
    for asked in baseline_targets(run):
        run.write_choice(method, asked.budget, asked.unit, None, structure=run.shape.full().to_json(), error="")


def done(run: Run, point: Point, val_top1: float = 50.0) -> None:
    """Write a point's ok row, and look at the rows again."""
    names = ("method", "budget", "unit", "seed", "terms", "shares", "lr", "epochs", "structure")
    dense = Structure.from_json(point.structure).shape.full()
    costs = {"macs": dense.macs(), "macs_dense": dense.macs(), "params": 1, "test_top1": 50.0, "test_top1_untouched": 50.0}
    run.write_row({**{n: getattr(point, n) for n in names}, **costs, "point": point.name, "val_top1": val_top1})
    run.refresh()


def failed(run: Run, point: Point) -> None:
    write_failed(run, point, "the loss is not finite")
    run.refresh()


def test_what_is_expected_is_what_a_run_plans(finished: Run) -> None:
    for changes in ({}, {"shares": [BOTH, ALL]}, {"budgets": [], "shares": [BOTH]}, {"retrain.seeds": [3, 4, 5]}):
        asked = changed(finished, **changes)
        assert expected(asked) == plan_points(asked)
    assert {p.name for p in expected(finished)} == set(finished.rows.point)


def test_every_rate_and_baseline_is_expected_before_anything_is_known(finished: Run) -> None:
    run = changed(
        finished,
        baselines=["uniform", "scratch", "small"],
        baseline_terms=["retraining", "compute"],
        **{"retrain.lr": [1e-3, 3e-3], "retrain.seeds": [0, 1, 2]},
    )
    points = expected(run)
    assert len({p.name for p in points}) == len(points) == (1 + 2 * (2 + 2 * 2)) * (2 + 2)
    assert {(p.seed, p.lr) for p in points} == {(0, 1e-3), (0, 3e-3), (1, 1e-3), (2, 1e-3)}
    searched = {p.budget: p.structure for p in points if p.method == "searched"}
    spent = search_macs(run.config, run.path, run)
    for point in points:
        assert point.method == "dense" or point.structure == searched[point.budget]
        macs = Structure.from_json(point.structure).macs()
        longer = round(spent / (2 * macs)) if point.terms == "compute" else 0
        assert point.epochs == run.config.retrain.epochs + longer


def test_shares_are_points_at_the_macs_that_they_leave(finished: Run) -> None:
    before = plan_points(finished)
    run = changed(finished, shares=[BOTH, ALL])
    points = plan_points(run)
    assert set(before) < set(points)
    new = {p.shares: p for p in points if p not in before}
    assert set(new) == {shares_text(BOTH), shares_text(ALL)}
    for shares in (BOTH, ALL):
        point = new[shares_text(shares)]
        structure = Structure.from_json(point.structure)
        for family, masks in structure.masks.items():
            kept = sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)
            assert kept == pytest.approx(shares.get(family, 1.0), abs=0.02)
        dense = run.shape.full().macs()
        assert point.method == "searched"
        assert point.budget == pytest.approx(structure.macs() / dense)
        assert Budget.parse(point.budget).limit(dense) == structure.macs()
        assert json.loads(point.shares) == shares
        assert point.name.startswith(f"searched-{point.budget:.4f}-attention0.7-mlp")
    assert [p.budget for p in points] == sorted((p.budget for p in points), reverse=True)
    assert {p.name for p in points_to_do(run, points)} == {p.name for p in new.values()}


def test_a_share_and_a_budget_of_the_same_fraction_are_two_points(finished: Run) -> None:
    run = changed(finished, budgets=[], shares=[BOTH], baselines=["uniform", "scratch"])
    (point,) = (p for p in plan_points(run) if p.method == "searched")
    both = changed(run, budgets=[point.budget])
    assert [asked.budget for asked in baseline_targets(both)] == [point.budget]
    keep(both, "uniform")
    points = plan_points(both)
    assert len({p.hash for p in points}) == len({p.name for p in points}) == len(points)
    methods = sorted(p.method for p in points)
    assert methods == ["dense", "scratch", "scratch", "searched", "searched", "uniform"]  # it chooses at a fraction once
    for p in points:
        done(both, p)
    mine = both.rows[both.rows.budget == point.budget]
    assert len(mine) == len(best_rates(mine)) == 5
    assert len(page_data([read_run(both)])["points"]["point"]) == len(both.rows)


@pytest.mark.parametrize("start", ["search", "larger"])
def test_a_rate_that_fails_holds_nothing_up(finished: Run, start: str) -> None:
    run = changed(finished, **{"retrain.start": start, "retrain.seeds": [0, 1], "retrain.lr": [1e-3, 1e-1]})
    while left := [p for p in points_to_do(run, plan_points(run)) if not run.has_row(p.name)]:
        for point in left:
            if point.lr == 1e-3:
                done(run, point)
            else:
                failed(run, point)
    points = plan_points(run)
    assert [(p.budget, p.seed, p.lr) for p in points] == [
        (budget, seed, lr) for budget in (1.0, 0.5, 0.25) for seed, lr in ((0, 1e-3), (0, 1e-1), (1, 1e-3))
    ]
    assert points_to_come(run, points) == 0
    status = status_of(run)
    assert status.finished
    assert status.next == "3 failed points are tried again by the same command"
    # Where no rate works, others wait, and the run is not finished.
    for point in points:
        if point.budget == 1.0 and point.seed == 0:
            failed(run, point)
    assert not status_of(run).finished


def test_what_could_not_be_chosen_has_failed_when_the_driver_is_at_its_end(finished: Run) -> None:
    """As where no try of a pace reaches a budget: its points have failed, and nothing waits for a choice."""
    run = changed(finished, **{"budgets": [0.5, 0.1]})
    for point in points_to_do(run, plan_points(run)):
        failed(run, point)
    plan = make_plan(run.refresh(), "start")
    for over, said in (
        (False, "to be chosen: the pace.*start the same command again"),
        (True, "failed points? (is|are) tried again"),
    ):
        run.write_plan(replace(plan, choosing=("the pace of each family of gates",), over=over))
        status = read_status(run)
        assert re.search(said, status.next)
        assert status.finished == over


def test_rates_may_be_compared_over_all_seeds(finished: Run) -> None:
    """The first seed alone would have taken the other rate."""
    run = changed(
        finished,
        baselines=[],
        **{
            "retrain.start": "larger",
            "retrain.seeds": [0, 1],
            "retrain.lr": [3e-3, 1e-3],
            "retrain.compare_rates": "all seeds",
        },
    )
    while left := points_to_do(run, plan_points(run)):
        for point in left:
            done(run, point, {(3e-3, 0): 51.0, (3e-3, 1): 45.0}.get((point.lr, point.seed), 50.0))
    points = plan_points(run)
    assert [(p.budget, p.seed, p.lr) for p in points] == [
        (budget, seed, lr) for budget in (1.0, 0.5, 0.25) for seed in (0, 1) for lr in (3e-3, 1e-3)
    ]
    assert points_to_come(run, points) == 0
    assert len({p.name for p in points}) == len(points)
    of = {p.name: p for p in points}
    assert {(of[p.start].lr, of[p.start].seed == p.seed) for p in points if p.start} == {(1e-3, True)}
    mine = run.rows[run.rows.point.isin(of)]
    assert set(best_rates(mine).lr) == {1e-3}


def test_a_corrected_recipe_leaves_no_failed_rows_of_the_old_one(finished: Run) -> None:
    more = changed(finished, budgets=[0.5, 0.25, 0.4])
    (broken,) = points_to_do(more, plan_points(more))
    failed(more, broken)
    forget_failed(more, plan_points(more))
    assert more.has_row(broken.name)  # it is tried again
    run = finished.refresh()
    before = set(run.rows.point)
    forget_failed(run, plan_points(run))
    assert before - set(run.rows.point) == {broken.name}
    assert (run.rows.status == "ok").all()
    assert not run.has_row(broken.name)


def test_a_run_is_not_gone_on_with_on_other_classes(finished: Run) -> None:
    start_or_continue(finished)
    dense = finished.folder.read_json("dense/config.json")
    finished.folder.write_json("dense/config.json", {**dense, "label_names": ["ant", "bee", "cow", "dog"]})
    with pytest.raises(
        ConfigError, match=r"other classes \(ant, bee, cow and 1 more\) than digits now has \(0, 1, 2 and 7 more\)"
    ):
        start_or_continue(finished)


def test_points_that_start_from_larger_ones_wait_for_them(finished: Run) -> None:
    run = changed(
        finished,
        budgets=[0.5, 0.25, 0.12],
        baselines=["scratch"],
        **{"retrain.start": "larger", "retrain.seeds": [0, 1], "retrain.lr": [1e-3, 3e-3]},
    )
    planned = plan_points(run)
    assert not {p.hash for p in planned} & set(run.rows.point_hash)  # those started from the search
    assert not [p for p in planned if p.method == "searched"]
    assert points_to_come(run, planned) == len(expected(run)) - len(planned) > 0
    status = status_of(run)
    assert f"{len(expected(run)) - status.count('done')} points are to be done" in status.next

    def searched() -> list[tuple[float, int, str]]:
        return [(p.budget, p.seed, p.start) for p in plan_points(run) if p.method == "searched"]

    dense = [p for p in planned if p.method == "dense"]
    for point in dense:
        done(run, point)
    best = dense[0].name  # the best rate on validation: of equals the one given first
    assert searched() == [(0.5, 0, best), (0.5, 0, best)]
    for point in (begun := [p for p in plan_points(run) if p.method == "searched"]):
        done(run, point)
    larger = begun[0].name
    # Of the second seed nothing is there to start from yet.
    assert searched() == [(0.5, 0, best), (0.5, 0, best), (0.25, 0, larger), (0.25, 0, larger)]

    while left := points_to_do(run, plan_points(run)):
        for point in left:
            done(run, point)
    points = plan_points(run)
    assert {p.name for p in points} == {p.name for p in expected(run)}
    assert points_to_come(run, points) == 0
    assert not any(p.start for p in points if p.method != "searched")
    of = {p.name: p for p in points}
    for point in (p for p in points if p.start):
        start = of[point.start]
        assert (start.budget, start.seed) == ({0.5: 1.0, 0.25: 0.5, 0.12: 0.25}[point.budget], point.seed)
        assert Structure.from_json(start.structure).holds(Structure.from_json(point.structure))


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"budgets": [0.7, 0.5, 0.25]}, "budgets"),
        ({"budgets": [0.5, 0.4, 0.25]}, "budgets"),
        ({"budgets": [0.25]}, "budgets"),
        ({"shares": [BOTH]}, "shares"),
        ({"retrain.lr": [1e-3, 3e-3, 1e-2]}, "retrain.lr"),
        ({"retrain.seeds": [1, 0]}, "first of retrain.seeds"),
        ({"budgets": [0.5, 0.25, 0.12], "retrain.seeds": [0, 1]}, None),
        ({"baselines": ["scratch"]}, None),
    ],
)
def test_no_change_gives_done_points_another_start(finished: Run, changes: dict, refused: str | None) -> None:
    run = changed(finished, **{"retrain.start": "larger", "retrain.lr": [1e-3, 3e-3]})
    while left := points_to_do(run, plan_points(run)):
        for point in left:
            done(run, point)
    before = {p.name for p in plan_points(run)}
    asked = changed(run, **changes)
    if refused is None:
        refuse_incomparable(run.config, asked)
        assert before <= {p.name for p in plan_points(asked)}
        return
    with pytest.raises(ConfigError, match=refused):
        refuse_incomparable(run.config, asked)


def test_an_image_that_could_not_be_read_once_ends_no_later_training(finished: Run) -> None:
    dense = load(finished.folder / "dense")
    data = data_for(finished.config, dense)
    with pytest.raises(TooManyDamaged):
        data.train.damaged.skip({"0.png": "Stale file handle"})
    again = data_for(finished.config, dense)
    assert again is data
    again.train.damaged.add({})


def test_a_point_goes_on_from_the_larger_one(finished: Run) -> None:
    """Its model before training is the larger model, cut further; and it is trained, saved and written like any other."""
    (larger,) = [p for p in plan_points(finished) if (p.method, p.budget) == ("searched", 0.5)]
    (smaller,) = [p for p in plan_points(finished) if (p.method, p.budget) == ("searched", 0.25)]
    point = replace(smaller, start=larger.name, hash="0" * 16)
    plain = changed(finished, **{"search.axes": False, "retrain.repair": False})  # test_starting_model.py has both
    retrain(plain, point, torch.device("cpu"), 0)
    rows = finished.refresh().rows.set_index("point")
    assert rows.loc[point.name, "status"] == "ok"
    cut = slim(load(finished.models / larger.name), Structure.from_json(smaller.structure))
    val = evaluate_split(cut, data_for(finished.config, cut), "val", torch.device("cpu"))
    assert rows.loc[point.name, "val_top1_cut"] == pytest.approx(val.top1)
    assert rows.loc[point.name, "macs"] == rows.loc[smaller.name, "macs"]


def test_baselines_are_held_to_what_shares_leave(finished: Run) -> None:
    run = changed(finished, budgets=[], shares=[BOTH, ALL], baselines=["uniform", "scratch"], baseline_terms=["compute"])
    assert to_choose(run) == [("uniform", 0)]
    keep(run, "uniform")
    assert to_choose(run) == []
    points = plan_points(run)
    searched = {p.budget for p in points if p.method == "searched"}
    uniform = [p for p in points if p.method == "uniform"]
    assert {p.budget for p in uniform} == searched
    assert {p.shares for p in uniform} == {""}
    # Two searched points share the search, and this baseline keeps all.
    assert {p.epochs for p in uniform} == {run.config.retrain.epochs + run.config.search.epochs // 2}


def test_shares_extend_a_finished_run_unless_the_search_is_shared_out_already(finished: Run) -> None:
    refuse_incomparable(finished.config, changed(finished, shares=[BOTH]))
    run = changed(finished, baselines=["uniform"], baseline_terms=["compute"])
    keep(run, "uniform")
    done(run, next(p for p in plan_points(run) if p.terms == "compute"))
    with pytest.raises(ConfigError, match="budgets and shares"):
        refuse_incomparable(run.config, changed(run, shares=[BOTH]))
    refuse_incomparable(run.config, changed(run, budgets=run.config.budgets[:1], shares=[BOTH]))  # as many share it


def test_status_table_and_report_tell_shares(finished: Run) -> None:
    run = changed(finished, shares=[BOTH])
    status = status_of(run)
    (waiting,) = [part for part in status.points if part.state == "waiting"]
    assert "-attention0.7-mlp0.7-" in waiting.name
    (point,) = points_to_do(run, plan_points(run))
    done(run, point)
    assert status_of(run).finished
    assert set(run.rows.shares) == {"", '{"attention":0.7,"mlp":0.7}'}
    console = Console(record=True, width=200)
    console.print(final_table(run, run.rows, 1.0))
    assert "searched attention 0.7 mlp 0.7" in console.export_text()
    assert "".join(page_data([read_run(run)])["points"]["shares"]) == '{"attention":0.7,"mlp":0.7}'


# Budgets in parameters.


def test_a_budget_in_parameters_is_a_point_of_its_own(finished: Run) -> None:
    run = changed(finished, budgets=[0.5, 0.25, "50% params"])
    points = plan_points(run)
    before = plan_points(finished)
    assert set(before) < set(points)
    assert [p.name for p in before] == [f"{p.method}-{p.budget:.4f}-s0-{p.hash[:4]}" for p in before]
    (new,) = (p for p in points if p not in before)
    assert (new.method, new.budget, new.unit) == ("searched", 0.5, "params")
    assert new.name == f"searched-0.5000-params-s0-{new.hash[:4]}"
    structure, dense = Structure.from_json(new.structure), run.shape.full()
    assert 0.49 * dense.params() < structure.params() <= 0.5 * dense.params()
    assert all(mask.all() for mask in structure.masks["token"])  # tokens cost no parameters
    (of_macs,) = (p for p in points if (p.method, p.budget, p.unit) == ("searched", 0.5, "macs"))
    assert len({new.hash, of_macs.hash}) == len({new.rate_group, of_macs.rate_group}) == 2
    assert expected(run) == points
    assert points_to_do(run, points) == [new]


def test_an_amount_of_parameters_is_the_fraction_that_it_allows(finished: Run) -> None:
    dense = finished.shape.full().params()
    run = changed(finished, budgets=[0.5, f"{dense / 2 / 1e6:.6f}M params"])
    (new,) = points_to_do(run, plan_points(run))
    assert new.unit == "params"
    assert new.budget == pytest.approx(0.5, abs=1e-4)
    assert Structure.from_json(new.structure).params() <= dense / 2 + 1


def test_a_method_chooses_for_each_unit(finished: Run) -> None:
    run = changed(finished, budgets=[0.5, "50% params"], baselines=["uniform", "random", "scratch"])
    assert [(asked.budget, asked.unit) for asked in baseline_targets(run)] == [(0.5, "macs"), (0.5, "params")]
    assert to_choose(run) == [("uniform", 0), ("random", 0)]
    kept = {unit: run.path.solve(budget).to_json() for unit, budget in (("macs", 0.5), ("params", "50% params"))}
    for method, seed in (("uniform", None), ("random", 0)):
        run.write_choice(method, 0.5, "macs", seed, structure=kept["macs"], error="")
    assert to_choose(run) == [("uniform", 0), ("random", 0)]
    # A fraction of MACs keeps the file that earlier versions wrote.
    assert "params" not in run.choice_file("uniform", 0.5, "macs", None)
    for method, seed in (("uniform", None), ("random", 0)):
        assert run.choice_file(method, 0.5, "macs", seed) != run.choice_file(method, 0.5, "params", seed)
        run.write_choice(method, 0.5, "params", seed, structure=kept["params"], error="")
    assert to_choose(run) == []
    points = plan_points(run)
    for method in ("searched", "uniform", "random", "scratch"):
        mine = {p.unit: p for p in points if p.method == method}
        assert {unit: p.structure for unit, p in mine.items()} == kept
        assert "-params-" in mine["params"].name
        assert "-params-" not in mine["macs"].name
    assert len({p.name for p in points}) == len({p.hash for p in points}) == len(points) == 1 + 4 * 2


def test_an_earlier_choice_of_a_method_is_still_found(finished: Run) -> None:
    """The names of these files are in run folders: they must not change."""
    run = changed(finished, budgets=[0.5], baselines=["uniform"])
    (key,) = {run.pace_file.removeprefix("search/pace-").removesuffix(".json")}
    run.folder.write_json(f"baselines/uniform-0.500000000-{key}.json", {"structure": run.shape.full().to_json(), "error": ""})
    assert to_choose(run) == []
    (uniform,) = (p for p in plan_points(run) if p.method == "uniform")
    assert uniform.structure == run.shape.full().to_json()


def test_points_in_two_units_are_told_apart_in_rows_tables_and_rates(finished: Run) -> None:
    run = changed(finished, budgets=[0.5, "50% params"], **{"retrain.lr": [1e-3, 3e-3], "retrain.seeds": [0, 1]})
    while left := points_to_do(run, plan_points(run)):
        for point in left:
            done(run, point)
    points = plan_points(run)
    # Each unit tries both rates with the first seed, and takes its own best with the second.
    for unit in ("macs", "params"):
        mine = [(p.seed, p.lr) for p in points if (p.method, p.unit) == ("searched", unit)]
        assert mine == [(0, 1e-3), (0, 3e-3), (1, 1e-3)]
    assert points_to_come(run, points) == 0
    status = status_of(run)
    assert status.finished
    rows = run.rows[run.rows.point.isin([p.name for p in points])]
    assert rows.groupby("unit").size().to_dict() == {"macs": 6, "params": 3}
    best = best_rates(rows)
    assert len(best) == 6
    assert {(row.unit, row.seed) for row in best[best.method == "searched"].itertuples()} == {
        (unit, seed) for unit in ("macs", "params") for seed in (0, 1)
    }
    console = Console(record=True, width=200)
    console.print(final_table(run, rows, 1.0))
    assert "0.50 params" in console.export_text()


def test_a_budget_in_parameters_extends_a_finished_run(finished: Run) -> None:
    """It is cut to that many parameters, trained, and its row says of which cost it is a fraction."""
    run = changed(finished, budgets=[0.5, 0.25, "50% params"])
    start_or_continue(run)
    (point,) = points_to_do(run, plan_points(run))
    retrain(run, point, torch.device("cpu"), 0)
    (row,) = run.refresh().rows[run.rows.point == point.name].to_dict("records")
    assert (row["status"], row["unit"], row["budget"]) == ("ok", "params", 0.5)
    assert row["params"] <= 0.5 * row["params_dense"]
    assert row["params"] == params(load(run.models / point.name))
    assert set(run.rows.unit[run.rows.point != point.name]) == {"macs"}
    assert points_to_do(run, plan_points(run)) == []


@pytest.mark.parametrize("macs", [1, 12_345_677, 3_236_745_984, 4_598_882_303])
def test_an_exact_fraction_allows_what_it_was_made_of(macs: int) -> None:
    assert Budget.parse(exact_fraction(macs, 4_598_882_304)).limit(4_598_882_304) == macs


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"shares": [{"token": 0.5}], "search.families": ["attention", "mlp"]}, ["token", "no token gates", "leave that"]),
        ({"shares": [{"mlp": 0.05}]}, ["'mlp': 0.05", "floors keep", "search.floors"]),
        ({"shares": [{"attention": 0.9999}]}, ["0.9999", "keeps the whole model", "smaller"]),
        ({"shares": [{"mlp": 0.2}, {"attention": 0.2, "mlp": 0.2, "token": 0.2}], "baselines": ["small"]}, []),
    ],
)
def test_shares_that_the_model_cannot_have_are_refused_in_one_sentence(changes: dict, wanted: list[str]) -> None:
    small = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 64, "depth": 4, "num_heads": 4}
    config = Config(model={"name": "vit_tiny_patch16_224", "kwargs": small}, budgets=[], shares=[BOTH]).changed(**changes)
    model = check_model(config)
    if not wanted:
        check_cuts(config, model)
        return
    with pytest.raises(ConfigError) as caught:
        check_cuts(config, model)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("shares holds")
    for part in wanted:
        assert part in text


def test_a_point_that_meets_a_bug_says_its_type_and_where_the_traceback_is(
    finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr("slimsweep.cluster.retrain_job.retrain", broken)
    run = changed(finished, budgets=[0.5, 0.25, 0.35])
    with hold(run):
        (point,) = points_to_do(run, plan_points(run))
        error = trial({"point": asdict(point)}, job_arguments(run, attempt="now", until=None))["error"]
    log = Path(run.uri) / "errors.log"
    assert error == f"IndexError: list index out of range (the whole traceback is in {log})"
    assert "in broken" in log.read_text()
    (row,) = run.refresh().rows[run.rows.point == point.name].to_dict("records")
    assert (row["status"], row["error"]) == ("failed", error)


def test_a_budget_in_two_spellings_is_one_point(finished: Run) -> None:
    macs, size = (cost.of_dense(finished.shape) for cost in (COSTS["macs"], COSTS["params"]))
    assert macs % 2 == size % 2 == 0
    spelled = [0.5, f"{macs // 2 / 1e3!r}K", "50% params", f"{size // 2 / 1e3!r}K params"]
    run = changed(finished, budgets=spelled, baselines=["scratch"])
    names = [point.name.rpartition("-")[0] for point in plan_points(run)]
    assert sorted(names) == sorted(
        ["dense-1.0000-s0", *(f"{m}-0.5000{u}-s0" for m in ("searched", "scratch") for u in ("", "-params"))]
    )


def test_points_that_start_from_larger_ones_go_by_what_is_left_of_the_macs(finished: Run) -> None:
    """A budget in parameters has its place among budgets in MACs by the MACs of its structure."""
    run = changed(finished, budgets=[0.5, 0.25, "30% params"], **{"retrain.start": "larger"})
    points = expected_points(run.config, run.shape, run.gates, run.pace)
    kept = [Structure.from_json(point.structure).macs() for point in points if point.method in ("dense", "searched")]
    assert kept == sorted(kept, reverse=True)
    assert len(kept) == 4


def test_a_budget_between_that_would_change_a_start_is_refused_in_either_unit(finished: Run) -> None:
    """A budget in parameters stands among the others by its MACs, and so does what may be added beside it."""

    def run_with(*budgets: float | str) -> Run:
        run = changed(finished, budgets=list(budgets), **{"retrain.start": "larger"})
        del run.gates["token"]  # as if the search had left tokens alone: then structures of both units are nested
        return run

    run = run_with(0.5, "30% params")
    for _ in range(3):  # the dense point, then the larger one, then what starts from it
        for point in points_to_do(run, plan_points(run)):
            done(run, point)
    larger, of_params = (next(p for p in plan_points(run) if p.budget == budget) for budget in (0.5, 0.3))
    assert of_params.start == larger.name
    share = Structure.from_json(of_params.structure).macs() / run.shape.full().macs()
    refuse_incomparable(run.config, run_with(0.5, "30% params", 0.9 * share))
    with pytest.raises(ConfigError, match="budgets"):
        refuse_incomparable(run.config, run_with(0.5, "30% params", (share + 0.5) / 2))
