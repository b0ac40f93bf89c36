"""The search and taylor, trained for equal time: `python reports/dinov2/equal_time.py --run runs/dinov2-emoji`.

Equal retraining does not count the time of axes and repair, in which nothing is trained. Here taylor's cuts of a finished run
of sweep.yaml are trained for some epochs, and the searched ones for as many as fit into the same time beside axes and repair;
with --equal-epochs the searched ones for as many as taylor's instead. Of each, both learning rates with the first seed, and the
better one on validation with the others. The rows go to equal-time.parquet beside this file after each training, so the same
command goes on where it was stopped. Test is evaluated once per training.
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
SEEDS = range(3)


def epochs_beside_repair(rows: pd.DataFrame, budget: float, epochs: int) -> int:
    """The whole epochs of the searched cut that fit, beside axes and repair, into the time of so many of taylor's.

    Args:
        rows: of the run, each trained for one epoch on one core. Of several times the shortest counts: other work beside a
            training makes it longer.
    """
    of_budget = rows[(rows["status"] == "ok") & (rows["budget"] == budget)]
    shortest = of_budget.groupby("method")[["repair_seconds", "train_seconds"]].min()
    seconds = epochs * shortest.loc["taylor", "train_seconds"] - shortest.loc["searched", "repair_seconds"]
    return max(0, int(seconds / shortest.loc["searched", "train_seconds"]))


def trainings(
    run: Run, method: str, budget: float, epochs: int, taylor_epochs: int, terms: str
) -> Iterator[tuple[dict[str, Any], Callable[[], dict[str, float]]]]:
    """The first seed's points, and then those of the rate that is best on validation with the other seeds.

    A method's cut is the same for all seeds.

    Args:
        taylor_epochs: of the training of taylor's cut that these are compared with.
        terms: "time" or "epochs": what is equal in the two.
    """
    key = {"method": method, "budget": budget, "taylor_epochs": taylor_epochs, "terms": terms, "epochs": epochs}
    points = [p for p in plan_points(run) if (p.method, p.budget, p.seed) == (method, budget, SEEDS[0])]
    points = [replace(point, epochs=epochs) for point in points]
    yield from (one(run, point, key) for point in points)
    kept = pd.read_parquet(ROWS)  # has them now
    first = kept[(kept[list(key)] == pd.Series(key)).all(axis=1) & (kept["seed"] == SEEDS[0])]
    rate = first.loc[first["val_top1"].idxmax(), "lr"]
    (best,) = (point for point in points if point.lr == rate)
    yield from (one(run, replace(best, seed=seed), key) for seed in SEEDS[1:])


def one(run: Run, point: Point, key: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], dict[str, float]]]:
    """What tells a training from the others, and what trains."""
    return {**key, "lr": point.lr, "seed": point.seed}, partial(trained, run, point)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="the folder of a finished run of sweep.yaml")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.06, 0.12, 0.25, 0.5], help="of the run; all by default")
    parser.add_argument("--epochs", type=int, default=4, help="of taylor's cuts (4)")
    parser.add_argument("--equal-epochs", action="store_true", help="train the searched cuts for as many, whatever repair took")
    options = parser.parse_args(argv)
    run = Run(options.run)
    for budget in options.budgets:
        rows_of(ROWS, trainings(run, "taylor", budget, options.epochs, options.epochs, "epochs"))
        epochs = options.epochs if options.equal_epochs else epochs_beside_repair(run.rows, budget, options.epochs)
        terms = "epochs" if options.equal_epochs else "time"
        rows_of(ROWS, trainings(run, "searched", budget, epochs, options.epochs, terms))
    return 0


if __name__ == "__main__":
    sys.exit(main())
