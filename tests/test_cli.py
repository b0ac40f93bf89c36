"""The commands beside the sweep, on a real run."""

import io
import shutil
from pathlib import Path

import pandas as pd
import pytest
import timm
import torch
from rich.console import Console

from slimsweep.cli import main
from slimsweep.ledger.status import Status, TrainingStatus
from slimsweep.saved_models import load
from slimsweep.tools.status import status_table


@pytest.fixture(scope="module")
def run(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a finished run, for the commands that write into it."""
    return shutil.copytree(small_run, tmp_path_factory.mktemp("cli") / "small")


def test_status_says_where_a_run_stands(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["status", str(run)]) == 0
    out = capsys.readouterr().out
    assert "all points are done" in out
    assert out.count("done") >= 5  # two stages, three points


def test_a_folder_that_is_no_run_is_refused_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for command in (["status", str(tmp_path)], ["report", str(tmp_path)], ["bench", str(tmp_path)]):
        assert main(command) == 2
        assert str(tmp_path) in capsys.readouterr().out.replace("\n", "")


def test_the_picked_folder_loads(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["pick", str(run), "--max-macs", "0.5"]) == 0
    folder = capsys.readouterr().out.strip()
    rows = pd.read_parquet(run / "results")
    fits = rows[rows.macs <= 0.5 * rows.macs_dense]
    assert folder.endswith(fits.sort_values(["val_top1", "macs"], ascending=[False, True]).model_path.iloc[0])
    assert load(folder)(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert main(["pick", str(run), "--max-macs", "0.01"]) == 2
    assert "the nearest" in " ".join(capsys.readouterr().out.split())


def test_bench_times_every_point_beside_dense(
    run: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slimsweep.latency.quiet_timing._loaded", lambda *seen: "")  # whatever else runs beside the tests
    monkeypatch.setattr("slimsweep.latency.quiet_timing._disturbed", lambda *seen, **how: "")
    monkeypatch.setattr("slimsweep.latency.quiet_timing._unsteady", lambda timed: "")
    assert main(["bench", str(run), "--batch-sizes", "1,4", "--repeats", "2", "--threads", "1"]) == 0
    rows = pd.read_parquet(run / "bench")
    assert len(rows) == 2 * 4  # dense as the search started from it, and three points
    assert (rows.latency_p50_ms > 0).all()
    capsys.readouterr()
    assert main(["pick", str(run), "--max-latency-ms", "1000"]) == 0
    assert "/models/" in capsys.readouterr().out


def test_a_point_exported_to_timm_is_what_timm_loads(run: Path, tmp_path: Path) -> None:
    model = next((run / "models").iterdir())
    assert main(["export", str(model), "--format", "timm", "--output", str(tmp_path / "out")]) == 0
    images = torch.rand(3, 1, 8, 8)
    again = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert torch.equal(again(images), load(model)(images))


def test_one_page_of_two_runs(run: Path, small_run: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(run), str(small_run), "--output", str(page)]) == 0
    assert page.stat().st_size > 1_000_000


def test_what_a_worker_raised_is_shown_as_it_is() -> None:
    """rich would read [/data/x] as markup, and fail."""
    error = "RuntimeError: cannot open [/data/x], in [dense, search]"
    part = TrainingStatus(name="searched-0.5000-s0-ab12", state="failed", epochs=0, epochs_total=1, error=error)
    console = Console(record=True, width=200, file=io.StringIO())
    console.print(status_table(Status(name="x", alive=False, stages=[], points=[part])))
    assert error in console.export_text()


def test_nodes_without_their_cpus_are_refused(capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", "--nodes", "2"]) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "--nodes is 2" in said
    assert "--nodes 2 --node-cpus 32" in said
    assert main(["plan", "--nodes", "0", "--node-cpus", "4"]) == 2
    assert "--nodes is 0: give one node or more" in " ".join(capsys.readouterr().out.split())


def test_a_folder_that_holds_no_model_is_refused_with_the_way_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["export", str(tmp_path), "--format", "pt2"]) == 2
    assert "give a folder such as RUN/models/POINT" in " ".join(capsys.readouterr().out.split())
