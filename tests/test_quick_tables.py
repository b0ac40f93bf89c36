"""Thousands of points: each file is read once, in time that grows with their number; and nobody loads what only others need."""

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from many_points import run_of_many_points

import slimsweep
from slimsweep.ledger.run import Run
from slimsweep.ledger.status import read_status
from slimsweep.report.page import build_page, read_run
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
def test_a_worker_loads_no_scikit_learn_and_no_plotly() -> None:
    code = (
        "import sys, slimsweep.cluster.retrain_job, slimsweep.cluster.search_job\n"
        "print(sorted({'sklearn', 'plotly', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
