"""`slimsweep list`: one line per run, from the run folders alone."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from service_runs import refuse_folder

from slimsweep.cli import main
from slimsweep.tools.list_runs import read_lines, runs_in

FINISHED = Path(__file__).parent / "data" / "finished-run"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A finished run; one that was stopped in its search; two runs of a sweep over two models; a folder of something else."""
    for name in ("done", "stopped", "sizes/small", "sizes/base"):
        shutil.copytree(FINISHED, tmp_path / name)
    for name in ("results", "models"):
        shutil.rmtree(tmp_path / "stopped" / name)
    (tmp_path / "stopped" / "search" / "search.json").unlink()
    next((tmp_path / "sizes" / "base" / "results").glob("searched-0.6*")).unlink()
    (tmp_path / "list.csv").write_text("no folder")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("no run")
    return tmp_path


def test_each_run_has_a_line_with_what_is_done(output: Path) -> None:
    lines, problems = read_lines(runs_in(str(output), lambda name, why: pytest.fail(f"{name}: {why}")))
    assert problems == []
    by_name = {line.name: line for line in lines}
    assert by_name.keys() == {"done", "stopped", "sizes/small", "sizes/base"}
    assert by_name["done"].state == "finished"
    assert by_name["done"].budgets == "2/2"
    assert by_name["done"].best.startswith("top-1 ")
    assert "% of MACs" in by_name["done"].best
    assert by_name["stopped"].state == "stopped"
    assert by_name["stopped"].stage.startswith("search ")
    assert (by_name["stopped"].budgets, by_name["stopped"].best) == ("0/2", "-")
    assert by_name["sizes/base"].budgets == "1/2"


def test_a_run_that_cannot_be_read_is_named_and_the_others_are_listed(output: Path, capsys: pytest.CaptureFixture) -> None:
    (output / "stopped" / "config.yaml").write_text("name: [")
    assert main(["list", str(output)]) == 0
    said = capsys.readouterr()
    assert "stopped is left out" in said.err
    assert "done " in said.out
    assert "sizes/base" in said.out


def test_a_folder_that_may_not_be_read_hides_no_run(
    output: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_folder(monkeypatch, "notes")
    assert main(["list", str(output)]) == 0
    said = capsys.readouterr()
    assert "notes is left out: it cannot be read (Permission denied)" in said.err
    assert "sizes/base" in said.out


def test_a_folder_without_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["list", str(tmp_path)]) == 2
    assert "holds no run of slimsweep: give the folder that --output names" in " ".join(capsys.readouterr().out.split())


def test_it_loads_no_torch(output: Path) -> None:
    code = f"""
import sys
from slimsweep.cli import main
assert main(["list", {str(output / "done")!r}]) == 0
print(*(name for name in ("torch", "timm", "ray") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
