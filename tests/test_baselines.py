"""The baselines: what each keeps and starts from, on equal terms with the search, and the plan over learning rates."""

import itertools
import json
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
import timm
import torch
from conftest import QUICK, changed
from zoo import random_gates

from slimsweep import add_gates, load, macs, solve
from slimsweep.cluster.choose_job import choose_structure
from slimsweep.cluster.retrain_job import trial
from slimsweep.cluster.worker import data_for, job_arguments
from slimsweep.config import Config, ConfigError
from slimsweep.data import training_images
from slimsweep.earlier_start import refuse_incomparable
from slimsweep.ledger.damage import damaged_models
from slimsweep.ledger.lock import hold
from slimsweep.ledger.planning import (
    baseline_targets,
    make_plan,
    one_of_each,
    plan_points,
    points_to_do,
    take_equal_results,
    to_choose,
)
from slimsweep.ledger.points import Point
from slimsweep.ledger.run import Run
from slimsweep.ledger.status import read_status
from slimsweep.methods.random_order import random_scores
from slimsweep.report.page import page_data, read_run
from slimsweep.run import main
from slimsweep.slimming.gates import GatedModel
from slimsweep.slimming.structure import Structure

SMALL = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 64, "depth": 4, "num_heads": 4}
BASE = {"name": "x", "model": {"name": "vit_tiny_patch16_224", "kwargs": SMALL}, "budgets": [0.5, 0.25]}


def test_images_for_gradients_are_the_same_each_time_and_without_augmentation():
    config = Config(name="x", model={"name": "vit_tiny_patch16_224", "kwargs": SMALL}, data={"limit": 300})
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, **SMALL)
    data = data_for(config, model)
    (x, y), (again, _) = training_images(data, config.seed), training_images(data, config.seed)
    assert torch.equal(x, again)
    assert x.shape == (300, 1, 8, 8)
    assert data.train.view.random  # while training images are not the same each time
    assert y.unique().tolist() == list(range(10))


def small_gated() -> GatedModel:
    return add_gates(timm.create_model("vit_tiny_patch16_224", num_classes=10, **SMALL))


def searched_run(folder: Path, config: Config) -> Run:
    """A run folder as a search leaves it, as far as a plan reads it."""
    run, gated = Run(folder, config), small_gated()
    run.write_search(gated.shape, random_gates(gated), None, weights=b"", axes_seconds=0.0)
    return run


def write_choice(run: Run, method: str) -> None:
    """Write that a method which draws nothing keeps, at each budget, whatever is drawn here."""
    gated = small_gated()
    for asked in baseline_targets(run):
        structure = solve(gated, asked.budget, scores=random_scores(gated.shape, 0))
        run.write_choice(method, asked.budget, asked.unit, None, structure=structure.to_json(), error="")


def done(run: Run, point: Point, top1: float = 50.0, status: str = "ok") -> None:
    """Write a point's row, and look at the rows again."""
    row = {name: getattr(point, name) for name in ("method", "budget", "unit", "seed", "terms", "lr", "epochs")}
    run.write_row({**row, "point": point.name, "status": status, "val_top1": top1 if status == "ok" else None})
    run.refresh()


def test_compute_terms_are_points_of_their_own_with_the_epochs_that_the_search_cost(tmp_path: Path):
    config = Config(
        **BASE,
        baselines=["uniform", "scratch"],
        baseline_terms=["retraining", "compute"],
        search={"epochs": 40, "paces": [{}]},
        retrain={"epochs": 10},
    )
    run = searched_run(tmp_path, config)
    assert {p.method for p in plan_points(run)} == {"dense", "searched", "scratch"}  # others are still to be chosen
    assert to_choose(run) == [("uniform", 0)]
    write_choice(run, "uniform")
    points = plan_points(run)
    assert to_choose(run) == []
    assert len({p.hash for p in points}) == len({p.name for p in points}) == len(points) == 1 + 4 * 2
    assert all(p.epochs == 10 for p in points if p.terms == "retraining")
    longer = [p for p in points if p.terms == "compute"]
    assert [p.method for p in longer] == ["uniform", "uniform"]  # scratch uses what the search found
    for point in longer:
        assert point.name.startswith(f"uniform-compute-{point.budget:.4f}-s0-")
        structure = Structure.from_json(point.structure)
        assert point.epochs == 10 + round(40 * structure.shape.full().macs() / 2 / structure.macs())


