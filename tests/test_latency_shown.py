"""Latency that the sweep measured: who timed what, in pick, and on the page as axes, lines and sentences."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from test_report import make_run

from slimsweep.ledger.latencies import DEVICE, SWEEP, latencies, left_out, trusted
from slimsweep.ledger.tables import DEVICE_TIMES
from slimsweep.report.page import build_page
from slimsweep.report.page_data import TIMINGS, page_data
from slimsweep.report.run_tables import RunTables, read_tables
from slimsweep.slimming.structure import Structure
from slimsweep.tools.pick import NothingFits, pick

CPU = {"device": "cpu", "batch_size": 1, "threads": 2, "dtype": "float32", "runtime": "torch", "compile": False}
EPYC = "EPYC, 2 threads, torch, batch 1, float32"
PLACE = next(place for place, column in enumerate(TIMINGS) if column.name == "latency_ms")


def with_latency(run: RunTables, *, hardware: str = "EPYC", busy: str = "", **columns: object) -> RunTables:
    """The run whose sweep timed each point: 10 ms for the dense model, less in proportion to the budget."""
    setting = json.dumps({**CPU, "hardware": hardware, "versions": {"torch": "2.15"}})
    times = {"latency_ms": 10 * run.results.budget, "latency_ms_dense": 10.0, "latency_spread": 0.02, "latency_busy": busy}
    return replace(run, results=run.results.assign(**times, latency_setting=setting, **columns))


def device_times(run: RunTables, device: str, factor: float) -> pd.DataFrame:
    """Times of the structures of the run's points on a device, in proportion to their MACs."""
    by_id = {one.id: one for one in map(Structure.from_json, run.results.structure)}
    rows = [(name, factor * one.macs() / 1e5, 0.01, device, "TensorRT", 1, "fp16", "", "a.csv") for name, one in by_id.items()]
    return pd.DataFrame(rows, columns=DEVICE_TIMES.names[:-1]).assign(created_at=pd.Timestamp("2026-01-01", tz="UTC"))


# Who timed what.


def test_the_sweep_s_times_and_those_of_devices_are_told_apart() -> None:
    run = with_latency(make_run(failed="out of memory"))
    found = latencies(run.results, device_times(run, "Jetson", 1.0))
    points = int((run.results.status == "ok").sum())
    assert found.groupby("source").size().to_dict() == {SWEEP: points, DEVICE: points}
    assert found.groupby("source").setting.unique().map(list).to_dict() == {
        SWEEP: [EPYC],
        DEVICE: ["Jetson, TensorRT, batch 1, fp16"],
    }
    dense = run.results.macs_dense.iloc[0] / 1e5
    assert found.dense_ms.unique().tolist() == pytest.approx([10.0, dense])
    assert latencies(make_run().results).empty


def test_times_of_a_busy_machine_are_left_out_and_said() -> None:
    run = with_latency(make_run(), busy="other processes used 1.8 of 2 cores")
    found = latencies(run.results)
    assert trusted(found).empty
    assert left_out(found).startswith(
        f"6 latencies are left out ({EPYC}), because the machine was busy (other processes used 1.8"
    )
    assert left_out(latencies(with_latency(make_run()).results)) == ""
    data = page_data([run])
    assert data["settings"] == []
    assert "6 latencies are left out" in build_page([run])


# pick.


def test_the_best_model_under_a_latency() -> None:
    run = with_latency(make_run())
    chosen = pick(run.results, max_ms=5.1)
    fits = run.results[run.results.latency_ms <= 5.1]
    assert chosen.point == fits.sort_values("val_top1").point.iloc[-1]
    assert chosen.latency_ms <= 5.1
    with pytest.raises(NothingFits, match=r"the nearest to at most 0\.1 ms is searched-0\.1500"):
        pick(run.results, max_ms=0.1)


