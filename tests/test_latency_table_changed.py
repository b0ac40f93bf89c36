"""`latency.table` under the same path with other times: a later start finds anew what budgets in ms leave."""

import json
from pathlib import Path

import pytest
from conftest import changed
from test_latency_budgets import run, seconds_of  # noqa: F401

from slimsweep.cluster import latency_job
from slimsweep.latency.curve import prefix_lengths
from slimsweep.latency.from_table import table_of_times
from slimsweep.latency.table import Time, write_times
from slimsweep.ledger.cuts import forget_changed_table
from slimsweep.ledger.latencies import setting_words
from slimsweep.ledger.planning import plan_points, to_time
from slimsweep.ledger.run import Run
from slimsweep.slimming.structure import Structure


def write_table(file: Path, run: Run, factor: float, runtime: str = "TensorRT 10.3") -> None:  # noqa: F811
    """Times of a device that takes `factor` times as long as the tests' clock."""
    path = run.path_of("ms")
    structures = [path.prefix(length) for length in prefix_lengths(path)]
    write_times(file, [Time(one.id, factor * 1e3 * seconds_of(one), None, "Jetson", runtime, 1, "fp16") for one in structures])


def solved(run: Run) -> tuple[str, float, dict]:  # noqa: F811
    """Of the point of 4 ms: its name, what its structure takes by the tests' clock (ms), and the setting."""
    forget_changed_table(run)
    latency_job.solve_budgets(run)
    point = next(point for point in plan_points(run) if point.budget_ms == 4.0)
    return point.name, 1e3 * seconds_of(Structure.from_json(point.structure)), run.latency.about(run.pace_of("ms"))


def test_other_times_under_the_same_path_count(run: Run, tmp_path: Path) -> None:  # noqa: F811
    file = tmp_path / "jetson.csv"
    run = changed(run, baselines=["scratch"], **{"latency.table": str(file)})
    write_table(file, run, 2.0)
    name, ms, about = solved(run)
    assert 1.7 <= ms <= 2.2  # of 4 ms, by a curve between 33 times
    assert not forget_changed_table(Run(run.folder, run.config))

    write_table(file, run, 1.0)  # timed again, in the same setting: the points keep their names
    again = Run(run.folder, run.config)
    assert to_time(again) == []
    name_again, ms_again, _ = solved(again)
    assert name_again == name
    assert 3.5 <= ms_again <= 4.2

    write_table(file, run, 1.0, "TensorRT 10.3, 2 cores")  # the same times in another setting are of other points
    name_other, _, about_other = solved(Run(run.folder, run.config))
    assert name_other != name
    assert (about["runtime"], about_other["runtime"]) == ("TensorRT 10.3", "TensorRT 10.3, 2 cores")
    row_setting = next(iter(Run(run.folder, run.config).latency.times().values()))[1]
    assert json.dumps(row_setting["runtime"]) == '"TensorRT 10.3, 2 cores"'


def test_a_run_without_a_table_or_a_search_forgets_nothing(run: Run, tmp_path: Path) -> None:  # noqa: F811
    latency_job.cuts_of_budgets(latency_job.job_arguments(run))
    assert not forget_changed_table(run)
    assert to_time(run) == []
    assert not forget_changed_table(
        changed(run, baselines=[], **{"latency.table": str(tmp_path / "none.csv"), "budgets": [0.5]})
    )
    with pytest.raises(ValueError, match="cannot be read"):
        forget_changed_table(changed(run, baselines=[], **{"latency.table": str(tmp_path / "none.csv")}))


@pytest.mark.parametrize("device", ["Jetson", "cpu", "cuda"])
def test_a_table_that_is_added_too_is_no_second_setting(tmp_path: Path, device: str) -> None:
    """Also where a person calls the device what the section latency calls its own."""
    time = Time("0" * 12, 1.0, None, device, "onnxruntime 1.32", 1, "float32")
    write_times(tmp_path / "times.csv", [time])
    assert setting_words(table_of_times(str(tmp_path / "times.csv")).about) == time.setting.label
