"""The real MLflow, W&B and TensorBoard, with a finished run and with a whole sweep; skipped where a package is missing."""

import json
import os
import runpy
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slimsweep.ledger.run import Run
from slimsweep.trackers import Tracking

pytestmark = pytest.mark.slow  # their packages take seconds to load

PICTURE = Path(__file__).parents[1] / "reports" / "trackers" / "picture.py"
FINISHED = Path(__file__).parent / "data" / "finished-run"
POINT = "searched-0.4000-s0-1eef"
TRAININGS = {"dense", "search", *(file.stem for file in (FINISHED / "results").iterdir())}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a finished run of seven points, and the current folder beside it."""
    monkeypatch.chdir(tmp_path)
    for name in [n for n in os.environ if n.startswith(("MLFLOW_", "WANDB_"))]:
        monkeypatch.delenv(name)
    if "wandb" in sys.modules:  # it keeps the folder and the mode of an earlier test of this process
        sys.modules["wandb"].teardown()
    return shutil.copytree(FINISHED, tmp_path / "finished")


def tracked(folder: Path, tracker: str, curves: dict[str, int] | None = None, **changes: Any) -> Run:
    """Track a run; it must give no warning.

    Args:
        curves: how many epochs some trainings have, which then have not ended.
    """
    run = Run(folder)
    run.take_config(run.config.changed(trackers=[tracker], **changes))
    hidden = {}
    for name, epochs in (curves or {}).items():
        hidden[name] = (folder / "results" / f"{name}.parquet").read_bytes(), run.curve(name)
        run.delete_row(name)
        run.write_curve(name, [row for row in run.curve(name) if row["epoch"] <= epochs])
    said: list[str] = []
    with Tracking(run, said.append):
        pass
    assert said == []
    for name, (row, curve) in hidden.items():
        run.write_curve(name, curve)
        (folder / "results" / f"{name}.parquet").write_bytes(row)
    return run


# MLflow.


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with a database of its own."""
    pytest.importorskip("mlflow")
    with runpy.run_path(str(PICTURE))["mlflow_server"](tmp_path_factory.mktemp("mlflow")) as address:
        yield address


def runs_of(server: str, experiment: str) -> tuple[Any, Any, dict[str, Any]]:
    """(client, the sweep's run, the runs in it by their names) of an experiment with one sweep."""
    from mlflow import MlflowClient

    client = MlflowClient(server)
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert len({run.info.run_name for run in children}) == len(children)
    return client, parent, {run.info.run_name: run for run in children}


def files(client: Any, run: Any, path: str | None = None) -> set[str]:
    return {one.path for one in client.list_artifacts(run.info.run_id, path)}


