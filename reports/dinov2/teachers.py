"""What a teacher is worth: `python reports/dinov2/teachers.py --run runs/dinov2-emoji --data data/dinov2`.

The cut of a finished run of sweep.yaml at one budget, as it was repaired, is retrained as the run retrained it, but with each
of several teachers; three seeds. The rows go to teachers.parquet beside this file after each training, so the same command goes
on where it was stopped. Test is evaluated once per training.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from trained_otherwise import rows_of, trained

from slimsweep.ledger.planning import plan_points
from slimsweep.ledger.run import Run
from slimsweep.report.pareto import best_rates

ROWS = Path(__file__).parent / "teachers.parquet"
ALPHA = 0.5  # the share of the teacher's answers in the loss
BUDGET = 0.25
SEEDS = range(3)


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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="the folder of a finished run of sweep.yaml")
    parser.add_argument("--data", type=Path, required=True, help="the folder that make_data.py made")
    options = parser.parse_args(argv)
    run = Run(options.run)
    best = best_rates(run.rows[(run.rows["status"] == "ok") & (run.rows["method"] == "searched")])
    wanted = set(best[(best["budget"] == BUDGET) & best["seed"].isin(SEEDS)]["point"])
    points = [point for point in plan_points(run) if point.name in wanted]
    rows_of(
        ROWS,
        (
            (
                {"teacher": name, "budget": point.budget, "lr": point.lr, "epochs": point.epochs, "seed": point.seed},
                partial(trained, run, point, settings),
            )
            for name, settings in teachers(run, options.data).items()
            for point in points
        ),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
