"""Stops learning rates that are behind (retrain.stopping: asha), by Tune's own scheduler.

A trial reports each of its epochs. Rates are compared at equal epochs, and only with rates of the same method, terms, budget
and seed: each such group has a bracket of its own. What the run has of earlier starts counts too, so that a start that goes on
compares as the first one would have.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray.tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from slimsweep.config import Retrain
from slimsweep.ledger.points import Point
from slimsweep.training.recorder import Row

EPOCH, QUALITY = "epoch", "quality"  # what a trial reports


class EpochReports:
    """Reports each trained epoch to Tune, which may end the trial then (`slimsweep.training.recorder.Tracker`).

    Args:
        quality: the column of the curve that counts; more is better.
    """

    def __init__(self, quality: str) -> None:
        self.quality = quality

    def epoch(self, row: Row) -> None:
        if row["epoch"] > 0:
            ray.tune.report({EPOCH: row["epoch"], QUALITY: row[self.quality]})

    def finished(self, row: Row | None) -> None:
        """The end of the trial says it."""


@dataclass(frozen=True)
class Earlier:
    """A point of an earlier start, as a trial for Tune's scheduler."""

    trial_id: str


class StopRates(FIFOScheduler):
    """Tune's ASHA, with a bracket of its own for each group of points that differ in the learning rate alone.

    Args:
        recipe: says from which epoch on rates are compared, and how hard.
        stopped: called with a point and the epoch after which it is stopped.
        curves: by point, the quality after each epoch of what earlier starts trained.
    """

    def __init__(
        self,
        recipe: Retrain,
        points: list[Point],
        stopped: Callable[[Point, int], None],
        curves: Mapping[Point, Mapping[int, float]],
    ) -> None:
        super().__init__()
        self.stopped = stopped
        self.brackets: dict[tuple[Any, ...], AsyncHyperBandScheduler] = {}
        for point in [*points, *curves]:
            if point.rate_group not in self.brackets and recipe.first_comparison(point.epochs) < point.epochs:
                self.brackets[point.rate_group] = AsyncHyperBandScheduler(
                    time_attr=EPOCH,
                    metric=QUALITY,
                    mode="max",
                    max_t=point.epochs,
                    grace_period=recipe.first_comparison(point.epochs),
                    reduction_factor=recipe.reduction_factor,
                    stop_last_trials=False,
                )
        for point, curve in curves.items():
            if (bracket := self.brackets.get(point.rate_group)) is None:
                continue
            earlier: Any = Earlier(point.name)
            bracket.on_trial_add(None, earlier)  # type: ignore[arg-type]  # it asks the controller nothing
            for epoch, quality in sorted(curve.items()):
                if 0 < epoch < point.epochs:
                    bracket.on_trial_result(None, earlier, {EPOCH: epoch, QUALITY: quality})  # type: ignore[arg-type]

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune saves its settings, to go on with them, which slimsweep never does. A new start makes new brackets."""
        return {}

    def __deepcopy__(self, memo: Any) -> "StopRates":
        return self

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if (bracket := self.brackets.get(point_of(trial).rate_group)) is not None:
            bracket.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        point = point_of(trial)
        bracket = self.brackets.get(point.rate_group)
        # Nothing is saved by stopping after the last epoch.
        if bracket is None or EPOCH not in result or result[EPOCH] >= point.epochs:
            return str(TrialScheduler.CONTINUE)
        decision = str(bracket.on_trial_result(tune_controller, trial, result))
        if decision == TrialScheduler.STOP:
            self.stopped(point, int(result[EPOCH]))
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """What it was at each epoch counts on."""

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Likewise."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Likewise."""


def point_of(trial: Any) -> Point:
    """The point of one of Tune's trials."""
    return Point(**trial.config["point"])
