"""One bad file is one bad file: it is named, what else is in the run is read, and the next start makes it again where it can.

Each kind of file of a run is emptied, cut short and overwritten in a copy of a finished run.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from slimsweep.cli import main
from slimsweep.cluster.choose_job import choose_pace
from slimsweep.cluster.retrain_job import retrain, trial
from slimsweep.cluster.worker import job_arguments
from slimsweep.config import Config
from slimsweep.earlier_start import start_or_continue
from slimsweep.errors import DamagedFile, OutOfTime
from slimsweep.ledger.checkpoints import Checkpoints
from slimsweep.ledger.damage import damaged_models, look_over, refuse_lost_sources
from slimsweep.ledger.lock import hold
from slimsweep.ledger.planning import make_plan, plan_points, points_to_do
from slimsweep.ledger.recorder import RunRecorder
from slimsweep.ledger.run import Run
from slimsweep.ledger.status import read_status
from slimsweep.ledger.tables import complete_row
from slimsweep.report.page import write_report
from slimsweep.report.run_tables import read_run
from slimsweep.run import main as run_main

DATA = Path(__file__).parent / "data"
POINT = "searched-0.4000-s0-1eef"

# What happens to a file: a full disk, a kill in the middle of a copy, a disk that returns other bytes.
WAYS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "overwritten": lambda content: bytes(len(content)),
}
# Files that a run can do without: the commands read all else.
KINDS = {
    "row": f"results/{POINT}.parquet",
    "curve of a point": f"curves/{POINT}.parquet",
    "curve of a stage": "curves/search.parquet",
    "gates": "search/gates.parquet",
    "sizes": "search/search.json",
    "pace": "search/pace-64b19215.json",
    "try of a pace": "search/pace-attention1-mlp1-token1-ccb137ab.json",
    "choice": "baselines/uniform-0.400000000-64b19215.json",
    "plan": "plan.json",
    "timings": "bench/20260101T000000-abcdef.parquet",
    "weights of a model": "models/uniform-0.4000-s0-af58/model.safetensors",
    "description of a model": "models/scratch-0.6000-s0-f7d3/config.json",
    "searched weights": "search/model.safetensors",
    "dense weights": "dense/model.safetensors",
    "dense description": "dense/config.json",
    "checkpoint": "checkpoints/search/epoch-00001.safetensors",
    "log of images": "damaged.log",
}


@pytest.fixture
def folder(whole_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole_run, tmp_path / "finished")


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a finished run, with the files that it lacks: a plan, timings, a checkpoint and a log of damaged images."""
    copy = shutil.copytree(DATA / "finished-run", tmp_path_factory.mktemp("whole") / "finished")
    run = Run(copy)
    run.write_plan(make_plan(run, "start", over=True))
    run.products.write_bench([{"run": "finished", "point": POINT, "batch_size": 1, "latency_p50_ms": 1.0, "macs": 1}])
    next((copy / "bench").iterdir()).rename(copy / "bench" / "20260101T000000-abcdef.parquet")
    Checkpoints(run, "search").save(1, {"weight": torch.arange(300.0), "epoch": 1})
    run.logs.add_damaged_image("train", "a.png", "it is no image")
    return copy


def damage(folder: Path, path: str, way: str = "empty") -> None:
    file = folder / path
    file.write_bytes(WAYS[way](file.read_bytes()))


def driver(folder: Path, **changes: object) -> Run:
    """The run as a driver has it whose command is that of the first start; the checkpoint has moved."""
    config = Run(DATA / "finished-run").config
    moved = {"model.checkpoint": str(DATA / "start.safetensors"), "output": str(folder.parent)}
    return Run(folder, config.changed(**{**moved, **changes}))


def begin(run: Run) -> Run:
    """What a driver does before it trains anything."""
    look_over(run)
    start_or_continue(run)
    return run


@pytest.mark.parametrize("kind", KINDS)
def test_each_damaged_file_is_named_once_and_the_rest_is_read(kind: str, folder: Path) -> None:
    whole = (folder / KINDS[kind]).read_bytes()
    for way in WAYS if kind != "log of images" else ("cut", "overwritten"):  # an empty log is a log without images
        damage(folder, KINDS[kind], way)
        run = Run(folder)
        named = [sentence for sentence in look_over(run) if str(folder / KINDS[kind]) in sentence]
        assert len(named) == len(run.damaged) == 1
        status = read_status(run)
        assert status.count("done") == (6 if kind == "row" else 7)
        assert len(read_run(run, status).results) == status.count("done")
        (folder / KINDS[kind]).write_bytes(whole)
    assert look_over(Run(folder)) == []


