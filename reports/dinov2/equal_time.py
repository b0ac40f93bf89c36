"""The search and taylor, trained for longer: `python reports/dinov2/equal_time.py --run runs/dinov2-emoji`.

Equal retraining does not count the time of axes and repair, in which nothing is trained. Here cuts of a finished run of
sweep.yaml are trained for as many epochs as taylor's cut could be in the time that axes, repair and one epoch of the searched
one take: of each budget both learning rates with the first seed, and the better one on validation with the others. The rows go
to equal-time.parquet beside this file after each training, so the same command goes on where it was stopped. Test is evaluated
once per training.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from trained_otherwise import rows_of, trained

from slimsweep.ledger.planning import plan_points
from slimsweep.ledger.points import Point
from slimsweep.ledger.run import Run

ROWS = Path(__file__).parent / "equal-time.parquet"
METHODS = ("taylor", "searched")  # taylor is the best of the other methods at every budget
SEEDS = range(3)


def epochs_for(rows: pd.DataFrame, budget: float) -> int:
    """The epochs of taylor's cut in the time that axes, repair and one epoch of the searched one take, to the nearest.

    Args:
        rows: of the run, each trained for one epoch on one core. Of several times the shortest counts: other work beside a
            training makes it longer.
    """
    of_budget = rows[(rows["status"] == "ok") & (rows["budget"] == budget)].set_index("method")
    searched = of_budget.loc["searched"]
    seconds = searched["repair_seconds"].min() + searched["train_seconds"].min()
    return round(seconds / of_budget.loc["taylor", "train_seconds"].min())


def trainings(run: Run, method: str, budget: float) -> Iterator[tuple[dict[str, Any], Callable[[], dict[str, float]]]]:
    """The first seed's points, and then those of the rate that is best on validation with the other seeds.

    A method's cut is the same for all seeds.
    """
    epochs = epochs_for(run.rows, budget)
    of_first = [p for p in plan_points(run) if (p.method, p.budget, p.seed) == (method, budget, SEEDS[0])]
    points = [replace(point, epochs=epochs) for point in of_first]
    yield from (one(run, point) for point in points)
    kept = pd.read_parquet(ROWS)  # has them now
    first = kept[(kept["method"] == method) & (kept["budget"] == budget) & (kept["seed"] == SEEDS[0])]
    rate = first.loc[first["val_top1"].idxmax(), "lr"]
    (best,) = (point for point in points if point.lr == rate)
    yield from (one(run, replace(best, seed=seed)) for seed in SEEDS[1:])


def one(run: Run, point: Point) -> tuple[dict[str, Any], Callable[[], dict[str, float]]]:
    """What tells a training from the others, and what trains."""
    key = {"method": point.method, "budget": point.budget, "lr": point.lr, "epochs": point.epochs, "seed": point.seed}
    return key, partial(trained, run, point)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="the folder of a finished run of sweep.yaml")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.06, 0.25], help="of the run (0.06 and 0.25)")
    options = parser.parse_args(argv)
    run = Run(options.run)
    for budget in options.budgets:
        for method in METHODS:
            rows_of(ROWS, trainings(run, method, budget))
    return 0


if __name__ == "__main__":
    sys.exit(main())
