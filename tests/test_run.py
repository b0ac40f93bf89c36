"""The whole pipeline on a real Ray: what a run leaves, and what a second start does with it."""

import json
import os
import shutil
import threading
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import QUICK

from slimsweep.cluster.alive import RAYLET_GONE, Watch
from slimsweep.cluster.retrain_job import trial
from slimsweep.cluster.worker import job_arguments
from slimsweep.errors import ClusterFailed, StageFailed, stop_asked
from slimsweep.ledger.files import DRIVER
from slimsweep.ledger.planning import plan_points
from slimsweep.ledger.run import Run
from slimsweep.ledger.tables import RESULTS
from slimsweep.run import main
from slimsweep.saved_models import load
from slimsweep.slimming.structure import Structure, macs


def epochs(run: Path) -> Counter:
    """How often each epoch of each stage or point was trained, from the append-only log."""
    lines = [json.loads(line) for line in (run / "epochs.log").read_text().splitlines()]
    return Counter((entry["stage"], entry["point"], entry["epoch"]) for entry in lines)


@pytest.fixture
def copied_run(small_run: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """A run of one's own to go on with, and the command that made it."""
    shutil.copytree(small_run, tmp_path / "small")
    return tmp_path / "small", ["--output", str(tmp_path), "--name", "small", "--budgets", "0.5,0.25", *QUICK]


def test_a_run_leaves_one_whole_table(small_run: Path) -> None:
    rows = pd.read_parquet(small_run / "results")
    assert list(rows.columns) == RESULTS.names
    assert sorted(rows.method) == ["dense", "searched", "searched"]
    assert (rows.status == "ok").all()
    assert rows.point.is_unique
    searched = rows[rows.method == "searched"]
    assert (searched.macs <= searched.budget * searched.macs_dense).all()
    assert rows.test_top1.between(0, 100).all()
    assert rows[["val_top1", "test_loss", "params", "model_bytes", "train_seconds", "test_top1_untouched"]].notna().all().all()


def test_each_row_s_model_loads_and_costs_what_the_row_says(small_run: Path) -> None:
    for row in pd.read_parquet(small_run / "results").itertuples():
        model = load(small_run / row.model_path)
        assert macs(model) == row.macs == Structure.from_json(row.structure).macs()
        assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_curves_and_gates_tell_every_epoch(small_run: Path) -> None:
    curves = pd.read_parquet(small_run / "curves")
    assert set(curves.stage) == {"dense", "search", "retrain"}
    search = curves[curves.stage == "search"]
    assert list(search.epoch) == [0, 1, 2]
    assert {g["family"] for g in search.gates.iloc[-1]} == {"attention", "mlp", "token"}
    gates = pd.read_parquet(small_run / "search" / "gates.parquet")
    assert gates.groupby("family").size().to_dict() == {"attention": 4 * 64, "mlp": 4 * 256, "token": 4 * 16}
    assert gates.value.nunique() > 100  # they have learned


def test_no_epoch_is_trained_twice(small_run: Path) -> None:
    counts = epochs(small_run)
    assert set(counts.values()) == {1}
    assert len(counts) == 3 + 2 + 3 * 1


@pytest.mark.slow
def test_a_search_of_two_workers_leaves_what_that_of_one_does(ray_cluster: None, tmp_path: Path) -> None:
    words = ["--output", str(tmp_path), "--name", "small", "--budgets", "0.5,0.25", *QUICK, "--resources.search_workers", "2"]
    assert main(words) == 0
    test_a_run_leaves_one_whole_table(tmp_path / "small")
    test_each_row_s_model_loads_and_costs_what_the_row_says(tmp_path / "small")
    test_curves_and_gates_tell_every_epoch(tmp_path / "small")
    test_no_epoch_is_trained_twice(tmp_path / "small")


def test_a_finished_run_is_not_trained_again(copied_run: tuple[Path, list[str]]) -> None:
    run, arguments = copied_run
    before = epochs(run)
    assert main(arguments) == 0
    assert epochs(run) == before


def test_a_trial_that_is_started_again_after_its_row_keeps_it(copied_run: tuple[Path, list[str]]) -> None:
    """A process may die between writing its row and telling Tune, which then starts the trial again."""
    run, _ = copied_run
    rows, before = pd.read_parquet(run / "results"), epochs(run)
    arguments = job_arguments(Run(run), attempt="again", until=None)
    for point in plan_points(Run(run)):
        assert trial({"point": asdict(point)}, arguments) == {"error": ""}
    pd.testing.assert_frame_equal(pd.read_parquet(run / "results"), rows)
    assert epochs(run) == before


def test_new_budgets_and_failed_points_are_all_that_is_trained(
    copied_run: tuple[Path, list[str]], capsys: pytest.CaptureFixture
) -> None:
    run, arguments = copied_run
    before = epochs(run)
    rows = pd.read_parquet(run / "results")
    broken = rows[rows.budget == 0.5].iloc[0]
    Run(run).write_row(
        {"point": broken.point, "method": "searched", "budget": 0.5, "seed": 0, "status": "failed", "error": "disk full"},
    )
    arguments[arguments.index("--budgets") + 1] = "0.5,0.25,0.35"
    assert main(arguments) == 0
    again = pd.read_parquet(run / "results")
    assert len(again) == 4
    assert (again.status == "ok").all()
    trained = {point for _, point, _ in epochs(run) - before}
    assert trained == {broken.point, again[again.budget == 0.35].point.iloc[0]}
    assert "searched" in capsys.readouterr().out


@pytest.mark.faults
def test_a_point_that_fails_leaves_a_row_and_the_others_go_on(
    copied_run: tuple[Path, list[str]], capsys: pytest.CaptureFixture
) -> None:
    run, arguments = copied_run
    for result in (run / "results").iterdir():
        result.unlink()
    assert main([*arguments, "--retrain.lr", "1e30", "--retrain.clip_grad", "null"]) == 1
    rows = pd.read_parquet(run / "results")
    assert set(rows.status) == {"failed"}
    assert len(rows) == 3
    assert rows.error.str.contains("not finite in epoch 1").all()
    assert rows.error.str.contains("lower retrain.lr").all()
    assert "3 of 3 points failed" in capsys.readouterr().out
    # What the error advises works: failed rows are no reason to refuse a corrected recipe.
    assert main([*arguments, "--budgets", "0.25"]) == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--dense.lr", "1e-4"], "dense.lr"),
        (["--search.l1.mlp", "0.5"], "search.l1.mlp"),
        (["--retrain.epochs", "2"], "retrain.epochs"),
    ],
)
def test_a_change_that_would_not_compare_is_refused(
    copied_run: tuple[Path, list[str]], change: list[str], named: str, capsys: pytest.CaptureFixture
) -> None:
    run, arguments = copied_run
    before = sorted(run.rglob("*"))
    assert main([*arguments, *change]) == 2
    out = " ".join(capsys.readouterr().out.split())
    assert named in out
    assert "take another --name" in out
    assert sorted(run.rglob("*")) == before


