"""A sweep with budgets in milliseconds from start to end, by the real clock; what its times are worth is not looked at."""

import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import QUICK
from zoo import small_vit

from slimsweep import add_gates, load, macs
from slimsweep.cluster import latency_job
from slimsweep.errors import StageFailed
from slimsweep.latency.calls import DeviceTimer
from slimsweep.latency.curve import DENSE
from slimsweep.latency.setting import LatencySetting
from slimsweep.ledger.run import Run
from slimsweep.run import main
from slimsweep.slimming.removal_path import RemovalPath, equal_gates
from slimsweep.slimming.structure import Structure
from slimsweep.tools.bench import bench, table


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_sweep_mixes_budgets_in_macs_and_ms_and_goes_on_without_timing_again(tmp_path: Path) -> None:
    paces = json.dumps([{}, {"token": 0.5}])
    arguments = ["--output", str(tmp_path), "--name", "timed", *QUICK, "--search.paces", paces, "--search.recovery", "0"]
    arguments += ["--latency.threads", "1", "--latency.batch_size", "4", "--baselines", "uniform"]
    # One that cannot be reached fails its own points, and no other.
    assert main([*arguments, "--budgets", "0.5,70% ms,0.001ms"]) == 1
    run = Run(tmp_path / "timed")
    rows = run.rows
    failed = rows[rows.status == "failed"]
    assert set(failed.budget_ms) == {0.001}
    assert failed.error.str.contains("cannot be reached: the least that this model was timed at is").all()
    ok = rows[rows.status == "ok"]
    assert sorted(zip(ok.method, ok.unit, strict=True)) == [
        *[("dense", "macs"), ("searched", "macs"), ("searched", "ms"), ("uniform", "macs"), ("uniform", "ms")]
    ]
    assert (ok.latency_ms > 0).all()
    setting = json.loads(ok.latency_setting.iloc[0])
    assert (setting["threads"], setting["batch_size"], setting["runtime"]) == (1, 4, "torch")
    for row in ok[ok.unit == "ms"].to_dict("records"):
        assert row["latency_ms"] <= 0.7 * row["latency_ms_dense"] * 1.0000001
        assert row["budget"] == pytest.approx(0.7)
        model = load(run.models / row["point"])
        assert macs(model) == row["macs"] == Structure.from_json(row["structure"]).macs()
    assert run.pace_choice("ms") is not None
    assert run.pace_choice() is not None

    before = {name: run.folder.read_bytes(f"latency/{name}") for name in run.folder.list("latency")}
    assert main([*arguments, "--budgets", "0.5,70% ms"]) == 0
    assert {name: run.folder.read_bytes(f"latency/{name}") for name in run.folder.list("latency")} == before
    pd.testing.assert_frame_equal(ok.reset_index(drop=True), run.refresh().rows.reset_index(drop=True), check_dtype=False)


def cannot_time(run: Run, methods_of: dict) -> None:
    raise StageFailed("models could not be timed: out of memory")


def test_points_of_a_start_that_timed_nothing_get_their_latency(
    finished: Run, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, epochs = finished.rows, finished.folder.read_bytes("epochs.log")
    assert before.latency_ms.isna().all()
    arguments = ["--output", str(Path(finished.uri).parent), "--name", "small", *QUICK, "--budgets", "0.5,0.25"]
    with monkeypatch.context() as patched:  # no point is worse for it
        patched.setattr(latency_job, "time_missing", cannot_time)
        assert main([*arguments, "--latency.threads", "1"]) == 0
    assert "models could not be timed: out of memory; points of earlier starts stay without a" in capsys.readouterr().out
    assert finished.refresh().rows.latency_ms.isna().all()
    assert main([*arguments, "--latency.threads", "1"]) == 0
    said = capsys.readouterr().out
    assert "timing 3 points of earlier starts, alone on a worker (cpu, 1 thread, batch size 1" in said
    rows = finished.refresh().rows
    assert (rows.latency_ms > 0).all()
    assert rows.latency_ms_dense.nunique() == 1  # all in the same rounds
    assert finished.folder.read_bytes("epochs.log") == epochs
    timed = [name for name in rows if name.startswith("latency_")]
    pd.testing.assert_frame_equal(rows.drop(columns=timed), before.drop(columns=timed))
    assert "stay without a latency" not in said
    # Nothing is timed twice.
    assert main([*arguments, "--latency.threads", "1"]) == 0
    assert "Latency" not in capsys.readouterr().out
    pd.testing.assert_frame_equal(finished.refresh().rows, rows)


@pytest.mark.slow
def test_onnxruntime_times_models_and_a_bench_of_it_is_a_setting_of_its_own() -> None:
    pytest.importorskip("onnxruntime")
    dense = small_vit()
    shape = add_gates(dense).shape
    path = RemovalPath(shape, equal_gates(shape))
    timer = DeviceTimer(dense, LatencySetting(threads=1, runtime="onnxruntime"), rounds=2, min_seconds=0.0)
    found = timer({DENSE: path.prefix(0), "half": path.prefix(path.length // 2)})
    assert all(timed.median > 0 for timed in found.calls.values())
    assert timer.about["onnxruntime_version"]
    rows = bench({"dense": dense}, device="cpu", batch_sizes=[1], threads=1, runtime="onnxruntime", repeats=2, min_seconds=0.0)
    assert [(row["runtime"], row["peak_memory_bytes"]) for row in rows] == [("onnxruntime", None)]
    assert "onnxruntime" in str(table(rows).title)
