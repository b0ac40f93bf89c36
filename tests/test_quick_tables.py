"""Thousands of points: each file is read once, in time that grows with their number; and nobody loads what only others need."""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from many_points import run_of_many_points

import slimsweep
from slimsweep.ledger.damage import look_over
from slimsweep.ledger.run import Run
from slimsweep.ledger.status import read_status
from slimsweep.report.page import build_page, read_run, write_report
from slimsweep.storage import Folder

PACKAGE = Path(slimsweep.__file__).parent


def show(run: Run) -> None:
    """What `slimsweep status` and `slimsweep report` read and make."""
    status = read_status(run)
    assert status.count("done") == len(run.rows) > 20
    build_page([read_run(run, status)])


def test_status_and_page_read_each_row_and_curve_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of_many_points(tmp_path / "many", 40)
    read, seen = Folder.read_bytes, Counter[str]()

    def counted(self: Folder, name: str) -> bytes:
        seen[name] += 1
        return read(self, name)

    monkeypatch.setattr(Folder, "read_bytes", counted)
    show(run)
    rows = [name for name in seen if name.startswith("results/")]
    curves = [name for name in seen if name.startswith("curves/") and name.count("-")]
    assert len(rows) == len(curves) == 41
    assert {seen[name] for name in (*rows, *curves)} == {1}


def settle(run: Run) -> None:
    """Let the rows and curves be as old as those that no longer change."""
    for folder in ("results", "curves"):
        for file in Path(run.uri, folder).iterdir():
            os.utime(file, (time.time() - 3600, time.time() - 3600))


def test_rows_and_curves_that_stand_still_are_read_from_one_file_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimsweep.ledger.run.MANY_FILES", 20)
    run = run_of_many_points(tmp_path / "many", 40)
    settle(run)
    write_report(run, read_status(run))
    rows, curves = run.rows, run.curves()
    changed, gone, new = (f"results/{point}.parquet" for point in (*rows["point"].iloc[:2], "new"))
    run.write_row({**run.row(rows["point"].iloc[0]), "test_top1": 1.0})
    (tmp_path / "many" / gone).unlink()
    run.write_row({**run.row(rows["point"].iloc[2]), "point": "new"})

    read, seen = Folder.read_bytes, Counter[str]()

    def counted(self: Folder, name: str) -> bytes:
        seen[name] += 1
        return read(self, name)

    monkeypatch.setattr(Folder, "read_bytes", counted)
    later = Run(run.folder)
    now = later.rows.set_index("point")
    assert now.loc[rows["point"].iloc[0], "test_top1"] == 1.0
    assert set(now.index) == (set(rows["point"]) - {rows["point"].iloc[1]}) | {"new"}
    same = rows["point"].iloc[2:]
    pd.testing.assert_frame_equal(now.loc[same], rows.set_index("point").loc[same])
    pd.testing.assert_frame_equal(later.curves(), curves)
    assert set(seen) == {"collected/rows.parquet", "collected/epochs.parquet", changed, new}


@pytest.mark.parametrize("spoiled", [b"", b"no table", None])
def test_a_collected_file_that_is_damaged_or_of_another_version_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoiled: bytes | None
) -> None:
    monkeypatch.setattr("slimsweep.ledger.run.MANY_FILES", 20)
    run = run_of_many_points(tmp_path / "many", 40)
    settle(run)
    write_report(run, read_status(run))
    file = tmp_path / "many" / "collected" / "rows.parquet"
    if spoiled is None:
        pq.write_table(pq.read_table(file).drop_columns(["test_top1"]), file)
    else:
        file.write_bytes(spoiled)
    again = Run(run.folder)
    pd.testing.assert_frame_equal(again.rows, run.rows)
    assert look_over(again) == []


@pytest.mark.slow
def test_time_grows_with_the_number_of_points(tmp_path: Path) -> None:
    """By CPU time, which a busy machine changes less than the clock: four times the points, less than eight times the time."""

    def seconds(points: int) -> float:
        run_of_many_points(tmp_path / str(points), points)
        taken = []
        for _ in range(3):
            began = time.process_time()
            show(Run(tmp_path / str(points)))
            taken.append(time.process_time() - began)
        return min(taken)

    show(run_of_many_points(tmp_path / "first", 40))  # what is imported and compressed once
    few, many = seconds(240), seconds(960)
    assert many < 8 * few
    assert many < 15


@pytest.mark.slow
def test_a_worker_loads_neither_scikit_learn_nor_plotly_nor_what_only_a_driver_needs() -> None:
    code = (
        "import sys, slimsweep.cluster.retrain_job, slimsweep.cluster.search_job\n"
        "print(sorted({'sklearn', 'plotly', 'onnx', 'onnxruntime', 'aiohttp'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
