"""A run that an earlier version finished is read, planned, extended and reported, and nothing of it is trained again.

tests/data/finished-run was made by version 0.1.0 (from tests/data/start.safetensors, then at /mnt/weights), before points
were planned in writing. Its names must never change.
"""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml
from pydantic import Field

from slimsweep import config as configuration
from slimsweep.config import sections
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
    assert not status.planned
    assert "7 points are done" in status.next
    assert "start of the same command adds" in status.next.replace("next ", "")
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
def one_more_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version: every recipe has a setting that this one has not, with a default that changes nothing."""
    field = Field(0.0, ge=0, description="A setting of a later version.")
    for section in (sections.Dense, sections.Search, sections.Retrain):
        later = type(
            section.__name__, (section,), {"__annotations__": {"later": float}, "later": field, "__module__": __name__}
        )
        annotated = configuration.Config.model_fields[section.__name__.lower()]
        monkeypatch.setattr(annotated, "annotation", later)
        monkeypatch.setattr(annotated, "default", later())
    configuration.Config.model_rebuild(force=True)
    yield
    monkeypatch.undo()
    configuration.Config.model_rebuild(force=True)


def test_a_new_field_changes_no_name_and_only_a_new_budget_is_trained(
    ray_cluster: None, finished: Path, one_more_field: None
) -> None:
    before, known = epochs(finished), names(finished)
    assert "later" not in yaml.safe_load((finished / "config.yaml").read_text())["retrain"]
    assert main(command(finished, "--budgets", "0.6,0.4,0.5", "--baselines", "[]")) == 0
    assert yaml.safe_load((finished / "config.yaml").read_text())["retrain"]["later"] == 0.0
    trained = epochs(finished) - before
    assert {name.rpartition("-")[0] for _, name in trained} == {"searched-0.5000-s0"}
    assert known < names(finished)
    status = read_status(Run(finished))
    assert status.planned
    assert status.finished
    # The plan, the results and the page hold what there was and what is new.
    assert {part.name for part in status.points} == {n for n in names(finished) if n.split("-")[0] in ("dense", "searched")}
    assert "searched-0.5000" in (finished / "plan.json").read_text()


def test_a_value_of_the_new_field_is_refused_by_name(
    finished: Path, one_more_field: None, capsys: pytest.CaptureFixture
) -> None:
    assert main(command(finished, "--retrain.later", "0.5")) == 2
    assert "retrain.later changed since" in " ".join(capsys.readouterr().out.split())


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
