"""retrain.stopping: rates that are behind at equal epochs are stopped, and never chosen, shown as results or trained again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from slimsweep.cluster.stopping import EPOCH, QUALITY, StopRates, point_of
from slimsweep.config import Config, ConfigError, Retrain
from slimsweep.ledger.points import Point

RATES = (1e-4, 1e-3, 1e-2)


def points_of(method: str = "searched", budget: float = 0.5, **more: Any) -> list[Point]:
    """A point per rate."""
    known: dict[str, Any] = {"seed": 0, "structure": "", "epochs": 8, "one_of_rates": True, **more}
    return [Point(method=method, budget=budget, lr=lr, hash=f"{method}{budget}{lr:g}{known}", **known) for lr in RATES]


@dataclass(frozen=True)
class Trial:
    """As much of Tune's trial as a scheduler looks at."""

    trial_id: str
    config: Mapping[str, Any]

    @staticmethod
    def of(point: Point) -> "Trial":
        return Trial(point.hash, {"point": vars(point)})


def stopped_of(
    curves: Mapping[Point, list[float]],
    recipe: Retrain,
    earlier: Mapping[Point, Mapping[int, float]] | None = None,
) -> dict[Point, int]:
    """The epoch after which each point is stopped, where all trials train side by side, in the order given."""
    stopped: dict[Point, int] = {}
    scheduler = StopRates(recipe, list(curves), stopped.__setitem__, earlier or {})
    trials = {point: Trial.of(point) for point in curves}
    for trial in trials.values():
        assert point_of(trial) in curves
        scheduler.on_trial_add(None, trial)
    for epoch in range(max(point.epochs for point in curves)):
        for point, curve in curves.items():
            if point in stopped or epoch >= point.epochs:
                continue
            decision = scheduler.on_trial_result(None, trials[point], {EPOCH: epoch + 1, QUALITY: curve[epoch]})
            assert (decision == "STOP") == (point in stopped)
    return stopped


def rising(best: float) -> list[float]:
    return [best * (epoch + 1) / 8 for epoch in range(8)]


ASHA = Retrain(epochs=8, lr=list(RATES), stopping="asha")


def test_a_rate_that_is_behind_is_stopped_and_the_best_one_never() -> None:
    low, best, high = points_of()
    stopped = stopped_of({best: rising(90.0), low: rising(80.0), high: rising(20.0)}, ASHA)
    assert stopped == {low: 2, high: 2}


def test_nothing_is_stopped_before_the_first_comparison() -> None:
    low, best, high = points_of()
    recipe = ASHA.model_copy(update={"grace_epochs": 5})
    assert stopped_of({best: rising(90.0), low: rising(80.0), high: rising(20.0)}, recipe) == {low: 5, high: 5}
    assert ASHA.model_copy(update={"warmup_epochs": 4}).first_comparison(8) == 5
    assert ASHA.first_comparison(300) == 75


def test_nothing_is_stopped_after_its_last_epoch() -> None:
    """It would be thrown away for nothing."""
    low, best, high = points_of()
    recipe = ASHA.model_copy(update={"grace_epochs": 1, "warmup_epochs": 0})
    late = [50.0] * 7
    assert stopped_of({best: [*late, 90.0], low: [*late, 10.0], high: [*late, 5.0]}, recipe) == {}


@pytest.mark.parametrize(
    "other",
    [
        {"budget": 0.3},
        {"method": "uniform"},
        {"terms": "compute"},
        {"unit": "params"},
        {"seed": 1},
        {"shares": '{"mlp":0.5}'},
    ],
    ids=lambda change: next(iter(change)),
)
def test_points_of_another_method_budget_terms_or_seed_are_no_rivals(other: dict[str, Any]) -> None:
    good, bad = points_of()[0], points_of(**other)[0]
    assert stopped_of({good: rising(90.0), bad: rising(10.0)}, ASHA) == {}


def test_points_of_more_epochs_are_compared_at_equal_epochs() -> None:
    low, best, _ = points_of(terms="compute", epochs=16)
    assert stopped_of({best: [50.0] * 16, low: [40.0] * 16}, ASHA) == {low: 4}


def test_what_an_earlier_start_trained_counts() -> None:
    low, best, high = points_of()
    earlier = {best: {0: 1.0, **{epoch: 90.0 for epoch in range(1, 9)}}}
    assert stopped_of({low: rising(80.0)}, ASHA, earlier) == {low: 2}
    assert stopped_of({replace(high, budget=0.3): rising(80.0)}, ASHA, earlier) == {}


def test_tune_saves_the_scheduler_without_the_run() -> None:
    """Tune pickles its settings at the start of a sweep; what is called for a stopped point holds locks and files."""
    import threading

    from ray import cloudpickle

    lock = threading.Lock()
    scheduler = StopRates(ASHA, points_of(), lambda point, epoch: lock.release(), {})
    assert isinstance(cloudpickle.loads(cloudpickle.dumps(scheduler)), StopRates)