def test_points_that_are_trained_alike_are_trained_once_and_lost_together(tmp_path: Path):
    """Where the search cost less than an epoch, equal compute is equal retraining."""
    config = Config(
        **{**BASE, "budgets": [0.9, 0.8, 0.25]},
        baselines=["uniform"],
        baseline_terms=["retraining", "compute"],
        search={"epochs": 1, "paces": [{}]},
        retrain={"epochs": 10},
    )
    run = searched_run(tmp_path, config)
    write_choice(run, "uniform")
    points = plan_points(run)
    wave = one_of_each(points_to_do(run, points))
    assert [(p.budget, p.epochs) for p in wave if p.terms == "compute"] == [(0.25, 11)]
    for point in wave:
        model = run.model_path(point.name)
        done(run, point, 80.0 + point.budget)
        run.write_row({**run.row(point.name), "model_path": model, "model_bytes": 5})
        for file in ("model.safetensors", "config.json"):
            run.folder.write_bytes(f"{model}/{file}", b"whole" if file == "model.safetensors" else b"{}")
    assert take_equal_results(run.refresh(), points) == 2
    assert points_to_do(run, points) == []
    assert take_equal_results(run, points) == 0
    of = {p.name: p for p in points}
    for point in points:
        twin = next(p for p in wave if p.training == point.training)
        differ = {key for key, value in run.row(point.name).items() if value != run.row(twin.name)[key]}
        assert differ == (set() if point is twin else {"point", "terms", "point_hash"})
        assert run.row(point.name)["point"] in of
    broken = next(p for p in wave if p.method == "uniform" and p.budget == 0.9)
    run.folder.write_bytes(f"{run.model_path(broken.name)}/model.safetensors", b"cut")
    lost = [of[name] for name in damaged_models(run) if of[name].training == broken.training]
    assert {p.terms for p in lost} == {"retraining", "compute"}


def test_one_rate_names_points_as_ever_and_baselines_change_no_other_point(tmp_path: Path):
    plain = searched_run(tmp_path, Config(**BASE))
    before = plan_points(plain)
    more = changed(plain, baselines=["uniform"], baseline_terms=["compute", "retraining"], **{"retrain.lr": [5e-4]})
    write_choice(more, "uniform")
    assert more.config.retrain.lr == 5e-4
    assert set(before) <= set(plan_points(more))
    assert [p.name for p in before] == [f"{p.method}-{p.budget:.4f}-s0-{p.hash[:4]}" for p in before]


def test_the_first_seed_tries_every_rate_and_the_others_take_the_best(tmp_path: Path):
    run = searched_run(tmp_path, Config(**BASE, retrain={"lr": [1e-3, 3e-3], "seeds": [5, 6, 7]}))
    first = plan_points(run)
    assert Counter((p.method, p.budget) for p in first) == {("dense", 1.0): 2, ("searched", 0.5): 2, ("searched", 0.25): 2}
    assert {p.seed for p in first} == {5}
    assert all(f"-lr{p.lr:g}-" in p.name for p in first)
    half = [p for p in first if p.budget == 0.5]
    done(run, half[0], 80.0)
    assert plan_points(run) == first  # one of two rates says nothing yet
    done(run, half[1], 0, status="failed")
    new = [p for p in plan_points(run) if p not in first]
    assert {(p.seed, p.lr, p.budget) for p in new} == {(6, half[0].lr, 0.5), (7, half[0].lr, 0.5)}
    done(run, half[1], 81.0)  # tried again, it ended
    points = plan_points(run)
    new = [p for p in points if p not in first]
    assert {(p.seed, p.lr, p.budget) for p in new} == {(6, half[1].lr, 0.5), (7, half[1].lr, 0.5)}
    assert plan_points(run) == points
    assert {p.name for p in points_to_do(run, points)} == {p.name for p in points} - {p.name for p in half}