def test_a_latency_of_one_of_several_settings_is_asked_for_by_name() -> None:
    run = with_latency(make_run())
    times = pd.concat([device_times(run, "Jetson", 1.0), device_times(run, "Pixel", 9.0).assign(batch_size=8)])
    with pytest.raises(ValueError, match=r"latencies of 3 settings, which do not compare: name one .*--device") as refused:
        pick(run.results, device_times=times, max_ms=5)
    assert EPYC in str(refused.value)
    assert pick(run.results, device_times=times, max_ms=5.1, device="epyc").latency_ms <= 5.1
    by_batch = pick(run.results, device_times=times, max_ms=1000, batch_size=8)
    assert by_batch.latency_ms == pytest.approx(9 * by_batch.macs / 1e5)
    with pytest.raises(ValueError, match=r"--device 'e' and --batch-size 1 means latencies of 2 settings"):
        pick(run.results, device_times=times, max_ms=5, device="e", batch_size=1)
    with pytest.raises(ValueError, match=r"no latency was measured with --device 'iphone'; there are those of EPYC"):
        pick(run.results, device_times=times, max_ms=5, device="iphone")


def test_a_latency_that_nobody_measured_or_trusts_is_refused() -> None:
    run = make_run(bench=True)
    with pytest.raises(ValueError, match=r"--max-ms needs latencies, and no point of this run has one.*--max-latency-ms"):
        pick(run.results, run.bench, max_ms=5)
    busy = with_latency(run, busy="half of its rounds differ")
    with pytest.raises(ValueError, match=r"the machine was busy when EPYC, .* was timed \(half of its rounds differ\)"):
        pick(busy.results, max_ms=5)
    with pytest.raises(ValueError, match="give one of them"):
        pick(busy.results, run.bench, max_ms=5, max_latency_ms=5)
    with pytest.raises(ValueError, match=r"--device is 'jetson', which names the setting of --max-ms"):
        pick(busy.results, device="jetson", min_top1=50)
    # The benchmark's times are still asked for by an option of their own.
    assert pick(busy.results, run.bench, max_latency_ms=5).latency_ms <= 5


# The page's data.


def test_each_setting_is_an_axis_and_says_who_timed() -> None:
    run = with_latency(make_run(bench=True))
    run = replace(run, device_times=device_times(run, "Jetson", 1.0))
    data = page_data([run])
    bench, sweep, jetson = data["settings"]
    assert bench == "slimsweep bench: cpu, 2 threads, batch 1, float32"
    assert sweep == f"the sweep's own timing: {EPYC}"
    assert jetson == "Jetson, TensorRT, batch 1, fp16"
    assert "latency_ms" not in {column["name"] for column in data["columns"]}
    by_sweep = {point: values for point, setting, values in data["bench"] if setting == 1}
    assert {point: values[PLACE] for point, values in by_sweep.items()} == {
        place: pytest.approx(ms) for place, ms in enumerate(run.results.latency_ms)
    }
    assert all(value is None for values in by_sweep.values() for place, value in enumerate(values) if place != PLACE)
    assert data["bench_dense"]["0|1"] == 10.0
    means = data["groups"]["mean"]["latency_ms:1"]
    assert means == pytest.approx(sorted(run.results.latency_ms, reverse=True))


def test_runs_that_were_timed_elsewhere_do_not_share_an_axis() -> None:
    one, other = with_latency(make_run("a")), with_latency(make_run("b"), hardware="Xeon")
    data = page_data([one, other])
    assert data["settings"] == [f"the sweep's own timing: {EPYC}", f"the sweep's own timing: {EPYC.replace('EPYC', 'Xeon')}"]
    assert {data["points"]["run"][point] for point, setting, _ in data["bench"] if setting == 1} == {1}
    assert len(page_data([one, with_latency(make_run("c"))])["settings"]) == 1


def test_a_study_s_folder_may_hold_times_of_devices(tmp_path: Path) -> None:
    run = make_run()
    run.results.to_parquet(tmp_path / "results.parquet")
    device_times(run, "Jetson", 1.0).to_parquet(tmp_path / "device-times.parquet")
    (shown,) = read_tables(str(tmp_path))
    assert page_data([shown])["settings"] == ["Jetson, TensorRT, batch 1, fp16"]


def test_budgets_in_milliseconds_are_limits_of_their_setting() -> None:
    run = make_run(budgets=(0.5, 0.25))
    budget_ms = run.results.budget.map({0.25: 2.5}.get)
    run = with_latency(run, unit="ms", budget_ms=budget_ms)
    data = page_data([run])
    assert sorted(data["limits"]) == [[0, 0, 2.5, "2.5 ms"], [0, 0, 5.0, "50 % of dense"]]
    assert sorted(data["groups"]["budget_ms"], key=str) == [2.5, None, None]
    assert page_data([with_latency(make_run())])["limits"] == []