# What is refused.


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"compare_rates": "all seeds"}, "compare_rates"),
        ({"workers_per_trial": 2}, "workers_per_trial is 2"),
        ({"stopping": "median"}, "retrain.stopping is 'median'"),
        ({"reduction_factor": 1.0}, "reduction_factor"),
    ],
)
def test_settings_that_cannot_work_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Config(retrain={"stopping": "asha", "lr": [1e-4, 1e-3], "epochs": 8, **values})


def test_a_setting_without_effect_is_said() -> None:
    several = Config(retrain={"stopping": "asha", "lr": [1e-4, 1e-3], "epochs": 8})
    assert several.nothing_to_stop() == ""
    assert "single rate" in several.changed(**{"retrain.lr": 1e-3}).nothing_to_stop()
    assert "grace_epochs" in several.changed(**{"retrain.grace_epochs": 8}).nothing_to_stop()
    assert Config().nothing_to_stop() == ""


def test_stopping_changes_no_name_of_a_point() -> None:
    plain = Config(retrain={"lr": [1e-4, 1e-3]})
    stopping = plain.changed(**{"retrain.stopping": "asha", "retrain.grace_epochs": 3, "retrain.reduction_factor": 3.0})
    assert plain.fingerprint("retrain") == stopping.fingerprint("retrain")


# A run with a stopped point.


@pytest.fixture
def stopped_run(tmp_path: Path) -> Any:
    """A finished run with two rates per method and budget, of which the second was stopped: (run, points by rate)."""
    import shutil

    from slimsweep.cluster.retrain_job import write_stopped
    from slimsweep.ledger.planning import make_plan, plan_points
    from slimsweep.ledger.run import Run

    folder = shutil.copytree(Path(__file__).parent / "data" / "finished-run", tmp_path / "finished")
    run = Run(folder)
    rows = {(row["method"], f"{row['budget']:.6f}"): row for row in run.rows.to_dict("records")}
    config = run.config.changed(**{"retrain.lr": [1e-3, 1e-2], "retrain.stopping": "asha", "retrain.seeds": 2})
    run.take_config(config)
    points = [point for point in plan_points(run) if point.seed == 0]
    for name in {row["point"] for row in rows.values()}:
        run.delete_row(name)
    for point in points:
        old = rows[point.method, f"{point.budget:.6f}"]
        last = point.epochs if point.lr == 1e-3 else 1
        curve = run.curve(old["point"])[: last + 1]
        run.write_curve(point.name, [{**row, "point": point.name} for row in curve])
        if point.lr == 1e-3:
            run.write_row({**old, "point": point.name, "point_hash": point.hash, "lr": point.lr})
        else:
            run.folder.write_bytes(f"checkpoints/{point.name}/epoch-00001-0-ab.safetensors", b"1")
            write_stopped(run, point, 1)
    run.refresh()
    run.write_config()
    run.write_plan(make_plan(run, "start"))
    return run, points


def test_a_stopped_point_is_not_trained_again_and_its_rate_is_not_chosen(stopped_run: Any) -> None:
    from slimsweep.ledger.planning import plan_points, points_to_do

    run, points = stopped_run
    planned = plan_points(run)
    assert {point.lr for point in planned if point.seed == 1} == {1e-3}  # the other seeds train at the best rate
    assert {point.seed for point in points_to_do(run, planned)} == {1}
    assert not any(run.folder.list(f"checkpoints/{point.name}") for point in points)
    # Without stopping, all rates are trained to their end.
    run.take_config(run.config.changed(**{"retrain.stopping": None}))
    assert {(point.lr, point.seed) for point in points_to_do(run, plan_points(run))} == {(1e-2, 0)}


def test_rates_that_were_stopped_go_on_where_all_that_were_ahead_failed(stopped_run: Any) -> None:
    from slimsweep.cluster.retrain_job import scheduler_of, write_failed
    from slimsweep.ledger.planning import go_on_with_stopped, make_plan, plan_points, points_to_do

    run, points = stopped_run
    planned = plan_points(run)
    assert go_on_with_stopped(run, planned) == set()  # each has a rate that ended well
    behind = next(point for point in points if point.lr == 1e-2 and point.method == "searched")
    ahead = next(point for point in points if point.lr == 1e-3 and point.rate_group == behind.rate_group)
    run.delete_row(ahead.name)
    assert go_on_with_stopped(run.refresh(), planned) == set()  # it may still end well
    write_failed(run, ahead, "the loss became NaN")
    run.refresh()
    run.write_plan(make_plan(run, "start"))
    assert behind not in points_to_do(run, plan_points(run))
    assert go_on_with_stopped(run, plan_points(run)) == {behind.name}
    assert behind in points_to_do(run, plan_points(run))
    # It is not compared with what failed.
    scheduler = scheduler_of(run, [behind], lambda *_: pytest.fail("it was stopped again"))
    assert scheduler is not None
    trial = Trial.of(behind)
    scheduler.on_trial_add(None, trial)
    assert scheduler.on_trial_result(None, trial, {EPOCH: 1, QUALITY: 0.0}) == "CONTINUE"