def test_a_run_that_somebody_works_on_is_refused(copied_run: tuple[Path, list[str]], capsys: pytest.CaptureFixture) -> None:
    from slimsweep.ledger.lock import hold

    run, arguments = copied_run
    with hold(Run(run)):
        assert main(arguments) == 2
    assert "is being worked on by process" in capsys.readouterr().out
    assert main(arguments) == 0


def test_a_driver_of_another_machine_is_watched_before_its_place_is_taken(tmp_path: Path, monkeypatch) -> None:
    """A pod that is started again must not wait a minute for the dead one's heartbeat to grow old."""
    from slimsweep.ledger import lock

    monkeypatch.setattr(lock, "WATCH_SECONDS", 2.0)
    run, beats = Run(tmp_path), threading.Event()
    beat = {"token": "theirs", "host": "another-pod", "pid": 1}

    def live() -> None:
        while not beats.wait(0.3):
            run.folder.write_json(DRIVER, {**beat, "time": time.time()})

    run.folder.write_json(DRIVER, {**beat, "time": time.time()})
    alive = threading.Thread(target=live)
    alive.start()
    with pytest.raises(lock.RunTaken, match="process 1 on another-pod"), lock.hold(run):
        pass
    beats.set()
    alive.join()
    with lock.hold(run):
        assert run.folder.read_json(DRIVER)["host"] != "another-pod"


