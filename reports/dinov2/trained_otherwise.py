"""Points of a finished run that are trained once more, in another way, and kept in a file as they end."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from slimsweep import load
from slimsweep.cluster.starting_model import starting_model
from slimsweep.cluster.worker import data_of
from slimsweep.ledger.points import Point
from slimsweep.ledger.run import Run
from slimsweep.training import MemoryRecorder, Teacher, evaluate_split, train


def trained(run: Run, point: Point, settings: Mapping[str, Any] | None = None) -> dict[str, float]:
    """val_top1 and test_top1 of a point that is cut (and repaired) as in its run, and then trained otherwise.

    Args:
        point: its learning rate and epochs are those that it is trained with.
        settings: fields of the configuration that differ from the run's, by their dotted names.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config, dense = run.config.changed(**(settings or {})), load(run.dense)
    data, recipe = data_of(run, dense), config.retrain.at(point.lr, point.epochs)
    start = starting_model(run, point, dense, data, device)
    teacher, evaluated = Teacher.for_stage(config, "retrain", dense, data), dict[str, float]()
    how: dict[str, Any] = {"seed": point.seed, "device": device, "teacher": teacher, "evaluated": evaluated}
    small = train(start.model, data, recipe, MemoryRecorder("retrain", point.name), **how)
    return {**evaluated, "test_top1": evaluate_split(small, data, "test", device, recipe).top1}


def rows_of(file: Path, trainings: Iterable[tuple[dict[str, Any], Callable[[], dict[str, float]]]]) -> pd.DataFrame:
    """One row per training, in a Parquet file that is written after each; those that it has are not repeated.

    Args:
        file: of the rows.
        trainings: what tells a training from the others, and what trains; both make up its row.
    """
    rows = pd.read_parquet(file).to_dict("records") if file.exists() else []
    for key, train_it in trainings:
        if not any(key.items() <= row.items() for row in rows):
            rows.append({**key, **train_it()})
            pd.DataFrame(rows).to_parquet(file, index=False)
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)
