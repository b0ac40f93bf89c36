"""A run that an earlier version finished is read, planned, extended and reported, and nothing of it is trained again.

tests/data/finished-run was made by version 0.1.0 (from tests/data/start.safetensors, then at /mnt/weights), before points
were planned in writing. Its names must never change.
"""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import slimsweep
from slimsweep.earlier_start import start_or_continue
from slimsweep.ledger.lock import hold
from slimsweep.ledger.planning import make_plan, plan_points, points_to_do
from slimsweep.ledger.run import Run
from slimsweep.ledger.status import read_status
from slimsweep.report.page import read_run, write_report
from slimsweep.run import main

DATA = Path(__file__).parent / "data"
POINTS = {
    "dense-1.0000-s0",
    "searched-0.6000-s0",
    "uniform-0.6000-s0",
    "scratch-0.6000-s0",
    "searched-0.4000-s0",
    "uniform-0.4000-s0",
    "scratch-0.4000-s0",
}


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A copy of the finished run, and beside it the checkpoint that it started from, which has moved."""
    shutil.copytree(DATA / "finished-run", tmp_path / "finished")
    (tmp_path / "moved").mkdir()
    shutil.copy(DATA / "start.safetensors", tmp_path / "moved" / "start.safetensors")
    return tmp_path / "finished"


def command(run: Path, *more: str) -> list[str]:
    """The command that goes on with the run: its own configuration, from where its files are now."""
    moved = run.parent / "moved" / "start.safetensors"
    return ["--config", str(run / "config.yaml"), "--output", str(run.parent), "--model.checkpoint", str(moved), *more]


def epochs(run: Path) -> Counter:
    lines = [json.loads(line) for line in (run / "epochs.log").read_text().splitlines()]
    return Counter((entry["stage"], entry["point"]) for entry in lines)


def names(run: Path) -> set[str]:
    return {file.stem for file in (run / "results").glob("*.parquet")}


def test_an_earlier_run_is_read_without_its_plan(finished: Path) -> None:
    run = Run(finished)
    status = read_status(run)
    assert {part.name.rpartition("-")[0] for part in status.points} == POINTS
    assert status.count("done") == len(POINTS)
    assert status.unplanned
    assert status.finished  # nothing waits, as far as can be said
    assert "7 points are done" in status.next
    assert "the next start of the same command adds" in status.next
    write_report(run, status)
    assert len(read_run(run, status).results) == len(POINTS)
    assert "searched" in (finished / "report.html").read_text()


def test_names_of_an_earlier_run_are_what_is_planned_now(finished: Path) -> None:
    run = Run(finished)
    points = plan_points(run)
    assert {point.name for point in points} == names(finished)
    assert points_to_do(run, points) == []
    # What was written then is what is written now: the same structures at the same places.
    rows = run.rows.set_index("point")
    assert all(point.structure == rows.structure[point.name] for point in points)
    assert all(point.hash == rows.point_hash[point.name] for point in points)


@pytest.fixture
def later_version(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Runs the command of a later version: the same code, whose recipes have one more setting with a neutral default."""
    package = tmp_path / "later" / "slimsweep"
    shutil.copytree(Path(slimsweep.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    sections = package / "config" / "sections.py"
    begin = 'class Recipe(Section):\n    """One training."""\n'
    assert begin in sections.read_text()
    field = '\n    later: float = Field(0.0, ge=0)\n    """A setting of a later version."""\n'
    sections.write_text(sections.read_text().replace(begin, begin + field))

    def run(words: list[str]) -> tuple[int, str]:
        ended = subprocess.run(
            [sys.executable, "-m", "slimsweep.run", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "later")},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return ended.returncode, " ".join((ended.stdout + ended.stderr).split())

    return run


@pytest.mark.slow
def test_a_later_version_changes_no_name_and_trains_only_what_is_new(
    finished: Path, later_version: Callable[..., tuple[int, str]]
) -> None:
    before, known = epochs(finished), names(finished)
    code, said = later_version(command(finished, "--budgets", "0.6,0.4,0.5", "--baselines", "[]"))
    assert code == 0, said
    stored = yaml.safe_load((finished / "config.yaml").read_text())
    assert [stored[stage]["later"] for stage in ("dense", "search", "retrain")] == [0.0] * 3  # it was that version
    trained = set(epochs(finished)) - set(before)
    assert {name.rpartition("-")[0] for _, name in trained} == {"searched-0.5000-s0"}
    assert all(epochs(finished)[key] == count for key, count in before.items())
    assert known < names(finished)
    planned = json.loads((finished / "plan.json").read_text())["points"]
    asked = {name for name in names(finished) if name.split("-")[0] in ("dense", "searched")}
    assert {point["name"] for point in planned} == asked
    assert "searched-0.5000" in said
    assert "goes on as that did, with search.axes false, retrain.repair false, retrain.repair_target branch, so" in " ".join(
        said.split()
    )
    assert (finished / "report.html").stat().st_size > 1_000_000

    # A value that changes results is refused by its name, and loses nothing.
    rows = names(finished)
    code, said = later_version(command(finished, "--retrain.later", "0.5"))
    assert code == 2
    assert "retrain.later changed since" in said
    assert names(finished) == rows


def test_a_checkpoint_may_move_but_not_change(finished: Path, capsys: pytest.CaptureFixture) -> None:
    before = epochs(finished)
    assert main(command(finished)) == 0  # /mnt/weights is another folder now
    assert epochs(finished) == before
    again = finished.parent / "elsewhere" / "renamed.safetensors"
    again.parent.mkdir()
    shutil.copy(DATA / "start.safetensors", again)
    assert main(command(finished, "--model.checkpoint", str(again))) == 0  # the content is known by now
    assert epochs(finished) == before
    other = bytearray(again.read_bytes())
    other[-1] ^= 1
    again.write_bytes(bytes(other))
    capsys.readouterr()
    assert main(command(finished, "--model.checkpoint", str(again))) == 2
    assert "holds other weights" in " ".join(capsys.readouterr().out.split())
    assert epochs(finished) == before


def test_a_restart_shows_points_that_wait_as_waiting(finished: Path) -> None:
    """A point that an earlier start began, and whose curve is there, is not under way before a trial says so."""
    run = Run(finished)
    (row,) = (finished / "results").glob("searched-0.4000-*.parquet")
    row.unlink()
    with hold(run):
        run.write_plan(make_plan(run.refresh(), "a-new-start"))
        part = next(part for part in read_status(run).points if part.name == row.stem)
        assert part.state == "waiting"
        assert part.epochs == 2  # its curve is there
        run.begin(row.stem, "an-old-start")
        assert next(p for p in read_status(run).points if p.name == row.stem).state == "waiting"
        run.begin(row.stem, "a-new-start")
        assert next(p for p in read_status(run).points if p.name == row.stem).state == "running"
    assert next(p for p in read_status(run).points if p.name == row.stem).state == "waiting"


def test_a_driver_that_has_ended_its_work_is_not_at_work(finished: Path) -> None:
    run = Run(finished)
    plan = make_plan(run, "a-start")
    with hold(run):
        run.write_plan(plan)
        assert read_status(run).alive
        run.write_plan(replace(plan, over=True))
        assert not read_status(run).alive


def test_between_the_search_and_its_plan_the_points_are_said_to_be_planned_next(finished: Path) -> None:
    run = Run(finished)
    with hold(run):
        run.write_plan(replace(make_plan(run, "a-start"), points=()))
        status = read_status(run)
        assert status.live
        assert "planned next" in status.next


def test_a_checkpoint_may_be_corrected_before_anything_was_made_from_it(finished: Path) -> None:
    for name in ("dense", "search", "results", "curves", "models", "baselines"):
        shutil.rmtree(finished / name)
    right, wrong = (finished.parent / f"{name}.safetensors" for name in ("right", "wrong"))
    right.write_bytes((DATA / "start.safetensors").read_bytes())
    wrong.write_bytes(b"something else")
    config = Run(finished).config

    def begun_with(checkpoint: Path) -> Run:
        run = Run(finished, config.changed(**{"model.checkpoint": str(checkpoint)}))
        start_or_continue(run)
        return run

    first = begun_with(wrong).identity("dense")["model"]["checkpoint"]
    second = begun_with(right).identity("dense")["model"]["checkpoint"]
    assert first.startswith("sha256:")
    assert second.startswith("sha256:")
    assert first != second