def test_the_commands_name_all_damaged_files_and_show_the_rest(folder: Path, capsys: pytest.CaptureFixture) -> None:
    for kind, way in zip(KINDS, [*WAYS] * len(KINDS), strict=False):
        damage(folder, KINDS[kind], "cut" if kind == "log of images" else way)
    assert main(["status", str(folder)]) == 0
    said = capsys.readouterr().out.splitlines()
    for path in KINDS.values():
        assert len([line for line in said if str(folder / path) in line]) == 1, path  # once, and on one line
    assert any(line.startswith("searched-0.6000-s0-9567") and "done" in line for line in said)

    assert main(["report", str(folder)]) == 0
    missing = capsys.readouterr().err
    assert (folder / "report.html").stat().st_size > 1_000_000
    for kind in ("row", "curve of a point", "curve of a stage", "gates", "pace", "timings", "plan"):
        assert str(folder / KINDS[kind]) in missing  # what the page lacks

    assert main(["pick", str(folder), "--min-top1", "52"]) == 0
    assert capsys.readouterr().out.strip().endswith("searched-0.6000-s0-9567")


def test_a_point_whose_row_is_damaged_is_trained_again_and_no_other(folder: Path) -> None:
    before = {file.name: file.read_bytes() for file in (folder / "results").iterdir()}
    damage(folder, KINDS["row"], "cut")
    (part,) = [part for part in read_status(Run(folder)).points if part.name == POINT]
    assert (part.state, part.note) == ("waiting", "its row is damaged")
    run = begin(driver(folder))
    (point,) = points_to_do(run, plan_points(run))
    assert point.name == POINT
    assert not run.has_row(POINT)
    with hold(run):
        arguments = job_arguments(run, attempt="again", until=None)
        assert trial({"point": vars(point)}, arguments) == {"error": ""}
    assert points_to_do(run.refresh(), plan_points(run)) == []
    assert KINDS["row"] not in run.damaged
    after = {file.name: file.read_bytes() for file in (folder / "results").iterdir()}
    assert {name for name in before if before[name] != after[name]} == {f"{POINT}.parquet"}
    assert len(pd.read_parquet(folder / "results")) == 7


@pytest.mark.parametrize(("kind", "way"), [("gates", "empty"), ("gates", "cut"), ("sizes", "cut")])
def test_gates_and_sizes_are_written_again_from_the_searched_model(kind: str, way: str, folder: Path) -> None:
    known = Run(folder)
    table, shape = known.gates_table(), known.shape
    damage(folder, KINDS[kind], way)
    with pytest.raises(DamagedFile, match="the same command writes the file again"):
        _ = Run(folder).gates
    run = begin(driver(folder))
    assert run.damaged == {}
    pd.testing.assert_frame_equal(Run(folder).gates_table(), table)
    assert Run(folder).shape == shape
    assert points_to_do(run, plan_points(run)) == []


def test_a_pace_that_was_chosen_is_found_again_from_its_tries(folder: Path, ray_cluster: None) -> None:
    path = folder / KINDS["pace"]
    before = json.loads(path.read_text())
    Checkpoints(Run(folder), "searched-0.5000-s0-abcd").save(1, {"epoch": 1})
    damage(folder, KINDS["pace"])
    run = begin(driver(folder))
    assert choose_pace(run)  # all tries are there: nothing is trained
    assert json.loads(path.read_text())["pace"] == before["pace"]
    assert Checkpoints(run, "searched-0.5000-s0-abcd").load() is not None  # begun at this pace


