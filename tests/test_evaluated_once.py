"""Validation is evaluated once after the last epoch: a row takes what its training found, and only a resumed one asks again."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from slimsweep.cluster import retrain_job
from slimsweep.cluster.retrain_job import retrain
from slimsweep.config import Config, Recipe
from slimsweep.data import Data, load_data
from slimsweep.earlier_start import start_or_continue
from slimsweep.ledger.planning import plan_points
from slimsweep.ledger.points import Point
from slimsweep.ledger.run import Run
from slimsweep.slimming.structure import image_size
from slimsweep.training import MemoryRecorder, build_dense, evaluate_split, train
from slimsweep.training.evaluate import Reference
from slimsweep.training.recorder import Recorder

DATA = Path(__file__).parent / "data"
CPU = torch.device("cpu")
POINT = "searched-0.4000-s0-1eef"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A finished run whose points are to be trained again."""
    shutil.copytree(DATA / "finished-run", tmp_path / "finished")
    config = Run(DATA / "finished-run").config
    moved = {"model.checkpoint": str(DATA / "start.safetensors"), "output": str(tmp_path)}
    run = Run(tmp_path / "finished", config.changed(**moved))
    start_or_continue(run)
    run.delete_row(POINT)
    run.delete_curve(POINT)
    return run.refresh()


def point_of(run: Run) -> Point:
    return next(point for point in plan_points(run) if point.name == POINT)


@pytest.fixture
def splits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The splits that a retraining evaluates after its training."""
    seen: list[str] = []

    def counted(model: Any, data: Data, split: Any, *more: Any) -> Any:
        seen.append(split)
        return evaluate_split(model, data, split, *more)

    monkeypatch.setattr(retrain_job, "evaluate_split", counted)
    return seen


def test_a_row_has_what_the_last_epoch_found_and_a_resumed_one_the_same(
    run: Run, splits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    point = point_of(run)

    def full(self: Run, row: dict[str, Any]) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Run, "write_row", full)
        with pytest.raises(OSError, match="No space left"):
            retrain(run, point, CPU, 0)
    assert splits == ["test"]
    trained = run.curve(POINT)

    splits.clear()
    retrain(run, point, CPU, 0)  # goes on after its last epoch, so that it has to evaluate
    assert splits == ["val", "test"]
    assert run.curve(POINT) == trained
    assert run.row(POINT)["val_top1"] == trained[-1]["val_top1"]


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.5}, {"amp": "bf16"}], ids=["plain", "average", "bf16"])
def test_what_training_found_is_what_evaluation_finds(run: Run, changes: dict[str, Any]) -> None:
    config, recipe = small(run.config, changes)
    model, data = model_and_data(config)
    found: dict[str, float] = {}
    trained = train(model, data, recipe, MemoryRecorder("dense"), device=CPU, evaluated=found)
    assert found == {"val_top1": evaluate_split(trained, data, "val", CPU, recipe).top1}


def test_of_backbones_too_with_all_columns(run: Run) -> None:
    config, recipe = small(run.config, {})
    model, data = model_and_data(config)
    reference = Reference(model_and_data(config.changed(seed=5))[0].eval(), data)
    found: dict[str, float] = {}
    trained = train(model, data, recipe, MemoryRecorder("retrain"), device=CPU, reference=reference, evaluated=found)
    again = reference.agreement(trained, "val", CPU, recipe)
    assert found == {f"val_{name}": value for name, value in again._asdict().items()}
    assert len(found) == 3


def test_no_epoch_leaves_it_empty(run: Run) -> None:
    config, recipe = small(run.config, {"epochs": 0, "warmup_epochs": 0})
    model, data = model_and_data(config)
    found: dict[str, float] = {}
    train(model, data, recipe, MemoryRecorder("dense"), device=CPU, evaluated=found)
    assert found == {}

    class AfterTheLast(MemoryRecorder):
        def resume(self) -> Any:
            return 1, saved

    saved: dict[str, Any] = {}

    class Kept(MemoryRecorder):
        def checkpoint(self, epoch: int, state: Any) -> None:
            saved.update(state)

    recipe = recipe.model_copy(update={"epochs": 1})
    recorders: list[Recorder] = [Kept("dense"), AfterTheLast("dense")]
    for recorder, known in zip(recorders, (True, False), strict=True):
        found.clear()
        train(model, data, recipe, recorder, device=CPU, evaluated=found)
        assert bool(found) == known


def small(config: Config, changes: dict[str, Any]) -> tuple[Config, Recipe]:
    """The configuration with few images, and a recipe of one epoch."""
    config = config.changed(**{"data.limit": 64, "data.batch_size": 32})
    return config, config.dense.model_copy(update={"epochs": 1, "warmup_epochs": 0, **changes})


def model_and_data(config: Config) -> tuple[torch.nn.Module, Data]:
    torch.manual_seed(config.seed)
    start = build_dense(config.changed(**{"model.checkpoint": None}), 10)
    return start, load_data(config, image_size(start), getattr(start, "pretrained_cfg", None))