def test_a_stopped_point_has_a_row_that_says_so(stopped_run: Any) -> None:
    run, points = stopped_run
    point = next(point for point in points if point.lr == 1e-2)
    row = run.row(point.name)
    assert (row["status"], row["epochs"]) == ("stopped", 1)
    assert row["error"] == "stopped after epoch 1 of 2: another learning rate was ahead (retrain.stopping)"
    curve = {one["epoch"]: one["val_top1"] for one in run.curve(point.name)}
    assert (row["val_top1"], row["val_top1_cut"]) == (curve[1], curve[0])
    assert row["test_top1"] is None  # it is read at the end of a point


def test_status_page_and_pick_know_stopped_points(stopped_run: Any) -> None:
    from slimsweep.ledger.status import read_status
    from slimsweep.report.page_data import page_data
    from slimsweep.report.run_tables import read_run
    from slimsweep.tools.pick import pick

    run, points = stopped_run
    count = len(points) // 2
    status = read_status(run)
    assert (status.count("stopped"), status.count("done"), status.count("failed")) == (count, count, 0)
    one = next(point for point in status.points if point.state == "stopped")
    assert (one.epochs, one.epochs_total) == (1, 2)
    assert "another learning rate was ahead" in one.note
    assert one.error == ""
    found = page_data([read_run(run, status)])
    assert found["runs"][0]["progress"]["bar"]["stopped"] == count
    assert set(found["points"]["status"]) == {"ok", "stopped"}
    # Were it not stopped, this one would be picked.
    worse = next(point for point in points if point.lr == 1e-2 and point.method == "searched")
    run.write_row({**run.row(worse.name), "val_top1": 100.0})
    best = pick(run.refresh().rows, limits={"macs": "100G"})
    assert best.status == "ok"
    assert best.lr == 1e-3


# A whole sweep.


def trained_epochs(run: Any) -> dict[str, list[int]]:
    """The epochs that were trained of each point, by the log of epochs."""
    found: dict[str, list[int]] = {}
    for line in (Path(run.uri) / "epochs.log").read_text().splitlines():
        entry = json.loads(line)
        if entry["stage"] == "retrain":
            found.setdefault(entry["point"], []).append(entry["epoch"])
    return found


@pytest.mark.cluster
def test_a_sweep_stops_the_rates_that_are_behind(ray_cluster: None, tmp_path: Path) -> None:
    from conftest import QUICK

    from slimsweep.ledger.run import Run
    from slimsweep.ledger.status import read_status
    from slimsweep.run import main

    words = [*QUICK, "--name", "rates", "--output", str(tmp_path), "--budgets", "0.5", "--retrain.epochs", "8"]
    words += ["--retrain.lr", "2e-3,1e-6", "--retrain.seeds", "2", "--retrain.stopping", "asha"]
    words += ["--resources.max_concurrent_trials", "1"]
    assert main(words) == 0
    run = Run(tmp_path / "rates")
    rows = run.rows.set_index("point")
    assert sorted(zip(rows.method, rows.seed, rows.lr, rows.status, strict=True)) == [
        ("dense", 0, 1e-6, "stopped"),
        ("dense", 0, 2e-3, "ok"),
        ("dense", 1, 2e-3, "ok"),
        ("searched", 0, 1e-6, "stopped"),
        ("searched", 0, 2e-3, "ok"),
        ("searched", 1, 2e-3, "ok"),
    ]
    stopped = set(rows.index[rows.status == "stopped"])
    epochs = trained_epochs(run)
    # At the comparison after 2 epochs or after 4: a low rate may be ahead at first.
    assert all(epochs[name] in ([1, 2], [1, 2, 3, 4]) for name in stopped)
    assert all(found == list(range(1, 9)) for name, found in epochs.items() if name not in stopped)
    assert all(rows.epochs[name] == len(epochs[name]) and rows.test_top1.isna()[name] for name in stopped)
    assert read_status(run).finished
    assert "stopped early" in (tmp_path / "rates" / "report.html").read_text()
    # The same command trains nothing; another budget trains its own points alone.
    assert main(words) == 0
    assert trained_epochs(run) == epochs
    assert main([*words, "--budgets", "0.5,0.35"]) == 0
    after = trained_epochs(run)
    assert {name: found for name, found in after.items() if name in epochs} == epochs
    new = sorted(len(found) for name, found in after.items() if name not in epochs)
    assert new in ([2, 8, 8], [4, 8, 8])