def test_a_point_at_one_rate_is_the_same_whichever_others_are_tried(tmp_path: Path):
    two = searched_run(tmp_path, Config(**BASE, retrain={"lr": [1e-3, 3e-3]}))
    three = changed(two, **{"retrain.lr": [3e-3, 1e-3, 1e-2]})
    assert set(plan_points(two)) < set(plan_points(three))


def test_a_list_of_rates_may_grow_but_not_lose_what_was_trained(tmp_path: Path):
    run = searched_run(tmp_path, Config(**BASE, retrain={"lr": [1e-3, 3e-3]}))
    for point in plan_points(run):
        done(run, point, status="ok" if point.lr == 1e-3 else "failed")
    refuse_incomparable(run.config, changed(run, **{"retrain.lr": [1e-3, 1e-2]}))
    for other in ([3e-3, 1e-2], 1e-3):
        with pytest.raises(ConfigError, match=r"retrain\.lr changed"):
            refuse_incomparable(run.config, changed(run, **{"retrain.lr": other}))


def test_budgets_are_fixed_once_they_share_the_search(tmp_path: Path):
    run = searched_run(tmp_path, Config(**BASE, baselines=["uniform"], baseline_terms=["compute"]))
    write_choice(run, "uniform")
    points = plan_points(run)
    more = {"budgets": [0.5, 0.25, 0.1]}
    done(run, points[0])
    refuse_incomparable(run.config, changed(run, **more))
    done(run, next(p for p in points if p.terms == "compute"))
    with pytest.raises(ConfigError, match="budgets"):
        refuse_incomparable(run.config, changed(run, **more))
    refuse_incomparable(run.config, changed(run, budgets=[0.5, 0.3]))  # as many share it


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"retrain": {"lr": [1e-3, 1e-3]}}, "twice"),
        ({"retrain": {"lr": []}}, "rate above 0"),
        ({"retrain": {"lr": [1e-3, -1]}}, "rate above 0"),
        ({"retrain": {"lr": "fast"}}, "retrain.lr"),
        ({"retrain": {"lr": [1e-3, 1e-7]}}, "retrain.min_lr"),
        ({"baseline_terms": []}, "retraining, compute, or both"),
        ({"baseline_terms": ["computing"]}, "did you mean compute"),
    ],
)
def test_terms_and_rates_that_mean_nothing_are_refused(fields: dict, named: str):
    with pytest.raises(ConfigError, match=named):
        Config(**BASE, **fields)


def test_rates_are_read_from_text():
    assert Config(**BASE, retrain={"lr": "1e-3, 3e-3"}).retrain.rates == [1e-3, 3e-3]
    assert Config(**BASE, retrain={"lr": "1e-3"}).retrain.lr == 1e-3


# On a real Ray.


def trained(run: Path) -> Counter:
    lines = [json.loads(line) for line in (run / "epochs.log").read_text().splitlines()]
    return Counter(entry["point"] for entry in lines if entry["point"])


@pytest.mark.slow
def test_a_sweep_with_baselines_terms_and_rates_finishes_and_is_not_trained_again(small_run: Path, tmp_path: Path):
    shutil.copytree(small_run, tmp_path / "small")
    shutil.rmtree(tmp_path / "small" / "results")  # only its search is gone on from
    arguments = ["--output", str(tmp_path), "--name", "small", "--budgets", "0.5", *QUICK]
    arguments += ["--baselines", "uniform,small", "--baseline_terms", "retraining,compute"]
    arguments += ["--retrain.lr", "1e-3,3e-3", "--retrain.seeds", "2"]
    assert main(arguments) == 0
    run = tmp_path / "small"
    rows = Run(run).rows
    assert (rows.status == "ok").all()
    series = rows.groupby(["method", "terms"])
    assert sorted(series.groups) == sorted(
        [
            ("dense", "retraining"),
            ("searched", "retraining"),
            *itertools.product(("small", "uniform"), ("compute", "retraining")),
        ]
    )
    for _, group in series:
        first, second = group[group.seed == 0], group[group.seed == 1]
        assert set(first.lr) == {1e-3, 3e-3}
        assert len(second) == 1
        assert second.lr.item() in first.lr[first.val_top1 == first.val_top1.max()].to_numpy()
    counts = trained(run)
    for row in rows.itertuples():
        assert counts[row.point] == row.epochs
        assert row.samples_seen == row.epochs * 256
        assert row.macs <= row.budget * row.macs_dense
        model = load(run / row.model_path)
        assert macs(model) == row.macs == Structure.from_json(row.structure).macs()
    longer = rows[rows.terms == "compute"]
    assert (longer.epochs == 1 + (2 * longer.macs_dense / longer.macs).round()).all()
    assert read_status(Run(run)).finished
    assert "uniform, equal compute" in _methods_of_page(run)
    assert main(arguments) == 0
    assert trained(run) == counts
    pd.testing.assert_frame_equal(Run(run).rows, rows)