@pytest.mark.parametrize("kind", ["weights of a model", "description of a model"])
def test_a_damaged_model_is_found_and_not_handed_out(kind: str, folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert damaged_models(Run(folder)) == []
    damage(folder, KINDS[kind], "cut")
    damaged = Path(KINDS[kind]).parent.name
    assert damaged_models(Run(folder)) == [damaged]
    (folder / "models" / POINT).rename(folder / "models" / "kept")
    (folder / "models" / damaged).rename(folder / "models" / POINT)  # the most accurate one below the limit
    assert main(["pick", str(folder), "--max-macs", "0.45"]) == 2
    said = capsys.readouterr().out
    assert f"models/{POINT} is damaged" in said
    assert "the same command trains the point again" in said


def test_a_model_that_was_deleted_is_said_where_it_is_asked_for(folder: Path, capsys: pytest.CaptureFixture) -> None:
    """Deleting models to make room is no damage: their points stay done."""
    shutil.rmtree(folder / "models" / POINT)
    assert look_over(Run(folder)) == []
    assert main(["pick", str(folder), "--max-macs", "0.45"]) == 2
    said = capsys.readouterr().out
    assert f"models/{POINT} is gone" in said
    assert f"delete {folder}/results/{POINT}.parquet" in said
    bench = ["bench", str(folder), "--repeats", "1", "--batch-sizes", "1"]
    assert main(bench) == 0
    printed = capsys.readouterr()
    assert "searched-0.6000-s0-9567" in printed.out
    assert f"not timed: {folder}/models/{POINT}" in printed.err
    shutil.rmtree(folder / "models")
    assert main(bench) == 2
    assert "has none of the models of the 7 points" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["searched weights", "dense weights", "dense description"])
def test_a_lost_source_is_refused_only_where_points_are_to_be_trained_from_it(kind: str, folder: Path) -> None:
    damage(folder, KINDS[kind])
    run = begin(driver(folder))
    assert points_to_do(run, plan_points(run)) == []  # nothing needs it: the run is as finished as it was
    with pytest.raises(DamagedFile, match="restore it from a copy, or take another --name"):
        refuse_lost_sources(run)
    assert len(run.rows) == 7


@pytest.mark.parametrize("kind", ["searched weights", "dense weights", "dense description"])
def test_a_lost_source_is_made_again_where_no_point_is_done(kind: str, folder: Path) -> None:
    shutil.rmtree(folder / "results")
    damage(folder, KINDS[kind])
    run = begin(driver(folder))
    assert run.dense_done == (kind == "searched weights")
    assert not run.search_done
    assert not run.checkpoint_names()
    refuse_lost_sources(run)


