"""Taylor, trained for as long as the search's cuts take: `python reports/dinov2/equal_time.py --run runs/dinov2-emoji`.

Equal retraining does not count the time of axes and repair, in which nothing is trained. Here taylor's cuts of a finished run
of sweep.yaml get it as more epochs: of each budget both learning rates with the first seed, and the better one on validation
with the others. The rows go to equal-time.parquet beside this file after each training, so the same command goes on where it
was stopped. Test is evaluated once per training.
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
METHOD = "taylor"  # the best of the other methods at every budget
SEEDS = range(3)


def epochs_for(rows: pd.DataFrame, budget: float) -> int:
    """The epochs of METHOD's cut in the time that axes, repair and one epoch of the searched one take, to the nearest.

    Args:
        rows: of the run, each trained for one epoch on one core. Of several times the shortest counts: other work beside a
            training makes it longer.
    """
    of_budget = rows[(rows["status"] == "ok") & (rows["budget"] == budget)].set_index("method")
    searched = of_budget.loc["searched"]
    seconds = searched["repair_seconds"].min() + searched["train_seconds"].min()
    return round(seconds / of_budget.loc[METHOD, "train_seconds"].min())


def points_of(run: Run, budget: float, seed: int) -> list[Point]:
    """METHOD's points of all learning rates, with that many epochs."""
    same = [p for p in plan_points(run) if (p.method, p.budget, p.seed) == (METHOD, budget, seed)]
    return [replace(point, epochs=epochs_for(run.rows, budget)) for point in same]


def trainings(run: Run) -> Iterator[tuple[dict[str, Any], Callable[[], dict[str, float]]]]:
    """Of each budget the first seed's points, and then those of the rate that is best on validation with the other seeds."""
    for budget in sorted(set(run.rows.loc[run.rows["method"] == METHOD, "budget"])):
        points = points_of(run, budget, SEEDS[0])
        yield from (one(run, point) for point in points)
        kept = pd.read_parquet(ROWS)  # has them now
        first = kept[(kept["budget"] == budget) & (kept["seed"] == SEEDS[0])]
        rate = first.loc[first["val_top1"].idxmax(), "lr"]
        for seed in SEEDS[1:]:
            (template,) = (point for point in points if point.lr == rate)
            yield one(run, replace(template, seed=seed))


def one(run: Run, point: Point) -> tuple[dict[str, Any], Callable[[], dict[str, float]]]:
    """What tells a training from the others, and what trains."""
    key = {"method": point.method, "budget": point.budget, "lr": point.lr, "epochs": point.epochs, "seed": point.seed}
    return key, partial(trained, run, point)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="the folder of a finished run of sweep.yaml")
    options = parser.parse_args(argv)
    rows_of(ROWS, trainings(Run(options.run)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
