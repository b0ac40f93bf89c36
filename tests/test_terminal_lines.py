"""What a terminal shows: quick answers, whole names at 80 columns, paths that can be clicked, nothing that nobody asked for."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from zoo import small_vit

from slimsweep import save
from slimsweep.cli import main
from slimsweep.config import load_config
from slimsweep.ledger.run import Run
from slimsweep.ledger.status import Status, TrainingStatus
from slimsweep.report import picture
from slimsweep.terminal import plain_table, say_path, show_fitting
from slimsweep.tools.bench import table
from slimsweep.tools.estimate import Images
from slimsweep.tools.export import export_checked, export_model
from slimsweep.tools.plan import plan
from slimsweep.tools.status import status_table

FINISHED = Path(__file__).parent / "data" / "finished-run"


DROPPED = ("epoch", "val top-1 %", "val R2")


def terminal(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, legacy_windows=False)


def lines_of(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "words",
    ["['--version']", f"['pick', {str(FINISHED)!r}, '--max-macs', '0.9']"],
)
def test_quick_commands_load_no_heavy_library(words: str) -> None:
    """torch, timm and ray take seconds to import."""
    code = (
        f"import sys\nfrom slimsweep.cli import main\n"
        f"try:\n    code = main({words})\nexcept SystemExit as ended:\n    code = ended.code\n"
        "heavy = [name for name in ('torch', 'timm', 'ray', 'plotly', 'sklearn') if name in sys.modules]\n"
        "assert not heavy, heavy\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_a_narrow_terminal_leaves_out_columns_and_breaks_no_name() -> None:
    names = [(name, "right") for name in ("point", "GMACs", "a long heading", "top-1 %", "seconds of all epochs")]
    shown = plain_table("Points", names)  # type: ignore[arg-type]
    shown.add_row("searched-attention0.5-mlp0.25-s0-ab12", "1.20", "x" * 20, "81.20", "1,234.5 s")
    narrow, log = terminal(), Console(file=io.StringIO(), width=80)
    show_fitting(narrow, shown, drop=("a long heading", "seconds of all epochs"))
    lines = lines_of(narrow)
    assert max(map(len, lines)) <= 80
    assert "searched-attention0.5-mlp0.25-s0-ab12" in lines[2]
    assert "81.20" in lines[2]
    assert "seconds of all epochs" in lines[1]  # it fits once the less important one is gone
    assert lines[-1] == "A wider window also shows: a long heading."
    show_fitting(log, shown, drop=("a long heading", "seconds of all epochs"))
    assert "x" * 20 in lines_of(log)[2]  # a log gets all of it


def test_a_long_note_wraps_beside_whole_names() -> None:
    error = "RuntimeError: " + "something went wrong " * 6
    name = "searched-compute-0.5000-params-lr0.0005-s0-ab12"
    part = TrainingStatus(name=name, state="failed", epochs=0, epochs_total=100, error=error)
    console = terminal()
    show_fitting(console, status_table(Status(name="x", alive=False, stages=[], points=[part])), drop=DROPPED, wraps="")
    lines = lines_of(console)[1:]
    assert max(map(len, lines)) <= 80
    assert any(line.startswith(name) and "failed" in line for line in lines)
    assert "wrong" in " ".join(lines)


def test_the_timings_fit_into_80_columns() -> None:
    common = {"device": "cpu", "hardware": "A processor", "threads": 2, "dtype": "float32", "compile": False, "batch_size": 8}
    measured = {"macs": 4e9, "latency_p50_ms": 100.0, "latency_p90_ms": 110.0, "images_per_second": 80.0, "busy": "load"}
    rows = [{**common, **measured, "peak_memory_bytes": None, "point": p} for p in ("dense", "searched-0.5000-s0-1eef")]
    console = terminal()
    show_fitting(console, table(rows), drop=("fewer MACs", "memory", "p90 ms", "GMACs", "images/s"))
    lines = lines_of(console)[1:]
    assert max(map(len, lines)) <= 80
    assert any("searched-0.5000-s0-1eef" in line and "100.00" in line and "machine busy" in line for line in lines)


def test_a_path_can_be_clicked_in_a_terminal_and_is_plain_elsewhere(tmp_path: Path) -> None:
    page = tmp_path / "a page" / "report.html"
    shown, log = (
        Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=40),
        Console(file=io.StringIO()),
    )
    for console in (shown, log):
        say_path(console, "Report: ", str(page))
    assert f"{page.as_uri()}\x1b\\" in shown.file.getvalue()  # type: ignore[attr-defined]
    assert lines_of(log) == [f"Report: {page}"]
    say_path(shown, "", "s3://bucket/report.html")
    assert "file://s3" not in shown.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("installed", [True, False])
def test_a_missing_picture_is_said_to_those_who_asked_for_one(
    installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("slimsweep.report.page.write_report", lambda run, status: "no static picture was written: why")
    monkeypatch.setattr(picture, "kaleido_here", lambda: installed)
    assert main(["report", str(FINISHED)]) == 0
    said = capsys.readouterr()
    assert said.out.strip().endswith("report.html")
    assert ("no static picture" in said.err) == installed


def test_an_export_of_a_runs_model_goes_beside_its_models(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = Run(tmp_path / "digits")
    run.folder.write_bytes("config.yaml", (FINISHED / "config.yaml").read_bytes())
    model = small_vit()
    for name in ("dense", "models/searched-0.5"):
        save(model, tmp_path / "digits" / name)
    written = export_checked(tmp_path / "digits" / "models" / "searched-0.5", "timm")
    assert written.path == tmp_path / "digits" / "exports" / "searched-0.5-timm"
    assert written.difference == 0
    assert written.size == sum(file.stat().st_size for file in written.path.iterdir())
    assert {file.name for file in (tmp_path / "digits" / "models").iterdir()} == {"searched-0.5"}
    assert run.models.list() == ["searched-0.5"]
    assert export_model(tmp_path / "digits" / "dense", "timm") == tmp_path / "digits" / "exports" / "dense-timm"
    elsewhere = tmp_path / "mine"
    assert main(["export", (run.models / "searched-0.5").uri, "--format", "timm", "--output", str(elsewhere)]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(elsewhere)
    assert "the outputs are those of the model" in said.err
    assert f"{written.size / 2**10:.0f} KiB" in said.err or f"{written.size / 2**20:.1f} MiB" in said.err


def test_a_plan_says_how_far_its_timing_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimsweep.tools.plan.import_seconds", lambda: 1.0)
    config, _ = load_config(["--config", "digits", "--budgets", "0.5"])
    said: list[tuple[int, int, str]] = []
    plan(config, images=Images(train=100, val=10, test=10), tflops=1, progress=lambda *one: said.append(one))
    done, totals, what = zip(*said, strict=True)
    assert list(done) == list(range(len(said)))
    assert set(totals) == {len(said)}  # the bar ends where the timing does
    assert what[:2] == ("the dense model", "the search")