@pytest.mark.parametrize("way", WAYS)
def test_a_damaged_configuration_is_written_again_where_results_show_what_it_was(
    way: str, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    before = begin(driver(folder)).config
    damage(folder, "config.yaml", way)
    assert main(["status", str(folder)]) == 2
    assert f"{folder}/config.yaml is damaged" in capsys.readouterr().out
    assert main(["pick", str(folder), "--max-macs", "0.45"]) == 0  # rows are all that it needs

    other = driver(folder, **{"search.epochs": 3})
    with pytest.raises(DamagedFile, match="restore it from a copy"):
        begin(other)
    run = begin(driver(folder))
    assert Run(folder).config.search == before.search
    assert points_to_do(run, plan_points(run)) == []


def test_a_configuration_that_was_cut_at_the_end_of_a_line_is_not_one_of_fewer_settings(folder: Path) -> None:
    begin(driver(folder))
    whole = (folder / "config.yaml").read_text()
    assert Config(**Run(folder).config.model_dump()) == Run(folder).config
    for count in range(len(whole.splitlines())):
        (folder / "config.yaml").write_text("".join(f"{line}\n" for line in whole.splitlines()[:count]))
        with pytest.raises(DamagedFile, match=r"config\.yaml is damaged"):
            Run(folder).stored_config()


@pytest.mark.parametrize("way", WAYS)
def test_names_outlive_a_damaged_identity(way: str, folder: Path, tmp_path: Path) -> None:
    """The run of an earlier version is named by its checkpoint's path, later ones by the content: the points say which."""
    run = begin(driver(folder))
    known = dict(run.known_checkpoint)
    assert known["token"] != known["content"]
    damage(folder, "identity.json", way)
    # As the first start left it: the driver has written the moved path into the configuration meanwhile.
    shutil.copy(DATA / "finished-run" / "config.yaml", folder / "config.yaml")
    run = begin(driver(folder))
    assert run.known_checkpoint == known
    assert points_to_do(run, plan_points(run)) == []

    other = tmp_path / "other.safetensors"
    other.write_bytes((DATA / "start.safetensors").read_bytes() + b" ")
    damage(folder, "identity.json", way)
    with pytest.raises(DamagedFile, match=r"identity\.json is damaged, and no result shows"):
        begin(driver(folder, **{"model.checkpoint": str(other)}))


class StopsAfterAnEpoch(RunRecorder):
    def checkpoint(self, epoch: int, state: Mapping[str, Any]) -> None:
        super().checkpoint(epoch, state)
        raise OutOfTime


def test_what_a_lost_curve_held_is_left_open_and_not_made_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training goes on from its checkpoint; its accuracy after the cut and its first seconds stood in the curve only."""
    run = begin(driver(folder))
    run.delete_row(POINT)
    run.delete_curve(POINT)
    (point,) = points_to_do(run.refresh(), plan_points(run))
    with monkeypatch.context() as patch:
        patch.setattr("slimsweep.cluster.retrain_job.recorder_of", StopsAfterAnEpoch)
        with pytest.raises(OutOfTime):
            retrain(run, point, torch.device("cpu"), 0)
    assert [epoch["epoch"] for epoch in run.curve(POINT)] == [0, 1]
    damage(folder, KINDS["curve of a point"])
    retrain(run, point, torch.device("cpu"), 0)
    assert [epoch["epoch"] for epoch in run.curve(POINT)] == [2]  # epoch 1 was not trained again
    row = run.refresh().rows.set_index("point").loc[POINT]
    assert row[["val_top1_cut", "train_seconds"]].isna().all()
    assert row.val_top1 == run.curve(POINT)[-1]["val_top1"]
    assert KINDS["curve of a point"] not in run.damaged
    assert len(read_run(run, read_status(run)).results) == 7
    write_report(run, read_status(run))  # the page takes what is not known


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"null", b"epoch", bytes(64), b"\xff" * 64])
def test_a_checkpoint_that_is_none_falls_back_to_the_one_before(content: bytes, folder: Path) -> None:
    kept = Checkpoints(Run(folder), "dense")
    kept.save(1, {"weight": torch.ones(2)})
    kept.save(2, {"weight": torch.zeros(2)})
    (folder / "checkpoints" / "dense" / "epoch-00002.safetensors").write_bytes(content)
    (folder / "checkpoints" / "dense" / "epoch-00003.safetensors.copy").write_bytes(b"")
    found = kept.load()
    assert found is not None
    assert (found[0], found[1]["weight"].tolist()) == (1, [1.0, 1.0])


def test_a_flipped_bit_in_a_table_is_no_other_number(folder: Path) -> None:
    run = Run(folder)
    row = next(row for row in run.rows.to_dict("records") if row["point"] == POINT)
    run.write_row(complete_row({**row, "val_top1": 12.5}))
    file = folder / KINDS["row"]
    whole = file.read_bytes()
    where = whole.index(b"PAR1") + len(whole) // 3
    for place in range(where, where + 60, 7):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        again = Run(folder)
        values = again.rows.set_index("point").val_top1
        assert POINT in again.damaged_rows or values[POINT] == 12.5
    file.write_bytes(whole)
    assert Run(folder).refresh().damaged_rows == set()


def test_a_log_whose_last_line_was_cut_keeps_its_other_lines(folder: Path) -> None:
    log = folder / "damaged.log"
    log.write_text(log.read_text() + '{"split": "train", "ima')
    run = Run(folder)
    assert run.logs.damaged_images() == {"a.png": "it is no image"}
    assert "1 of its lines" in run.damaged["damaged.log"]


def test_a_finished_run_with_damaged_files_is_whole_after_the_same_command(folder: Path, capsys: pytest.CaptureFixture) -> None:
    """Nothing is trained: all that was damaged follows from what is whole."""
    words = ["--config", str(DATA / "finished-run" / "config.yaml"), "--output", str(folder.parent)]
    words += ["--model.checkpoint", str(DATA / "start.safetensors")]
    assert run_main(words) == 0
    capsys.readouterr()
    epochs = (folder / "epochs.log").read_bytes()
    paths = ["search/gates.parquet", "search/search.json", "plan.json", "config.yaml"]
    for path in paths:
        damage(folder, path, "cut")
    assert run_main(words) == 0
    said = capsys.readouterr().out.splitlines()
    for path in paths:
        assert sum(f"{folder}/{path} is damaged" in line for line in said) == 1, path
    assert main(["status", str(folder)]) == 0
    assert "damaged" not in capsys.readouterr().out
    assert (folder / "epochs.log").read_bytes() == epochs