def _methods_of_page(run: Path) -> list[str]:
    data = page_data([read_run(Run(run))])
    assert len(data["points"]["point"]) == 2 * 6  # a point a method, terms and seed: the best rate
    assert {entry["method"] for entry in data["runs"][0]["hypervolume"]} == set(data["methods"]) - {"dense"}
    return data["methods"]


def test_a_budget_that_a_baseline_cannot_meet_is_a_failed_row_with_the_reason(small_run: Path, tmp_path: Path):
    shutil.copytree(small_run, tmp_path / "small")
    run = changed(Run(tmp_path / "small"), baselines=["torch-pruning"], baseline_terms=["retraining", "compute"])
    for budget in run.config.budgets:
        run.write_choice("torch-pruning", budget, "macs", None, structure="", error="give a larger budget")
    points = points_to_do(run, plan_points(run))
    assert len({p.name for p in points}) == 4
    with hold(run):
        for point in points:
            arguments = job_arguments(run, attempt="start", until=None)
            assert trial({"point": asdict(point)}, arguments) == {"error": "give a larger budget"}
    rows = run.refresh().rows
    failed = rows[rows.status == "failed"]
    assert set(failed.point) == {p.name for p in points}
    assert set(failed.error) == {"give a larger budget"}
    assert to_choose(run) == []
    assert to_choose(run, again=True) == [("torch-pruning", 0)]  # the next start tries again
    run.write_plan(make_plan(run, "start"))
    status = read_status(run)
    assert (status.finished, status.count("done"), status.count("failed")) == (True, 3, 4)


def test_a_method_that_breaks_while_it_chooses_costs_only_its_own_points(small_run: Path, tmp_path: Path, monkeypatch):
    shutil.copytree(small_run, tmp_path / "small")
    run = changed(Run(tmp_path / "small"), baselines=["taylor", "uniform"])

    def broken(*args: object, **options: object) -> None:
        raise IndexError("no such channel")

    monkeypatch.setattr("slimsweep.methods.taylor.taylor_scores", broken)
    with hold(run):
        for method in ("taylor", "uniform"):
            choose_structure(job_arguments(run, method=method, seed=0))
    points = points_to_do(run.refresh(), plan_points(run))
    assert {p.method for p in points if p.structure} == {"uniform"}
    assert {p.method for p in points if not p.structure} == {"taylor"}
    assert "taylor could not choose what to keep: IndexError: no such channel" in run.choice_error("taylor", 0.5, "macs", None)
    assert "no such channel" in (run.folder.read_bytes("errors.log")).decode()


@pytest.mark.slow  # test_run.py and test_upgrade.py extend runs too
def test_a_finished_run_is_extended_by_baselines_and_only_those_are_trained(small_run: Path, tmp_path: Path):
    shutil.copytree(small_run, tmp_path / "small")
    arguments = ["--output", str(tmp_path), "--name", "small", "--budgets", "0.5,0.25", *QUICK]
    before = trained(tmp_path / "small")
    baselines = "taylor,random,scratch"
    assert main([*arguments, "--baselines", baselines]) == 0
    rows = Run(tmp_path / "small").rows
    new = trained(tmp_path / "small") - before
    assert set(new) == set(rows.point[rows.method.isin(baselines.split(","))])
    assert len(new) == 6
    assert (rows.status == "ok").all()