def test_mlflow_has_a_run_per_sweep_with_one_per_point_in_it(
    folder: Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    (folder / "report.html").write_text("the page")
    run = tracked(folder, "mlflow", **{"tracking.project": "whole"})
    client, parent, children = runs_of(mlflow_server, "whole")
    assert parent.info.run_name == run.config.name
    assert parent.info.status == "FINISHED"
    assert parent.data.params["retrain.epochs"] == "2"
    assert files(client, parent) == {"config.yaml", "report.html"}
    assert children.keys() == TRAININGS
    child, row = children[POINT], run.row(POINT)
    assert child.info.status == "FINISHED"
    assert (child.data.params["method"], float(child.data.params["budget"])) == ("searched", 0.4)
    assert child.data.metrics["test_top1"] == row["test_top1"]
    assert child.data.metrics["macs"] == row["macs"]
    # It lasted as long as its epochs, and ended when the last one did, not when MLflow was told.
    curve, took = folder / "curves" / f"{POINT}.parquet", 1000 * sum(one["seconds"] or 0 for one in run.curve(POINT))
    assert child.info.end_time == pytest.approx(curve.stat().st_mtime * 1000, abs=2)
    assert child.info.end_time - child.info.start_time == pytest.approx(took, abs=2)
    history = client.get_metric_history(child.info.run_id, "val_top1")
    assert [(one.step, one.value) for one in history] == [(one["epoch"], one["val_top1"]) for one in run.curve(POINT)]
    assert {"loss", "learning_rate", "seconds"} <= child.data.metrics.keys()
    assert files(client, child) == {"structure.json", "model"}
    assert files(client, child, "model") == {"model/config.json", "model/model.safetensors"}


def test_mlflow_is_told_nothing_twice(folder: Path, mlflow_server: str) -> None:
    settings = {"tracking.project": "parts", "tracking.mlflow_uri": mlflow_server, "tracking.models": False}
    tracked(folder, "mlflow", {POINT: 1}, **settings)
    client, parent, children = runs_of(mlflow_server, "parts")
    assert children[POINT].info.status == "KILLED"
    assert parent.info.status == "FINISHED"  # an earlier version's run has no plan that says what is missing
    # As if the start had been killed before it noted anything but its own name.
    told = json.loads((folder / "trackers" / "mlflow.json").read_text())
    (folder / "trackers" / "mlflow.json").write_text(json.dumps({"id": told["id"], "places": {}}))
    for _ in range(2):
        tracked(folder, "mlflow", **settings, budgets=[0.6, 0.4, 0.5])
    client, parent, children = runs_of(mlflow_server, "parts")
    assert parent.data.params["budgets"] == "[0.6, 0.4]"  # MLflow changes no parameter
    assert {name: text for name, text in parent.data.tags.items() if name.startswith("now.")} == {
        "now.budgets": "[0.6, 0.4, 0.5]"
    }
    assert children.keys() == TRAININGS
    assert children[POINT].info.status == "FINISHED"
    for name, child in children.items():
        history = client.get_metric_history(child.info.run_id, "epoch")
        assert [one.step for one in history] == [row["epoch"] for row in Run(folder).curve(name)], name


def test_a_run_that_somebody_deleted_in_mlflow_is_made_again(folder: Path, mlflow_server: str) -> None:
    settings = {"tracking.project": "deleted", "tracking.mlflow_uri": mlflow_server, "tracking.models": False}
    tracked(folder, "mlflow", {POINT: 1}, **settings)
    client, _, children = runs_of(mlflow_server, "deleted")
    client.delete_run(children[POINT].info.run_id)
    tracked(folder, "mlflow", **settings)
    client, _, children = runs_of(mlflow_server, "deleted")
    history = client.get_metric_history(children[POINT].info.run_id, "epoch")
    assert [one.step for one in history] == [row["epoch"] for row in Run(folder).curve(POINT)]


NEVER = """
import sys
from slimsweep.ledger.run import Run
from slimsweep.trackers import Tracking, follow
import time
follow.CALL_SECONDS = 2
run = Run(sys.argv[1])
run.take_config(run.config.changed(trackers=[sys.argv[2]]))
with Tracking(run, lambda text: print(text, flush=True)):
    time.sleep(6)  # a sweep
print(f"ended {time.time()}", flush=True)
"""


@pytest.mark.parametrize("tracker", ["mlflow", "wandb"])
@pytest.mark.parametrize("answers", [True, False], ids=["hangs", "refuses"])
def test_a_process_ends_in_time_whose_server_does_not_answer(folder: Path, tracker: str, answers: bool) -> None:
    """The server takes connections and never answers, or there is none."""
    pytest.importorskip(tracker)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if answers:
            silent.listen(64)
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        where = {"MLFLOW_TRACKING_URI": address, "WANDB_BASE_URL": address, "WANDB_API_KEY": 40 * "b"}
        words = [sys.executable, "-c", NEVER, str(folder), tracker]
        done = subprocess.run(words, env={**os.environ, **where}, capture_output=True, text=True, timeout=200, check=False)
        ended = time.time()
    assert done.returncode == 0, done.stderr
    *warnings, last = [line for line in done.stdout.splitlines() if line.startswith((f"{tracker}: ", "ended"))]
    assert len(warnings) == 1, done.stdout
    assert "the run goes on" in warnings[0]
    assert (folder / "notes.log").read_text() == f"{warnings[0]}\n"
    assert ended - float(last.removeprefix("ended ")) < 15  # the interpreter itself ends too
    assert 40 * "b" not in done.stdout + done.stderr


# TensorBoard.


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return [(one.step, one.value) for one in events.Scalars(name)]


def test_tensorboard_has_a_folder_per_point_and_each_epoch_once(folder: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tracked(folder, "tensorboard", {POINT: 1})
    assert {one.name for one in (folder / "tensorboard").iterdir()} == {*TRAININGS, "sweep"}
    assert [step for step, _ in scalars(folder / "tensorboard" / POINT, "val_top1")] == [0, 1]
    # A start that was killed before it noted what it had written.
    told = json.loads((folder / "trackers" / "tensorboard.json").read_text())
    (place,) = told["places"].values()
    place["epochs"][POINT] = 0
    (folder / "trackers" / "tensorboard.json").write_text(json.dumps(told))
    tracked(folder, "tensorboard")
    found = scalars(folder / "tensorboard" / POINT, "val_top1")
    assert found == [(row["epoch"], pytest.approx(row["val_top1"])) for row in run.curve(POINT)]
    (final,) = scalars(folder / "tensorboard" / POINT, "result/test_top1")
    assert final == (2, pytest.approx(run.row(POINT)["test_top1"]))
    events = EventAccumulator(str(folder / "tensorboard" / "sweep")).Reload()
    assert "configuration/text_summary" in events.Tags()["tensors"]
    tuned = EventAccumulator(str(folder / "tensorboard" / POINT)).Reload()
    assert "_hparams_/session_start_info" in tuned.PluginTagToContent("hparams")


def test_tensorboard_takes_another_folder(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = tracked(folder, "tensorboard", **{"tracking.tensorboard": str(tmp_path / "boards")})
    assert not (folder / "tensorboard").exists()
    assert scalars(tmp_path / "boards" / run.config.name / POINT, "val_top1")


# W&B.


BLOCK, HEADER = 32768, 7  # bytes: W&B writes the log format of LevelDB


def log_entries(content: bytes) -> Iterator[bytes]:
    """The entries of a log in LevelDB's format: pieces of a checksum (4 bytes), length (2), kind (1) and data."""
    at, entry = HEADER, b""  # W&B's own header
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:  # the rest of a block that is too short for a piece
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + HEADER])
        entry += content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # the only piece, or the last one
            yield entry
            entry = b""


def wandb_records(folder: Path) -> list[Any]:
    """The records of each run of this process that W&B has written to disk."""
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # waits for W&B's process: `finish()` may return before that has written more than the file's header
    logs = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    return [[wandb_internal_pb2.Record.FromString(entry) for entry in log_entries(log.read_bytes())] for log in logs]


def test_wandb_has_a_group_per_sweep_and_a_run_per_point(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tracked(folder, "wandb", {POINT: 1}, **{"tracking.project": "mine"})
    tracked(folder, "wandb", **{"tracking.project": "mine"})
    parts = wandb_records(folder.parent)
    heads = [next(record.run for record in records if record.HasField("run")) for records in parts]
    assert {head.display_name for head in heads} == {*TRAININGS, run.config.name}
    assert {head.project for head in heads} == {"mine"}
    (group,) = {head.run_group for head in heads}
    assert group.startswith(f"{run.config.name}-")
    assert {head.job_type for head in heads} == {"sweep", "stage", "point"}
    of_point = [records for records, head in zip(parts, heads, strict=True) if head.display_name == POINT]
    assert len({head.run_id for head in heads if head.display_name == POINT}) == 1
    logged = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for records in of_point
        for record in records
        if record.HasField("history")
    ]
    curve = run.curve(POINT)
    assert [(one["epoch"], one["val_top1"]) for one in logged] == [(row["epoch"], row["val_top1"]) for row in curve]
    summary = {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for records in of_point
        for record in records
        if record.HasField("summary")
        for item in record.summary.update
    }
    assert summary["test_top1"] == run.row(POINT)["test_top1"]
    artifacts = [record.artifact for records in of_point for record in records if record.HasField("artifact")]
    artifacts += [
        record.request.log_artifact.artifact
        for records in of_point
        for record in records
        if record.HasField("request") and record.request.HasField("log_artifact")
    ]
    assert {(one.type, one.name) for one in artifacts} == {("model", f"{group}-{POINT}")}


# A whole sweep.


@pytest.mark.cluster
def test_a_whole_sweep_tells_all_three(
    ray_cluster: None, folder: Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mlflow", "wandb", "tensorboard"):
        pytest.importorskip(name)
    from conftest import QUICK

    from slimsweep.run import main

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "sweeps")
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = ["--name", "tracked", "--output", str(folder.parent), "--budgets", "0.5", *QUICK]
    assert main([*words, "--trackers", "mlflow,wandb,tensorboard"]) == 0
    run = Run(folder.parent / "tracked")
    points = {"dense", "search", *run.rows.point}
    assert len(points) == 4
    client, parent, children = runs_of(mlflow_server, "sweeps")
    assert children.keys() == points
    assert {child.info.status for child in [parent, *children.values()]} == {"FINISHED"}
    assert files(client, parent) == {"config.yaml", "report.html"}
    for name in points:
        steps = [row["epoch"] for row in run.curve(name)]
        history = client.get_metric_history(children[name].info.run_id, "val_top1")
        assert [one.step for one in history] == steps, name
        assert [step for step, _ in scalars(Path(run.uri) / "tensorboard" / name, "val_top1")] == steps, name
    heads = [next(one.run for one in records if one.HasField("run")) for records in wandb_records(folder.parent)]
    assert {head.display_name for head in heads} == {*points, "tracked"}
    # Another budget, with another tracker alone: no point is made again.
    before = (Path(run.uri) / "epochs.log").read_text()
    assert main([*words, "--budgets", "0.5,0.4", "--trackers", "tensorboard"]) == 0
    after = (Path(run.uri) / "epochs.log").read_text()
    assert after.startswith(before)
    new = {json.loads(line)["point"] for line in after.removeprefix(before).splitlines()}
    assert len(new) == 1
    assert len(runs_of(mlflow_server, "sweeps")[2]) == 4
