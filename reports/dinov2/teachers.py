"""What a teacher is worth: `python reports/dinov2/teachers.py --run runs/dinov2-emoji --data data/dinov2`.

The cut of a finished run of sweep.yaml at one budget, as it was repaired, is retrained as the run retrained it, but with each
of several teachers; three seeds. The rows go to teachers.parquet beside this file after each training, so the same command goes
on where it was stopped. Test is evaluated once per training.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from slimsweep import load
from slimsweep.cluster.starting_model import starting_model
from slimsweep.cluster.worker import data_of
from slimsweep.ledger.planning import plan_points
from slimsweep.ledger.points import Point
from slimsweep.ledger.run import Run
from slimsweep.report.pareto import best_rates
from slimsweep.training import MemoryRecorder, Teacher, evaluate_split, train

ROWS = Path(__file__).parent / "teachers.parquet"
ALPHA = 0.5  # the share of the teacher's answers in the loss
BUDGET = 0.25


def teachers(run: Run, data: Path) -> dict[str, dict[str, Any]]:
    """The settings of each teacher, by its name in the table: of the study's own models, and of the backbone before it."""
    best = best_rates(run.rows[run.rows["status"] == "ok"])
    of_first_seed = best[best["seed"] == run.config.retrain.seeds[0]].set_index(["method", "budget"])["model_path"]
    several = [of_first_seed["dense", 1.0], of_first_seed["searched", 0.5]]
    paths = [run.dense.uri, *((run.folder / path).uri for path in several)]
    soft, features = {"alpha": ALPHA}, {"alpha": ALPHA, "answers": "features"}
    model = run.config.model  # named, since the folder by itself is a model for images of 518 pixels
    untouched = {"name": model.name, "kwargs": model.kwargs, "checkpoint": str(data / "backbone")}
    return {
        "none": {},
        "the dense model, soft answers": {"retrain.distill": soft},
        "the untouched backbone, features": {"teacher": untouched, "retrain.distill": features},
        "three models, soft answers": {
            "teacher": [{"checkpoint": path} for path in paths],
            "retrain.distill": soft,
        },
    }


def taught(run: Run, point: Point, settings: Mapping[str, Any], device: torch.device) -> dict[str, float]:
    """val_top1 and test_top1 of a point that is trained with other settings than its run's."""
    config, dense = run.config.changed(**settings), load(run.dense)
    data, recipe = data_of(run, dense), config.retrain.at(point.lr, point.epochs)
    start = starting_model(run, point, dense, data, device)
    teacher, evaluated = Teacher.for_stage(config, "retrain", dense, data), dict[str, float]()
    how: dict[str, Any] = {"seed": point.seed, "device": device, "teacher": teacher, "evaluated": evaluated}
    small = train(start.model, data, recipe, MemoryRecorder("retrain", point.name), **how)
    return {**evaluated, "test_top1": evaluate_split(small, data, "test", device, recipe).top1}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="the folder of a finished run of sweep.yaml")
    parser.add_argument("--data", type=Path, required=True, help="the folder that make_data.py made")
    options = parser.parse_args(argv)
    run, device = Run(options.run), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    best = best_rates(run.rows[(run.rows["status"] == "ok") & (run.rows["method"] == "searched")])
    wanted = set(best[best["budget"] == BUDGET]["point"])
    points = [point for point in plan_points(run) if point.name in wanted]
    rows = pd.read_parquet(ROWS).to_dict("records") if ROWS.exists() else []
    for name, settings in teachers(run, options.data).items():
        for point in points:
            of_row = {"teacher": name, "budget": point.budget, "lr": point.lr, "epochs": point.epochs, "seed": point.seed}
            if any(of_row.items() <= row.items() for row in rows):
                continue
            rows.append({**of_row, **taught(run, point, settings, device)})
            pd.DataFrame(rows).to_parquet(ROWS, index=False)
            print(rows[-1], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
