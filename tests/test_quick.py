"""A front before any training: points of 0 epochs, --quick, and trained points that join them in the same run."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import QUICK, changed

from slimsweep.config import Config, ConfigError, load_config
from slimsweep.earlier_start import refuse_incomparable
from slimsweep.ledger.planning import expected_points, make_plan, plan_points
from slimsweep.ledger.run import Run
from slimsweep.ledger.status import read_status
from slimsweep.report.page import page_data, read_run
from slimsweep.report.pareto import best_rates, by_series, trained_first
from slimsweep.report.picture import front_figure
from slimsweep.run import main
from slimsweep.slimming.removal_path import equal_gates
from slimsweep.tools.pick import describe, pick

RECIPE = {"retrain.lr": [1e-3, 2e-3], "retrain.seeds": [3, 4], "baselines": ["uniform", "random", "scratch", "small"]}


# Configuration.


def test_quick_trains_nothing_and_keeps_name_budgets_and_data() -> None:
    said = ["--retrain.lr", "[1e-3,2e-3]", "--retrain.seeds", "3,4", "--baselines", "uniform,scratch,small"]
    usual, _ = load_config([*said, "--baseline_terms", "retraining,compute"])
    quick, options = load_config([*said, "--baseline_terms", "retraining,compute", "--quick"])
    assert options.quick
    assert not options.smoke
    assert (quick.search.epochs, quick.search.recovery, quick.retrain.epochs) == (0, 0, 0)
    assert (quick.retrain.rates, quick.retrain.seeds, quick.baselines) == ([1e-3], [3], ["uniform"])
    assert (quick.name, quick.budgets, quick.data, quick.dense) == (usual.name, usual.budgets, usual.data, usual.dense)
    assert quick.search.floors == usual.search.floors

    small, _ = load_config(["--quick", "--smoke"])
    assert (small.name, small.retrain.epochs, small.search.epochs) == ("digits-smoke", 0, 0)
    assert small.data.limit is not None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"baselines": ["uniform", "scratch", "small"]}, "baselines names scratch and small.*retrain.epochs is 0"),
        ({"baselines": ["uniform"], "baseline_terms": ["compute"]}, "baseline_terms names compute.*retrain.epochs is 0"),
        ({"retrain.epochs": -1}, "retrain.epochs"),
    ],
)
def test_what_0_epochs_cannot_mean_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Config().changed(**{"retrain.epochs": 0, **changes})


def test_a_recipe_that_is_not_used_is_no_reason_to_refuse() -> None:
    config = Config().changed(
        **{"retrain.epochs": 0, "retrain.warmup_epochs": 5, "search.recovery": 0, **RECIPE, "baselines": []}
    )
    assert config.pace_recipe().epochs == 0
    assert config.pace_recipe().warmup_epochs == 0


def test_help_explains_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_config(["--help"])
    assert "--quick" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--quick takes no value"):
        load_config(["--quick=yes"])


# Planning, on the folder of a finished sweep.


def test_untrained_points_are_one_per_method_and_budget_and_depend_on_no_recipe(finished: Run) -> None:
    untrained = {"retrain.epochs": 0, "retrain.seeds": [0, 1], "retrain.lr": [1e-3, 2e-3]}
    points = plan_points(changed(finished, **untrained))
    assert [(p.method, p.budget, p.seed, p.epochs) for p in points] == [
        ("dense", 1.0, 0, 0),
        ("searched", 0.5, 0, 0),
        ("searched", 0.25, 0, 0),
    ]
    names = [p.name for p in points]
    for other in ({"retrain.weight_decay": 0.3}, {"retrain.start": "larger"}, {"retrain.lr": 1e-4}):
        assert [p.name for p in plan_points(changed(finished, **{**untrained, **other}))] == names
    assert not set(names) & {p.name for p in plan_points(finished)}
    assert [p.name for p in plan_points(changed(finished, **untrained, **{"retrain.repair": False}))] != names
    assert make_plan(changed(finished, **untrained, **{"retrain.start": "larger"}), "one").later == 0


def test_only_what_is_drawn_differs_between_seeds(finished: Run) -> None:
    config = finished.config.changed(**{"retrain.epochs": 0, "retrain.seeds": [0, 1], "baselines": ["uniform", "random"]})
    shape = finished.shape
    points = expected_points(config, shape, equal_gates(shape), {family: 1.0 for family in shape.gate_shapes})
    seeds = {method: {p.seed for p in points if p.method == method} for method in ("dense", "searched", "uniform", "random")}
    assert seeds == {"dense": {0}, "searched": {0}, "uniform": {0}, "random": {0, 1}}


# What compares.


def with_untrained_rows(run: Run) -> Run:
    """The run as if --quick had made its untrained points: rows like those of trained points, with 0 epochs."""
    quick = changed(run, **{"retrain.epochs": 0})
    rows = run.rows.set_index(["method", "budget"])
    for point in plan_points(quick):
        row = rows.loc[(point.method, point.budget)].dropna().to_dict()
        worse = {"val_top1": row["val_top1"] - 5, "test_top1": row["test_top1"] - 5}
        made = {"point": point.name, "point_hash": point.hash, "epochs": 0, "lr": point.lr, "train_seconds": 0.0, **worse}
        quick.write_row({**row, "method": point.method, "budget": point.budget, **made})
    return quick.refresh()


def test_trained_and_untrained_points_stand_beside_each_other(finished: Run) -> None:
    trained = finished.config
    quick = with_untrained_rows(finished)
    refuse_incomparable(trained, quick)  # --quick on a run with trained points
    refuse_incomparable(quick.config, changed(quick, **{"retrain.epochs": trained.retrain.epochs}))  # and trained again
    with pytest.raises(ConfigError, match=r"retrain\.epochs changed"):
        refuse_incomparable(quick.config, changed(quick, **{"retrain.epochs": 7}))
    with pytest.raises(ConfigError, match=r"retrain\.lr changed"):
        refuse_incomparable(quick.config, changed(quick, **{"retrain.epochs": 1, "retrain.lr": 0.5}))
    with pytest.raises(ConfigError, match="the recipe of retrain"):
        refuse_incomparable(quick.config, changed(quick, **{"retrain.epochs": 1, "retrain.weight_decay": 0.5}))
    with pytest.raises(ConfigError, match=r"search\.floors\.mlp"):
        refuse_incomparable(trained, changed(quick, **{"search.floors.mlp": 0.2}))
    with pytest.raises(ConfigError, match=r"retrain\.epochs changed"):  # of trained points, as ever
        refuse_incomparable(trained, changed(quick, **{"retrain.epochs": 7}))

    for name in quick.rows.point[quick.rows.epochs > 0]:
        quick.delete_row(name)
    quick.refresh()
    for recipe in ({"retrain.epochs": 7}, {"retrain.epochs": 2, **RECIPE, "search.recovery": 3, "retrain.start": "larger"}):
        refuse_incomparable(quick.config, changed(quick, **recipe))
    with pytest.raises(ConfigError, match=r"search\.epochs changed") as refused:
        refuse_incomparable(quick.config.changed(**{"search.epochs": 0}), changed(quick, **{"retrain.epochs": 1}))
    assert "--search.epochs 0" in str(refused.value)


# What is shown.


def test_the_page_has_two_series_and_the_front_is_that_of_trained_points(finished: Run) -> None:
    run = with_untrained_rows(finished)
    assert set(by_series(best_rates(run.rows)).method) == {"dense", "searched"} | {
        f"{method}, before retraining" for method in ("dense", "searched")
    }
    run.write_config()
    tables = read_run(Run(run.folder))
    data = page_data([tables])
    assert set(data["untrained"]) == {"dense, before retraining", "searched, before retraining"}
    looks = data["looks"]
    assert looks["searched, before retraining"]["hollow"]
    assert looks["searched, before retraining"]["light"] == looks["searched"]["light"]
    assert "dense, before retraining" not in {row["method"] for row in data["runs"][0]["hypervolume"]}
    assert {"name": "val_top1_cut", "axis": "y"}.items() <= next(
        c for c in data["columns"] if c["name"] == "val_top1_cut"
    ).items()
    # A front that an untrained point would be on: cheaper and better than all.
    best = tables.results.assign(test_top1=tables.results.test_top1.where(tables.results.epochs > 0, 100.0))
    shown = trained_first(by_series(best))
    assert (shown.epochs > 0).all()
    assert len(trained_first(best[best.epochs == 0])) == 3
    lines = [trace for trace in front_figure(tables).data if trace.mode == "lines"]
    assert "dot" in {trace.line.dash for trace in lines}

    for row in run.rows[run.rows.epochs == 0].point:
        assert row in {p.name for p in plan_points(run)}
    run.write_plan(make_plan(run, "one", over=True))
    assert {p.note for p in read_status(Run(run.folder)).points} == {"untrained"}


def test_pick_prefers_trained_points_and_says_when_it_has_none() -> None:
    rows = pd.DataFrame(
        {
            "point": ["whole", "cut", "trained"],
            "method": ["dense", "searched", "searched"],
            "budget": [1.0, 0.25, 0.5],
            "seed": [0, 0, 0],
            "lr": [1e-3] * 3,
            "status": ["ok"] * 3,
            "epochs": [0, 0, 5],
            "macs": [1000, 250, 500],
            "macs_dense": [1000] * 3,
            "params": [20, 5, 10],
            "params_dense": [20] * 3,
            "val_top1": [90.0, 85.0, 80.0],
        }
    )
    found = pick(rows, limits={"macs": 0.6})
    assert found.point == "trained"
    assert "not trained" not in describe(found)
    found = pick(rows, limits={"macs": 0.3})
    assert found.point == "cut"
    assert "not trained after the cut" in describe(found)
    assert pick(rows, min_top1=79).point == "trained"


# A whole run.


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_front_before_training_and_the_same_run_with_trained_points(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paces = '[{}, {"token": 0.5}]'
    words = [*QUICK, "--output", str(tmp_path), "--name", "front", "--budgets", "0.5", "--search.paces", paces]
    words += ["--baselines", "uniform,small"]
    assert main([*words, "--quick"]) == 0
    said = capsys.readouterr().out
    assert "searched, before retraining" in said
    assert "right after the cut" in said
    run = Run(tmp_path / "front")
    first = run.rows
    assert list(first.method) == ["dense", "searched", "uniform"]
    assert (first.epochs == 0).all()
    assert (first.samples_seen == 0).all()
    assert (first.train_seconds == 0).all()
    assert (first.val_top1 == first.val_top1_cut).all()
    dense = first[first.method == "dense"].iloc[0]
    assert dense.test_top1 == dense.test_top1_untouched
    assert first.repair_seconds[first.method == "searched"].item() > 0
    for point in first.point:
        assert [row["epoch"] for row in run.curve(point)] == [0]
        assert (run.folder / run.model_path(point)).exists()
    choice = run.pace_choice()
    assert choice is not None
    assert len(choice["tried"]) == 2
    assert choice["tried"][0]["val_top1"] > 0

    assert main(words) == 2  # another search
    assert "--search.epochs 0" in " ".join(capsys.readouterr().out.split())
    assert main([*words, "--search.epochs", "0"]) == 0
    rows = Run(tmp_path / "front").rows
    kept = rows[rows.point.isin(first.point)].set_index("point").loc[first.point]
    assert list(kept.created_at) == list(first.created_at)
    trained = rows[rows.epochs > 0]
    assert sorted(trained.method) == ["dense", "searched", "small", "uniform"]
    assert trained.train_seconds.min() > 0
    assert main([*words, "--quick"]) == 0
    assert len(Run(tmp_path / "front").rows) == len(rows)
