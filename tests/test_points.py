"""Points: what a configuration asks for, with budgets and with shares of the gates, on a finished run of digits."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load
from slimsweep.tools.progress import final_table

from slimsweep.cluster.cluster import ray
from slimsweep.cluster.retrain_job import choose_pace, retrain, try_pace, write_failed
from slimsweep.cluster.worker import data_for, load_model
from slimsweep.config import Config, ConfigError
from slimsweep.data import TooManyDamaged
from slimsweep.ledger.points import (
    baseline_budgets,
    check_cuts,
    chosen_pace,
    chosen_path,
    distinct_paces,
    exact_fraction,
    expected_points,
    forget_failed,
    keep_path,
    load_path,
    load_shape,
    pace_is_open,
    pace_path,
    path_at,
    plan_points,
    points_to_come,
    points_to_do,
    search_macs,
    shares_text,
    to_choose,
)
from slimsweep.ledger.tables import read_curves, read_gates_tensors, read_rows, write_row
from slimsweep.report.page import page_data, read_run
from slimsweep.report.pareto import best_rates
from slimsweep.run import begin, compare
from slimsweep.slimming.budget import Budget
from slimsweep.slimming.cut import slim
from slimsweep.slimming.structure import Structure
from slimsweep.storage import Folder
from slimsweep.tools.status import read_config, read_status
from slimsweep.training.dense_model import check_model
from slimsweep.training.evaluate import evaluate_split

BOTH = {"attention": 0.7, "mlp": 0.7}
ALL = {"attention": 0.7, "mlp": 0.5, "token": 0.8}


@pytest.fixture
def finished(small_run: Path, tmp_path: Path) -> tuple[Config, Folder]:
    """A finished sweep of budgets 0.5 and 0.25, to go on with."""
    shutil.copytree(small_run, tmp_path / "small")
    run = Folder(tmp_path / "small")
    return read_config(run), run


def expected(config: Config, run: Folder) -> list:
    shape = load_shape(run)
    return expected_points(config, shape, read_gates_tensors(run, shape), chosen_pace(config, run))


def test_what_is_expected_is_what_a_run_plans(finished: tuple[Config, Folder]) -> None:
    config, run = finished
    for changes in ({}, {"shares": [BOTH, ALL]}, {"budgets": [], "shares": [BOTH]}, {"retrain.seeds": [3, 4, 5]}):
        asked = config.changed(**changes)
        assert expected(asked, run) == plan_points(asked, run)
    assert {p.name for p in expected(config, run)} == set(read_rows(run).point)


def test_every_rate_and_baseline_is_expected_before_anything_is_known(finished: tuple[Config, Folder]) -> None:
    config, run = finished
    asked = config.changed(
        baselines=["uniform", "scratch", "small"],
        baseline_terms=["retraining", "compute"],
        **{"retrain.lr": [1e-3, 3e-3], "retrain.seeds": [0, 1, 2]},
    )
    points = expected(asked, run)
    assert len({p.name for p in points}) == len(points) == (1 + 2 * (2 + 2 * 2)) * (2 + 2)
    assert {(p.seed, p.lr) for p in points} == {(0, 1e-3), (0, 3e-3), (1, 1e-3), (2, 1e-3)}
    searched = {p.budget: p.structure for p in points if p.method == "searched"}
    path = load_path(asked, run)
    spent = search_macs(asked, path, run)
    for point in points:
        assert point.method == "dense" or point.structure == searched[point.budget]
        macs = Structure.from_json(point.structure).macs()
        longer = round(spent / (2 * macs)) if point.terms == "compute" else 0
        assert point.epochs == config.retrain.epochs + longer


def test_shares_are_points_at_the_macs_that_they_leave(finished: tuple[Config, Folder]) -> None:
    config, run = finished
    before = plan_points(config, run)
    points = plan_points(config.changed(shares=[BOTH, ALL]), run)
    assert set(before) < set(points)
    new = {p.shares: p for p in points if p not in before}
    assert set(new) == {shares_text(BOTH), shares_text(ALL)}
    for shares in (BOTH, ALL):
        point = new[shares_text(shares)]
        structure = Structure.from_json(point.structure)
        for family, masks in structure.masks.items():
            kept = sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)
            assert kept == pytest.approx(shares.get(family, 1.0), abs=0.02)
        dense = load_shape(run).full().macs()
        assert point.method == "searched"
        assert point.budget == pytest.approx(structure.macs() / dense)
        assert Budget.parse(point.budget).limit(dense) == structure.macs()
        assert json.loads(point.shares) == shares
        assert point.name.startswith(f"searched-{point.budget:.4f}-attention0.7-mlp")
    assert [p.budget for p in points] == sorted((p.budget for p in points), reverse=True)
    assert {p.name for p in points_to_do(points, run)} == {p.name for p in new.values()}


def test_a_share_and_a_budget_of_the_same_fraction_are_two_points(finished: tuple[Config, Folder]) -> None:
    config, run = finished
    asked = config.changed(budgets=[], shares=[BOTH], baselines=["uniform", "scratch"])
    (point,) = (p for p in plan_points(asked, run) if p.method == "searched")
    both = asked.changed(budgets=[point.budget])
    assert baseline_budgets(both, run) == [point.budget]
    keep(both, run, "uniform")
    points = plan_points(both, run)
    assert len({p.hash for p in points}) == len({p.name for p in points}) == len(points)
    methods = sorted(p.method for p in points)
    assert methods == ["dense", "scratch", "scratch", "searched", "searched", "uniform"]  # it chooses at a fraction once
    for p in points:
        done(run, p)
    rows = read_rows(run)
    mine = rows[rows.budget == point.budget]
    assert len(mine) == len(best_rates(mine)) == 5
    assert len(page_data([read_run(run)])["points"]["point"]) == len(rows)


def keep(config: Config, run: Folder, method: str) -> None:
    for budget in baseline_budgets(config, run):
        text = load_shape(run).full().to_json()
        run.write_json(chosen_path(config, method, budget, 0), {"structure": text, "error": ""})


def done(run: Folder, point) -> None:
    names = ("method", "budget", "seed", "terms", "shares", "lr", "epochs", "structure")
    dense = Structure.from_json(point.structure).shape.full()
    costs = {"macs": dense.macs(), "macs_dense": dense.macs(), "params": 1, "test_top1": 50.0, "test_top1_untouched": 50.0}
    write_row(run, {**{n: getattr(point, n) for n in names}, **costs, "point": point.name, "val_top1": 50.0})


@pytest.mark.usefixtures("ray_cluster")
def test_the_pace_that_is_best_on_validation_holds_for_all_budgets(finished: tuple[Config, Folder]) -> None:
    config, run = finished
    config = config.changed(**{"search.paces": [{}, {"mlp": 1.4, "token": 0.5}]})
    assert pace_is_open(config, run)
    assert choose_pace(config, run)
    found = run.read_json(pace_path(config))
    assert [one["pace"] for one in found["tried"]] == [pace.model_dump() for pace in config.search.paces]
    assert [one["budget"] for one in found["tried"]] == [0.25, 0.25]
    best = max(found["tried"], key=lambda one: one["val_top1"])
    assert chosen_pace(config, run) == found["pace"] == best["pace"]
    shape = load_shape(run)
    path = path_at(config, shape, read_gates_tensors(run, shape), best["pace"])
    for point in plan_points(config.changed(budgets=[0.5, 0.25, 0.12]), run):  # also for one that was asked for later
        assert point.method == "dense" or Structure.from_json(point.structure) == path.solve(point.budget)
    curves = read_curves(run)
    assert set(curves[curves.stage == "retrain"].point) == set(read_rows(run).point)  # the tries are no points

    run.write_bytes("config.yaml", config.to_yaml().encode())
    assert page_data([read_run(run)])["runs"][0]["pace"]["chosen"] == found["pace"]

    assert not pace_is_open(config, run)
    assert pace_is_open(config.changed(**{"search.floors.mlp": 0.2}), run)
    assert not pace_is_open(config.changed(**{"search.paces": [{"token": 0.7}]}), run)

    # It holds for the points that were made with it; before there are any, what it depends on may still change.
    changes = ({"budgets": [0.5, 0.12]}, {"retrain.lr": 1e-4}, {"search.recovery": 2})
    assert not any(pace_is_open(config.changed(**change), run) for change in changes[:2])
    for name in run.list("results"):
        run.delete(f"results/{name}")
    assert not pace_is_open(config, run)
    assert all(pace_is_open(config.changed(**change), run) for change in changes)


@pytest.mark.usefixtures("ray_cluster")
def test_no_more_paces_are_tried_at_a_time_than_trials_may_run(
    finished: tuple[Config, Folder], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = finished
    config = config.changed(
        **{"search.paces": [{}, {"token": 0.5}, {"mlp": 2.0}], "resources.max_concurrent_trials": 2, "data.limit": 64}
    )
    asked: list[int] = []
    get = ray.get
    monkeypatch.setattr(ray, "get", lambda found: asked.append(len(found)) or get(found))
    assert choose_pace(config, run)
    assert asked == [2, 1]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_what_was_begun_at_another_pace_is_begun_anew(finished: tuple[Config, Folder]) -> None:
    config, run = finished
    config = config.changed(**{"search.paces": [{}, {"token": 0.5}], "data.limit": 64})
    worse = {"pace": {"attention": 1.0, "mlp": 9.0, "token": 1.0}, "tried": [], "key": "another"}
    run.write_json(pace_path(config), worse)
    for point in ("searched-0.5000-s0-aaaa", "uniform-0.5000-s0-bbbb"):
        run.write_bytes(f"checkpoints/{point}/epoch-00001.safetensors", b"sizes of that pace")
    for name in run.list("results"):
        run.delete(f"results/{name}")
    assert pace_is_open(config, run)
    assert choose_pace(config, run)
    assert run.list("checkpoints/searched-0.5000-s0-aaaa") == []
    assert run.list("checkpoints/uniform-0.5000-s0-bbbb") != []


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


def test_trying_paces_is_part_of_what_the_search_cost(finished: tuple[Config, Folder]) -> None:
    config, run = finished
    path = load_path(config, run)
    dense = path.shape.full().macs()
    assert search_macs(config.changed(**{"search.paces": [{}]}), path, run) == config.search.epochs * dense
    three = config.changed(**{"search.paces": [{}, {"mlp": 2}, {"token": 0.5}], "search.recovery": 2})
    assert search_macs(three, path, run) == config.search.epochs * dense + 3 * 2 * path.solve(0.25).macs()
    tried = [{"pace": {}, "budget": 0.5, "val_top1": 0.0, "error": ""}] * 2
    run.write_json(pace_path(three), {"pace": three.search.paces[0].model_dump(), "tried": tried})
    assert search_macs(three, path, run) == config.search.epochs * dense + 2 * 2 * path.solve(0.5).macs()  # as it was done


def test_the_path_that_is_left_is_the_one_that_points_are_cut_by(finished: tuple[Config, Folder]) -> None:
    config, run = finished
    for asked in (config, config.changed(**{"search.paces": [{"mlp": 2}]}), config.changed(**{"search.floors.mlp": 0.3})):
        keep_path(asked, run)
        left = load(run.read_bytes("search/path.safetensors"))
        assert all(torch.equal(left[name], tensor) for name, tensor in load_path(asked, run).tensors().items())


def test_a_pace_whose_training_diverges_is_not_taken(finished: tuple[Config, Folder]) -> None:
    config, run = finished
    wild = config.changed(**{"retrain.lr": 1e30, "retrain.clip_grad": None, "search.recovery": 2})
    pace = {"attention": 1.0, "mlp": 1.4, "token": 1.0}
    found = try_pace(wild.model_dump(mode="json"), run.uri, pace)
    assert found is not None
    assert found["val_top1"] == 0
    assert "not finite" in found["error"]
    # Mended, it is tried again.
    assert try_pace(config.changed(**{"search.recovery": 2}).model_dump(mode="json"), run.uri, pace, until=0.0) is None


@pytest.mark.parametrize("start", ["search", "larger"])
def test_a_rate_that_fails_holds_nothing_up(finished: tuple[Config, Folder], start: str) -> None:
    config, run = finished
    asked = config.changed(**{"retrain.start": start, "retrain.seeds": [0, 1], "retrain.lr": [1e-3, 1e-1]})
    while left := [p for p in points_to_do(plan_points(asked, run), run) if not (read_rows(run).point == p.name).any()]:
        for point in left:
            if point.lr == 1e-3:
                done(run, point)
            else:
                write_failed(run, asked, point, "the loss is not finite")
    points = plan_points(asked, run)
    assert [(p.budget, p.seed, p.lr) for p in points] == [
        (budget, seed, lr) for budget in (1.0, 0.5, 0.25) for seed, lr in ((0, 1e-3), (0, 1e-1), (1, 1e-3))
    ]
    assert points_to_come(asked, run, points) == 0
    status = read_status(run, asked)
    assert status.finished
    assert status.next == "3 failed points are tried again by the same command"
    # Where no rate works, others wait, and the run is not finished.
    for point in points:
        if point.budget == 1.0 and point.seed == 0:
            write_failed(run, asked, point, "the loss is not finite")
    assert not read_status(run, asked).finished


def test_a_mended_recipe_leaves_no_failed_rows_of_the_old_one(finished: tuple[Config, Folder]) -> None:
    config, run = finished
    more = config.changed(budgets=[0.5, 0.25, 0.4])
    (broken,) = points_to_do(plan_points(more, run), run)
    write_failed(run, more, broken, "the loss is not finite")
    forget_failed(plan_points(more, run), run)
    assert (read_rows(run).point == broken.name).any()  # it is tried again
    before = read_rows(run)
    forget_failed(plan_points(config, run), run)
    rows = read_rows(run)
    assert set(before.point) - set(rows.point) == {broken.name}
    assert (rows.status == "ok").all()


def test_a_run_is_not_gone_on_with_on_other_classes(finished: tuple[Config, Folder]) -> None:
    config, run = finished
    begin(config, run)
    dense = run.read_json("dense/config.json")
    run.write_json("dense/config.json", {**dense, "label_names": ["ant", "bee", "cow", "dog"]})
    with pytest.raises(
        ConfigError, match=r"other classes \(ant, bee, cow and 1 more\) than digits now has \(0, 1, 2 and 7 more\)"
    ):
        begin(config, run)


def test_points_that_start_from_larger_ones_wait_for_them(finished: tuple[Config, Folder]) -> None:
    config, run = finished
    asked = config.changed(
        budgets=[0.5, 0.25, 0.12],
        baselines=["scratch"],
        **{"retrain.start": "larger", "retrain.seeds": [0, 1], "retrain.lr": [1e-3, 3e-3]},
    )
    assert not {p.hash for p in plan_points(asked, run)} & set(read_rows(run).point_hash)  # those started from the search
    planned = plan_points(asked, run)
    assert not [p for p in planned if p.method == "searched"]
    assert points_to_come(asked, run, planned) == len(expected(asked, run)) - len(planned) > 0
    status = read_status(run, asked)
    assert f"{len(expected(asked, run)) - status.count('done')} points are to be done" in status.next

    def searched() -> list[tuple[float, int, str]]:
        return [(p.budget, p.seed, p.start) for p in plan_points(asked, run) if p.method == "searched"]

    dense = [p for p in planned if p.method == "dense"]
    for point in dense:
        done(run, point)
    best = dense[0].name  # the best rate on validation: of equals the one given first
    assert searched() == [(0.5, 0, best), (0.5, 0, best)]
    for point in (begun := [p for p in plan_points(asked, run) if p.method == "searched"]):
        done(run, point)
    larger = begun[0].name
    # Of the second seed nothing is there to start from yet.
    assert searched() == [(0.5, 0, best), (0.5, 0, best), (0.25, 0, larger), (0.25, 0, larger)]

    while left := points_to_do(plan_points(asked, run), run):
        for point in left:
            done(run, point)
    points = plan_points(asked, run)
    assert {p.name for p in points} == {p.name for p in expected(asked, run)}
    assert points_to_come(asked, run, points) == 0
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
def test_no_change_gives_done_points_another_start(finished: tuple[Config, Folder], changes: dict, refused: str | None) -> None:
    config, run = finished
    config = config.changed(**{"retrain.start": "larger", "retrain.lr": [1e-3, 3e-3]})
    while left := points_to_do(plan_points(config, run), run):
        for point in left:
            done(run, point)
    before = {p.name for p in plan_points(config, run)}
    asked = config.changed(**changes)
    if refused is None:
        compare(config, asked, run)
        assert before <= {p.name for p in plan_points(asked, run)}
        return
    with pytest.raises(ConfigError, match=refused):
        compare(config, asked, run)


def test_an_image_that_could_not_be_read_once_ends_no_later_training(finished: tuple[Config, Folder]) -> None:
    config, run = finished
    dense = load_model(run, "dense")
    data = data_for(config, dense)
    with pytest.raises(TooManyDamaged):
        data.train.damaged.skip({"0.png": "Stale file handle"})
    again = data_for(config, dense)
    assert again is data
    again.train.damaged.add({})


def test_a_point_goes_on_from_the_larger_one(finished: tuple[Config, Folder]) -> None:
    """Its model before training is the larger model, cut further; and it is trained, saved and written like any other."""
    config, run = finished
    (larger,) = [p for p in plan_points(config, run) if (p.method, p.budget) == ("searched", 0.5)]
    (smaller,) = [p for p in plan_points(config, run) if (p.method, p.budget) == ("searched", 0.25)]
    point = replace(smaller, start=larger.name, hash="0" * 16)
    retrain(config, run, point, torch.device("cpu"), 0)
    rows = read_rows(run).set_index("point")
    assert rows.loc[point.name, "status"] == "ok"
    cut = slim(load_model(run, f"models/{larger.name}"), Structure.from_json(smaller.structure))
    val = evaluate_split(cut, data_for(config, cut), "val", torch.device("cpu"))
    assert rows.loc[point.name, "val_top1_cut"] == pytest.approx(val.top1)
    assert rows.loc[point.name, "macs"] == rows.loc[smaller.name, "macs"]


def test_baselines_are_held_to_what_shares_leave(finished: tuple[Config, Folder]) -> None:
    config, run = finished
    asked = config.changed(budgets=[], shares=[BOTH, ALL], baselines=["uniform", "scratch"], baseline_terms=["compute"])
    assert to_choose(asked, run) == [("uniform", 0)]
    keep(asked, run, "uniform")
    assert to_choose(asked, run) == []
    points = plan_points(asked, run)
    searched = {p.budget for p in points if p.method == "searched"}
    uniform = [p for p in points if p.method == "uniform"]
    assert {p.budget for p in uniform} == searched
    assert {p.shares for p in uniform} == {""}
    # Two searched points share the search, and this baseline keeps all.
    assert {p.epochs for p in uniform} == {config.retrain.epochs + config.search.epochs // 2}


def test_shares_extend_a_finished_run_unless_the_search_is_shared_out_already(finished: tuple[Config, Folder]) -> None:
    config, run = finished
    compare(config, config.changed(shares=[BOTH]), run)
    asked = config.changed(baselines=["uniform"], baseline_terms=["compute"])
    keep(asked, run, "uniform")
    done(run, next(p for p in plan_points(asked, run) if p.terms == "compute"))
    with pytest.raises(ConfigError, match="budgets and shares"):
        compare(asked, asked.changed(shares=[BOTH]), run)
    compare(asked, asked.changed(budgets=config.budgets[:1], shares=[BOTH]), run)  # as many share it


def test_status_table_and_report_tell_shares(finished: tuple[Config, Folder]) -> None:
    config, run = finished
    asked = config.changed(shares=[BOTH])
    status = read_status(run, asked)
    (waiting,) = [part for part in status.points if part.state == "waiting"]
    assert "-attention0.7-mlp0.7-" in waiting.name
    (point,) = points_to_do(plan_points(asked, run), run)
    done(run, point)
    assert read_status(run, asked).finished
    rows = read_rows(run)
    assert set(rows.shares) == {"", '{"attention":0.7,"mlp":0.7}'}
    console = Console(record=True, width=200)
    console.print(final_table(rows, asked, run, 1.0))
    assert "searched attention 0.7 mlp 0.7" in console.export_text()
    assert "".join(page_data([read_run(run)])["points"]["shares"]) == '{"attention":0.7,"mlp":0.7}'


@pytest.mark.parametrize("macs", [1, 12_345_677, 3_236_745_984, 4_598_882_303])
def test_an_exact_fraction_allows_what_it_was_made_of(macs: int) -> None:
    assert Budget.parse(exact_fraction(macs, 4_598_882_304)).limit(4_598_882_304) == macs


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"shares": [{"token": 0.5}], "search.families": ["attention", "mlp"]}, ["token", "no token gates", "leave that"]),
        ({"shares": [{"mlp": 0.05}]}, ["'mlp': 0.05", "floors keep", "search.floors"]),
        ({"shares": [{"attention": 0.9999}]}, ["0.9999", "nearest to all", "smaller"]),
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