@pytest.mark.faults
def test_hours_that_are_over_end_the_run_with_what_it_has(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["--output", str(tmp_path), "--name", "short", *QUICK, "--budgets", "0.5", "--search.epochs", "2"]
    assert main([*arguments, "--resources.max_hours", "1e-9"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "resources.max_hours (1e-09) are over, and the search could not be finished" in out
    assert "the same command goes on" in out
    assert not (tmp_path / "short" / "epochs.log").exists()
    assert main(arguments) == 0
    # In the sweep: what is done stays, what is not has no row and is no failure.
    arguments[arguments.index("--budgets") + 1] = "0.5,0.3"
    assert main([*arguments, "--resources.max_hours", "1e-9"]) == 0
    assert "1 of 3 points could not be finished" in " ".join(capsys.readouterr().out.split())
    assert len(pd.read_parquet(tmp_path / "short" / "results")) == 2
    assert main(arguments) == 0
    assert set(epochs(tmp_path / "short").values()) == {1}


def test_what_a_run_saves_may_be_read_by_whom_the_umask_lets(small_run: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    for folder in (small_run / "dense", *(small_run / "models").iterdir()):
        assert folder.stat().st_mode & 0o777 == 0o777 & ~mask
        assert all(file.stat().st_mode & 0o777 == 0o666 & ~mask for file in folder.iterdir())


def test_an_unreachable_budget_says_the_least(copied_run: tuple[Path, list[str]], capsys: pytest.CaptureFixture) -> None:
    _, arguments = copied_run
    arguments[arguments.index("--budgets") + 1] = "0.5,0.001"
    assert main(arguments) == 2
    assert "the least this model can be cut to is" in " ".join(capsys.readouterr().out.split())


def test_more_workers_than_the_cluster_holds_are_refused(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["--output", str(tmp_path), *QUICK, "--data.batch_size", "64", "--resources.search_workers", "8"]
    assert main(arguments) == 2
    out = " ".join(capsys.readouterr().out.split())
    assert "resources.search_workers is 8" in out
    assert "at most 2 workers" in out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--serch.epochs", "3"], "search.epochs"),
        (["--model.name", "vit_tinny_patch16_224"], "vit_tiny_patch16_224"),
        (["--data.name", "digitz"], "digits"),
        (["--budgets", "0"], "budgets"),
        (["--budgets", "1.5"], "budgets"),
        (["--budgets", "abc"], "abc"),
        (["--model.kwargs", '{"img_size": 9, "patch_size": 2, "in_chans": 1}'], "9"),
        (["--model.kwargs", '{"img_size": 8, "patch_size": 2, "in_chans": 3}'], "in_chans"),
        (["--model.checkpoint", "/nowhere/weights.safetensors"], "/nowhere/weights.safetensors"),
        (["--output", "/proc/nowhere"], "output"),
        (["--budgets", "2.3G"], "not below the dense model"),
        (["--baselines", "unifrom"], "uniform"),
        (["--baselines", "small", "--budgets", "1K"], "budget"),
        (["--baselines", "torch-pruning", "--search.families", "token", "--budgets", "0.9"], "'torch-pruning'"),
    ],
)
def test_bad_input_is_one_sentence_before_ray_starts(
    arguments: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slimsweep.cluster import cluster

    def started(*_: object) -> None:
        raise AssertionError("Ray was asked for")

    monkeypatch.setattr(cluster, "connected", started)
    where = [] if "--output" in arguments else ["--output", str(tmp_path)]
    assert main([*where, *arguments]) == 2
    out = " ".join(capsys.readouterr().out.split())
    assert named in out
    assert "Traceback" not in out
    assert not list(tmp_path.iterdir())


@pytest.mark.faults
def test_a_search_that_diverges_says_so_in_one_sentence(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = [
        "--output",
        str(tmp_path),
        *QUICK,
        "--dense.lr",
        "1e30",
        "--dense.clip_grad",
        "null",
        "--resources.max_failures",
        "0",
    ]
    assert main(arguments) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "the loss of dense is not finite in epoch 1" in out
    assert "Traceback" not in out


def test_several_models_are_runs_of_their_own_on_one_page(
    copied_run: tuple[Path, list[str]], capsys: pytest.CaptureFixture
) -> None:
    run, arguments = copied_run
    group = run.parent / "sizes"
    names = ["vit_tiny_patch16_224", "vit_tiny_patch16_224-2"]
    for name in names:  # both are finished: what two sizes would train is what one does, twice
        shutil.copytree(run, group / name)
    model = Run(run).config.model.model_dump(mode="json")
    several = [*arguments, "--name", "sizes", "--model", json.dumps([model, model])]
    before = [epochs(group / name) for name in names]
    assert main(several) == 0
    assert [epochs(group / name) for name in names] == before
    page = group / "report.html"
    assert str(page) in capsys.readouterr().out.replace("\n", "")
    assert page.stat().st_size > (group / names[0] / "report.html").stat().st_size - 100_000
    assert all((group / name / "report.html").is_file() for name in names)
    with pytest.raises(ValueError, match=f"give one of the runs in it: {', '.join(names)}$"):
        _ = Run(group).config
    # One that cannot work is refused before any of them begins.
    worse = {**model, "kwargs": {**model["kwargs"], "num_heads": 3}}
    assert main([*several[:-1], json.dumps([model, worse])]) == 2
    assert [epochs(group / name) for name in names] == before


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("problem", [KeyboardInterrupt(), ClusterFailed("Ray failed"), StageFailed("a worker is gone")])
@pytest.mark.parametrize("asked", [True, False])
def test_a_cluster_that_dies_of_the_signal_that_stops_the_driver_is_no_failure(problem: BaseException, asked: bool):
    """The signal of a closed terminal ends Ray too; which of the two is seen first is chance."""
    watch = Watch()

    def lose_the_cluster() -> None:
        watch.gone = RAYLET_GONE
        raise problem

    if asked:
        stop_asked.set()
    try:
        with pytest.raises(KeyboardInterrupt if asked else ClusterFailed) as raised, watch:
            lose_the_cluster()
        assert asked or str(raised.value) == RAYLET_GONE
    finally:
        stop_asked.clear()
        watch.end()
